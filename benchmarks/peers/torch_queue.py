"""A queue of torch.multiprocessing: tensors in shared memory, whose descriptors travel. What a DataLoader uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from queue import Empty
from typing import Any

import torch
import torch.multiprocessing

from ..measuring import Timed, Way, timed
from .arrays import Spec, prepared, stamp

__all__ = ["torch_queue"]


@contextlib.contextmanager
def torch_queue(spec: Spec, count: int, in_flight: int) -> Iterator[Way]:
    """Frames of `count` producers; `in_flight` of them are made ahead."""
    # A server that has imported torch is forked: a producer is there at once.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    queue = context.Queue(maxsize=in_flight)
    plain = {name: (dtype, tuple(shape)) for name, (dtype, shape) in spec.items()}
    stop = context.Event()
    processes = [context.Process(target=_produce, args=(queue, stop, plain), daemon=True) for _ in range(count)]

    def take() -> int:
        queue.get()
        return 1

    def way(seconds: float) -> Timed:
        for _ in range(2 * in_flight):
            take()
        return timed(take, seconds)

    try:
        for process in processes:
            process.start()
        yield way
    finally:
        # Not killed: between making a tensor's file and taking its name away, that would leave it behind.
        stop.set()
        while any(process.is_alive() for process in processes):
            # Whoever waits for room goes on, and sees that it is over. A tensor that was still in the queue when
            # its producer ended has no descriptor left to fetch: a connection refused, a socket gone.
            with contextlib.suppress(Empty, OSError, EOFError):
                queue.get(timeout=0.05)
        for process in processes:
            process.join()
        queue.close()


def _produce(queue: Any, stop: Any, spec: Spec) -> None:
    arrays = prepared(spec)
    index = 0
    while not stop.is_set():
        stamp(arrays, index)
        # New tensors each time: putting one into the queue moves it into shared memory.
        queue.put({name: torch.from_numpy(array) for name, array in arrays.items()})
        index += 1
