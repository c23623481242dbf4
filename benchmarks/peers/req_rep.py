"""Pickled requests and replies, as blendtorch steps its environments: a REQ socket for each of them, over tcp.

An environment of blendtorch's waits for its reply, so several are stepped one after another, by Gymnasium's SyncVectorEnv.
A program that goes without Gymnasium can send all requests before it awaits the first reply.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import zmq

from ..measuring import Way, timed
from .producers import producers, task

__all__ = ["req_rep", "req_rep_in_gymnasium"]

_PATIENCE = 60_000  # milliseconds to wait for a reply


@contextlib.contextmanager
def req_rep(count: int, shape: tuple[int, ...] | None) -> Iterator[Way]:
    """Yield a way that sends all requests, then receives all replies, which is better than blendtorch's own.

    Args:
        count: The number of environments.
        shape: Of the image in each observation. None: there is none.
    """
    with _connected(count, shape) as sockets:

        def step() -> int:
            for number, socket in enumerate(sockets):
                socket.send_pyobj({"cmd": "step", "action": number & 1})
            for socket in sockets:
                reply = socket.recv_pyobj()
                assert not reply["done"]
            return count

        step()  # waits until all are connected
        yield lambda seconds: timed(step, seconds)


@contextlib.contextmanager
def req_rep_in_gymnasium(count: int, shape: tuple[int, ...] | None) -> Iterator[Way]:
    """Yield a way that steps as many of blendtorch's environments in a SyncVectorEnv; arguments as for `req_rep`."""
    import gymnasium

    class Remote(gymnasium.Env[Any, Any]):
        def __init__(self, socket: zmq.Socket[bytes]) -> None:
            self.action_space = gymnasium.spaces.Discrete(2)
            self.observation_space = (
                gymnasium.spaces.Box(0, 255, shape, np.uint8) if shape else gymnasium.spaces.Box(-1, 1, (4,))
            )
            self._socket = socket

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            observation, _, _, _, info = self.step(0)
            return observation, info

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self._socket.send_pyobj({"cmd": "step", "action": action})
            reply = self._socket.recv_pyobj()
            observation = reply.pop("rgb_array" if shape else "obs")
            return observation, reply.pop("reward"), reply.pop("done"), False, reply

    with _connected(count, shape) as sockets:
        envs = gymnasium.vector.SyncVectorEnv([functools.partial(Remote, socket) for socket in sockets])
        envs.reset()
        actions = envs.action_space.sample()

        def step() -> int:
            envs.step(actions)
            return count

        yield lambda seconds: timed(step, seconds)


@contextlib.contextmanager
def _connected(count: int, shape: tuple[int, ...] | None) -> Iterator[list[zmq.Socket[bytes]]]:
    """Yield a socket to each of as many processes that play."""
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(context.socket(zmq.REQ)) for _ in range(count)]
        for socket in sockets:
            socket.linger, socket.rcvtimeo = 0, _PATIENCE
            # The environment connects: who binds makes no difference, and so the port is known.
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            stack.enter_context(producers(__name__, 1, endpoint=f"tcp://127.0.0.1:{port}", shape=shape))
        yield sockets


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
