"""Metrics of a stream or a dataset for Prometheus, served over HTTP on this machine's own address 127.0.0.1 alone.

    with asyncblend.metrics.serve(dataset, 9100):
        train(dataset)

Each request reads `stats()` anew: nothing is counted twice, and nothing is done between requests. It needs
`pip install "asyncblend[metrics]"`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .checks import check_whole
from .errors import ConfigError
from .ports import HOST
from .stream.stats import STATES, PassStats, StreamStats

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Server", "serve"]

_OF_INSTANCES = {
    "frames": ("frames", "Frames that arrived from the instance."),
    "restarts": ("instance_restarts", "How often the instance was started again after a crash."),
}
_COUNTERS = {
    "delivered": "Frames that the consumer has taken.",
    "bytes": "Bytes of the arrays that the consumer has taken.",
    "skipped": "Samples given up.",
    "recycled": "Blenders replaced on purpose.",
    "duplicates": "Frames dropped because they had come already.",
    "stale": "Frames dropped because nobody waited for them any more.",
    "bad_messages": "Messages dropped because they could not be read.",
    "refused": "Peers turned away.",
}
_GAUGES = {
    "rendering": "Samples that a Blender holds now.",
    "queued": "Frames that wait for the consumer now.",
    "rate": "Frames per second that the consumer took over the latest minute.",
    "occupancy": "How full the queue was over the latest minute, from 0 to 1.",
    "waiting": "The share of the latest minute in which the consumer waited for a frame, from 0 to 1.",
    "idle": "The share of the latest minute in which Blenders had nothing to do, from 0 to 1.",
}
_SPREADS = {
    "seconds_waited": "How long the consumer waited for a frame.",
    "seconds_idle": "How long a Blender waited for a lease.",
    "seconds_sample": "How long the script took for a frame.",
    "seconds_render": "How long Blender rendered for a frame.",
    "seconds_capture": "How long the rest of bl.render took for a frame.",
}


class Source(Protocol):
    """A stream, a dataset, or a pass: what has statistics."""

    def stats(self) -> PassStats | None: ...


class Server(contextlib.AbstractContextManager["Server"]):
    """Serves the metrics of a source, until `close` or the end of the program. `serve` returns one."""

    def __init__(self, http: Any, thread: threading.Thread) -> None:
        self._http, self._thread, self._forked = http, thread, False
        _open.add(self)
        self.port: int = http.server_port
        """Where it listens."""

    @property
    def url(self) -> str:
        """What Prometheus is to scrape."""
        return f"http://{HOST}:{self.port}/metrics"

    def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._forked:
            return
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        _open.discard(self)

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(source: Source, port: int = 0) -> Server:
    """Serve the metrics of a stream or a dataset to Prometheus, from a thread of its own.

    Only programs of this machine can connect; for others, let a Prometheus agent here pass them on.

    Args:
        source: A BlenderStream, a `sync()` one, a dataset, or one pass of them. Of a dataset whose items are made by
            workers of a DataLoader, the training process knows no metrics: let `worker_init_fn` serve them there.
        port: Where to listen. 0: any free port, which the returned object knows.

    Returns:
        The server, a context manager that closes it.

    Raises:
        ConfigError: The port is wrong or taken.
        ModuleNotFoundError: prometheus-client is not installed.
    """
    check_whole("port", port, 0)
    if port > 65535:
        raise ConfigError(f"port must be at most 65535; got {port}")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ModuleNotFoundError(
            f'metrics need prometheus-client ({error}); type: pip install "asyncblend[metrics]"', name=error.name
        ) from None
    registry = CollectorRegistry()
    registry.register(_Collector(source))
    try:
        http, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on port {port} of {HOST}: {error.strerror}; choose another port, or 0 for a free one"
        ) from None
    return Server(http, thread)


class _Collector:
    """Makes metrics of statistics whenever they are asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> list[Metric]:
        """Return nothing: else the registry would collect, to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment. There are none before a dataset is iterated."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily

        stats = self._source.stats()
        if stats is None:
            return
        for name, about in _COUNTERS.items():
            if (value := getattr(stats, name, None)) is not None:
                yield CounterMetricFamily(f"asyncblend_{name}", about, value)
        for name, about in _GAUGES.items():
            if (value := getattr(stats, name, None)) is not None:
                yield GaugeMetricFamily(f"asyncblend_{name}", about, value)
        for name, about in _SPREADS.items():
            if (value := getattr(stats, name, None)) is not None:
                spread = GaugeMetricFamily(f"asyncblend_{name}", f"{about} Of the latest minute.", labels=["of"])
                for key, seconds in value._asdict().items():
                    spread.add_metric([key], seconds)
                yield spread
        if isinstance(stats, StreamStats):
            for name, (field, about) in _OF_INSTANCES.items():
                yield _by_instance(
                    CounterMetricFamily(f"asyncblend_{name}", about, labels=["instance"]), getattr(stats, field)
                )
            states = {number: {one: one == state for one in STATES} for number, state in stats.state.items()}
            about = "What the instance does."
            yield _by_instance(StateSetMetricFamily("asyncblend_state", about, labels=["instance"]), states)


def _by_instance(family: Any, values: Mapping[int, Any]) -> Metric:
    for number, value in values.items():
        family.add_metric([str(number)], value)
    metric: Metric = family
    return metric


def _close_copies() -> None:
    """In a forked process, which serves nothing: close the sockets, or the ports stay taken for as long as it lives."""
    for server in _open:
        server._forked = True
        server._http.socket.close()
    _open.clear()


_open: set[Server] = set()  # each is served until it is closed, also where nobody has kept it
os.register_at_fork(after_in_child=_close_copies)
