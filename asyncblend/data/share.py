"""The Blenders of a dataset: which are this process's own, and the stream that runs them."""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from ..config import Params, StreamConfig
from ..errors import ConfigError
from ..stream.params import is_iterator
from ..stream.stats import StreamStats
from ..stream.sync import SyncStream


class Share(NamedTuple):
    """The instances of one process, out of those of its rank."""

    config: StreamConfig
    """With these instances alone."""
    first_instance: int
    """Instances are numbered through all ranks and workers, which render together."""
    worker: int
    """This process among those of its rank that have a Blender."""
    workers: int


def share_of(config: StreamConfig, rank: int) -> Share | None:
    """Return what this process runs of a config's instances: in a DataLoader's worker, a part of them, or none.

    All workers share the instances of a `fleet`, which is another program's.

    Raises:
        ConfigError: In a worker, the Blenders are those of a cluster.
    """
    info = get_worker_info()
    w, workers = (0, 1) if info is None else (info.id, info.num_workers)
    if info is not None and config.cluster is not None:
        raise ConfigError(
            "a worker of a DataLoader would be a host of its own for Blenders of the cluster; iterate with num_workers=0, "
            "as the Blenders make their samples on other machines anyway"
        )
    if config.fleet is not None:
        return Share(config, 0, w, workers)
    active = min(workers, config.instances)
    if w >= active:
        return None
    each, more = divmod(config.instances, active)
    count, before = each + (w < more), w * each + min(w, more)
    args = config.script_args
    if args and not isinstance(args[0], str | os.PathLike):
        args = args[before : before + count]
    own = dataclasses.replace(
        config,
        instances=count,
        script_args=args,
        threads=config.threads_each(),  # the cores are shared out among all workers' instances
    )
    return Share(own, rank * config.instances + before, w, active)


def check_not_copied(params: Params | None) -> None:
    """Raise ConfigError if a copy of the params would give the same again."""
    if is_iterator(params):
        raise ConfigError(
            "params are an iterator, of which each worker of the DataLoader would have a copy, and would render with "
            "the same params as the others; iterate with num_workers=0, or give a callable(index)"
        )


class OwnStream:
    """The stream of this process: begun when it is first needed, and kept until `close`, garbage collection or exit.

    A copy, forked or pickled, begins its own. Several threads may use it.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # held while a stream is made, not while its Blenders start
        self._stream: SyncStream | None = None
        self._share: Share | None = None
        self._finalizer: weakref.finalize[Any, OwnStream] | None = None

    def of(self, share: Share, *, wait: bool = True) -> SyncStream:
        """Return the stream of this share, if that can be used still, else a new one.

        Args:
            wait: Whether to wait for the first Blender. Otherwise what goes wrong at the start, its passes raise.

        Raises:
            AsyncblendError: As entering a BlenderStream does. Nothing is left running.
        """
        if self._pid != os.getpid():
            OwnStream.__init__(self)  # another thread of the parent may have held the lock
        with self._lock:
            stream = self._stream
            if stream is None or not stream.usable or self._share != share:
                self.close()
                stream = self._stream = SyncStream(share.config, first_instance=share.first_instance)
                self._share = share
                self._finalizer = weakref.finalize(self, stream.close)
                stream.start(wait=False)
        if wait:
            try:
                stream.wait_ready()
            except BaseException:
                stream.close()
                raise
        return stream

    def stats(self) -> StreamStats | None:
        """Return the stream's statistics, also after its end; None before it was begun."""
        return None if self._stream is None else self._stream.stats()

    def close(self) -> None:
        """Stop the Blenders, if this process has any. May be called from any thread, also twice."""
        if self._stream is not None:
            self._stream.close()
        if self._finalizer is not None:
            self._finalizer.detach()

    def __reduce__(self) -> tuple[type[OwnStream], tuple[()]]:
        return OwnStream, ()
