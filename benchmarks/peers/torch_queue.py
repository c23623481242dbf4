"""A queue of torch.multiprocessing, as a DataLoader uses it: it sends the descriptors of tensors in shared memory."""

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
    """Yield a way that receives frames of `count` producers, which make `in_flight` of them ahead."""
    # Producers are forked from a server that has imported torch, so they start at once.
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
        # Killing a producer could leave the file of a tensor behind, before its name is removed.
        stop.set()
        while any(process.is_alive() for process in processes):
            # A producer that waits for room goes on, and sees that it must stop. A tensor whose producer has ended
            # cannot be fetched any more, which is one of these errors.
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
        # Each frame needs new tensors, because the queue moves them into shared memory.
        queue.put({name: torch.from_numpy(array) for name, array in arrays.items()})
        index += 1
