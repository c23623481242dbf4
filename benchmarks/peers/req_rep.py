"""Pickled requests and replies, as blendtorch steps its environments: a REQ socket for each of them, over tcp.

Its environments are stepped one by one. Here all requests are sent before the first reply is awaited, which is better.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import zmq

from ..measuring import Way, timed
from .producers import producers, task

__all__ = ["req_rep"]

_PATIENCE = 60_000  # milliseconds to wait for a reply


@contextlib.contextmanager
def req_rep(count: int, shape: tuple[int, ...] | None) -> Iterator[Way]:
    """Yield a way that steps `count` environments, with an image of that shape in each observation if it is given."""
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(context.socket(zmq.REQ)) for _ in range(count)]
        for socket in sockets:
            socket.linger, socket.rcvtimeo = 0, _PATIENCE
            # The environment connects: who binds makes no difference, and so the port is known.
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            stack.enter_context(producers(__name__, 1, endpoint=f"tcp://127.0.0.1:{port}", shape=shape))

        def step() -> int:
            for number, socket in enumerate(sockets):
                socket.send_pyobj({"cmd": "step", "action": number & 1})
            for socket in sockets:
                reply = socket.recv_pyobj()
                assert not reply["done"]
            return count

        step()  # waits until all are connected
        yield lambda seconds: timed(step, seconds)


def _play() -> None:
    about = task()
    state = np.zeros(4, np.float32)
    image = None if about["shape"] is None else np.zeros(about["shape"], np.uint8)
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.linger = 0
        socket.connect(about["endpoint"])
        time = 0
        while True:
            action = socket.recv_pyobj()["action"]
            time += 1
            state[0] = action
            reply = {"obs": state, "reward": 1.0, "done": False, "time": time, "prev_action": action}
            if image is not None:
                image[0, 0, 0] = time & 127
                reply["rgb_array"] = image
            socket.send_pyobj(reply)


if __name__ == "__main__":
    _play()
