"""Raw buffers in multipart messages over PUSH and PULL on ipc, which neither end copies.

This way has an unfair advantage: its producer changes arrays that ZeroMQ may still be sending.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator

import numpy as np
import zmq

from ..measuring import Timed, Way, timed
from .arrays import Spec, made_ahead, prepared, stamp
from .producers import producers, task

__all__ = ["raw"]


@contextlib.contextmanager
def raw(spec: Spec, count: int, in_flight: int) -> Iterator[Way]:
    """Yield a way that receives frames of `count` producers, which make about `in_flight` of them ahead."""
    ahead = max(1, in_flight // (2 * count))  # at each end of each connection
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.linger, socket.rcvhwm = 0, ahead
        socket.bind(f"ipc://{folder}/raw")

        def take() -> int:
            header, *parts = socket.recv_multipart(copy=False)
            about = json.loads(header.bytes)
            for (dtype, shape), part in zip(about.values(), parts, strict=True):
                np.frombuffer(part.buffer, dtype).reshape(shape)
            return 1

        def way(seconds: float) -> Timed:
            for _ in range(made_ahead(spec, in_flight)):
                take()
            return timed(take, seconds)

        with producers(__name__, count, endpoint=f"ipc://{folder}/raw", spec=spec, ahead=ahead):
            yield way


def _produce() -> None:
    about = task()
    arrays = prepared(about["spec"])
    header = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger, socket.sndhwm = 0, about["ahead"]
        socket.connect(about["endpoint"])
        index = 0
        while True:
            stamp(arrays, index)
            socket.send_multipart([json.dumps(header).encode(), *(array.data for array in arrays.values())], copy=False)
            index += 1


if __name__ == "__main__":
    _produce()
