"""Pickled dicts over PUSH and PULL on loopback tcp, as blendtorch sends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import zmq

from ..measuring import Timed, Way, timed
from .arrays import Spec, made_ahead, prepared, stamp
from .producers import producers, task

__all__ = ["pickled"]


@contextlib.contextmanager
def pickled(spec: Spec, count: int, in_flight: int) -> Iterator[Way]:
    """Yield a way that receives frames of `count` producers, which make about `in_flight` of them ahead."""
    ahead = max(1, in_flight // (2 * count))  # at each end of each connection
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.linger, socket.rcvhwm = 0, ahead
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def take() -> int:
            socket.recv_pyobj()
            return 1

        def way(seconds: float) -> Timed:
            for _ in range(made_ahead(spec, in_flight)):
                take()
            return timed(take, seconds)

        with producers(__name__, count, endpoint=f"tcp://127.0.0.1:{port}", spec=spec, ahead=ahead):
            yield way


def _produce() -> None:
    about = task()
    arrays = prepared(about["spec"])
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger, socket.sndhwm = 0, about["ahead"]
        socket.connect(about["endpoint"])
        index = 0
        while True:
            socket.send_pyobj({"btid": 0, **stamp(arrays, index)})
            index += 1


if __name__ == "__main__":
    _produce()
