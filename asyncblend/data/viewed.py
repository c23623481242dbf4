"""Viewed: where the frames of a dataset can be seen while it is iterated."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..stream.stats import StreamStats
from ..tap.served import Served, check_port
from ..tap.tap import Tap


class Viewed:
    """A port on which the process that iterates shows its frames. A copy, forked or pickled, shows its own.

    Args:
        port: Of this machine.

    Raises:
        ConfigError: It is none, or taken.
    """

    def __init__(self, port: int) -> None:
        check_port(port)
        self._restore(port)

    def _restore(self, port: int) -> None:
        self.port = port
        self._tap: Tap | None = None
        self._served: Served | None = None

    def tap(self, stats: Callable[[], StreamStats | None], queue_size: int, *, last: bool) -> Tap:
        """Return what frames are to be shown to. The port is served from now on until `close`.

        Args:
            stats, queue_size: As `Tap` takes them.
            last: As `Served` takes it: False in a DataLoader's worker, which ends with its epoch.
        """
        if self._tap is None or self._served is None or self._served.pid != os.getpid():
            self._tap = Tap(stats, queue_size)
            self._served = Served(self._tap, self.port, last=last)
        return self._tap

    def close(self) -> None:
        """Stop serving the port, until frames are shown again. Also where it is not served."""
        if self._served is not None:
            self._served.close()
        self._tap = self._served = None

    def __getstate__(self) -> int:
        return self.port

    def __setstate__(self, port: int) -> None:
        self._restore(port)  # the port may be the training process's own still, which a worker waits for
