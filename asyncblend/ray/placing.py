"""Cluster: has Ray place the Blenders of a stream on the nodes of a cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ray
import ray.util
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..aio import apart
from ..checks import check_path, check_whole, options_checked
from ..config import PathLike, StreamConfig
from ..errors import ConfigError
from ..fleet.place import Meeting, Network
from ..fleet.workspace import Workspace
from ..warm.connection import connect
from ..warm.session import Session
from ..wire.launch import Life
from ..wire.line import Line
from ..wire.ring import Ring
from .actors import ENVIRONMENT, check_amount
from .keeper import Keeper, packed
from .nodes import describe_nodes, room
from .remote import RemoteBlender

_log = logging.getLogger("asyncblend")
_TELL = 10.0  # seconds between two messages that say what is being waited for
_AVOIDED = 90.0  # seconds; by then Ray itself has noticed if a node that did not answer is dead
_LAST_PORT = 65535
_NODE = "ray.io/node-id"
_WILDCARDS = ("", "*", "0.0.0.0", "::")


@options_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines that Ray knows, for the Blenders of a stream:

        stream = BlenderStream(script="cube.py", instances=8, cluster=asyncblend.ray.Cluster(num_cpus=2))

    This program stays the host: it leases, and gets the frames over encrypted connections. Ray says on which node a
    Blender runs, and starts it on another one when that is lost. The samples are the same as on one machine.

    Raises:
        ConfigError: An option is wrong.
    """

    address: str | None = None
    """Where the cluster is, such as "10.0.0.5:6379". None: as `asyncblend.ray.connect` finds it."""

    num_cpus: float = 1
    """Ray's CPUs of each Blender. With `threads="auto"` it renders with as many threads."""

    num_gpus: float = 0
    """Ray's GPUs of each Blender, which renders on them."""

    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Further resources of Ray's that each Blender needs."""

    strategy: Literal["DEFAULT", "SPREAD"] = "DEFAULT"
    """How Ray chooses among nodes: those that are in use already first, or all alike."""

    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Labels that a node must have, as Ray's `label_selector`."""

    host: str | None = None
    """The address of this machine by which the nodes reach it. None: the one that Ray knows it by."""

    files: Sequence[PathLike] = ()
    """Files and folders that the script reads. They travel to the nodes, as the script, what it imports from its own
    folder, and the scene do."""

    port: int | None = None
    """The port on this machine that they connect to, for a firewall. None: a free one for each run."""

    mixed_blenders: bool = False
    """Whether nodes may have different versions of Blender, whose pixels differ."""

    def __post_init__(self) -> None:
        _check_names("resources", self.resources)
        for name in self.resources:
            if name in ("CPU", "GPU"):
                raise ConfigError(f"resources must not have {name!r}; give num_{name.lower()}s instead")
        needs = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **self.resources}
        for name, number in needs.items():
            check_amount(name, number)
            if number > 1 and number % 1:
                raise ConfigError(
                    f"{name} must be a whole number where it is more than 1, as Ray wants; got {number!r}"
                )
        if not any(needs.values()):
            # Ray would place what needs nothing by way of any node, also of one that is cut off.
            raise ConfigError("a Blender must need something of its node: give num_cpus, num_gpus or resources")
        _check_names("labels", self.labels)
        for name, wanted in self.labels.items():
            if not isinstance(wanted, str) or name == _NODE:
                raise ConfigError(
                    f"labels must be strings by their names, and {_NODE!r} is not among them; got {self.labels!r}"
                )
        if isinstance(self.files, str) or not isinstance(self.files, Sequence):
            raise ConfigError(f"files must be a list of paths; got {self.files!r}")
        for file in self.files:
            check_path("each of files", file)
        if self.address is not None and (not isinstance(self.address, str) or not self.address):
            raise ConfigError(f"address must be that of a cluster, such as '10.0.0.5:6379'; got {self.address!r}")
        if not isinstance(self.mixed_blenders, bool):
            raise ConfigError(f"mixed_blenders must be True or False; got {self.mixed_blenders!r}")
        if self.host is not None and (not isinstance(self.host, str) or self.host in _WILDCARDS):
            raise ConfigError(f"host must be the one address by which nodes reach this machine; got {self.host!r}")
        if self.port is not None:
            check_whole("port", self.port, 1)
            if self.port > _LAST_PORT:
                raise ConfigError(f"port must be at most {_LAST_PORT}; got {self.port}")
        if self.strategy not in ("DEFAULT", "SPREAD"):
            raise ConfigError(f"strategy must be 'DEFAULT' or 'SPREAD'; got {self.strategy!r}")

    @property
    def each(self) -> dict[str, float]:
        """What one Blender needs, as Ray's resources."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: value for name, value in needs.items() if value}

    def place(self, config: StreamConfig, first: int) -> Placement:
        """Connect to the cluster, and read the files that travel. For BlenderStream.

        Raises:
            ConfigError: There is no cluster, or a file cannot be read.
        """
        connect(self.address)
        return Placement(self, config, first)


def _check_names(option: str, given: object) -> None:
    """Check an option that has values by their names.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
        raise ConfigError(f"{option} must be a mapping with names; got {given!r}")


class Placement:
    """A cluster as a place for one run. Called with a life, it has Ray launch its Blender."""

    def __init__(self, cluster: Cluster, config: StreamConfig, first: int) -> None:
        self._cluster, self._first = cluster, first
        self._session = Session()
        threads = max(1, int(cluster.num_cpus)) if config.threads == "auto" else config.threads_each()
        self._shipment = ray.put(packed(config, threads, cluster.files))
        self._logs = None if config.logs is None else Path(os.path.abspath(config.logs))
        self._avoided: dict[str, float] = {}  # nodes that did not answer, and until when
        self._silences = 0  # how often a node did not answer
        self._waiting: dict[Life, float] = {}  # lives without a node, and since when
        self._told = 0.0  # when it was said last what is being waited for
        address = cluster.host or ray.util.get_node_ip_address()
        self.network: Network | None = Network(address, cluster.port, config.timeouts.beat, cluster.mixed_blenders)

    def spawner(
        self, hub: Meeting, workspace: Workspace, rings: MutableMapping[Life, Ring], lines: MutableMapping[Life, Line]
    ) -> Placement:
        """Return itself: nothing is shared with a Blender on another machine."""
        self._hub = hub
        return self

    async def check(self) -> None:
        """Nothing: each node looks for its Blender."""

    async def __call__(self, life: Life) -> RemoteBlender:
        """Launch the Blender of a life, on the node that Ray chooses. Wait for a node, and say so, if there is none.

        Raises:
            ConfigError, BlenderNotFound, OSError: As on this machine; ConnectionError if the node was lost.
        """
        self._waiting[life] = time.monotonic()
        try:
            actor, node = await self._launched(life)
        finally:
            del self._waiting[life]
        _log.info("Blender %d runs on the node %s", life.instance, node)
        log = None if self._logs is None else self._logs / f"instance-{life.instance}.log"
        return RemoteBlender(self._session, actor, node, lambda: self._avoid(node), log)

    async def _launched(self, life: Life) -> tuple[Any, str]:
        """Return the keeper of a life, and its node, when the Blender is launched."""
        while True:
            silences = self._silences
            actor = await self._keeper()
            try:
                # With new keys each time: there may be another Blender of this life, on a node that does not answer.
                host = self._hub.host_of(life)
                launched = asyncio.wrap_future(actor.launch.remote(self._shipment, life, host, self._first).future())
                try:
                    while not launched.done() and silences == self._silences:
                        await asyncio.wait([launched], timeout=_TELL)
                        await self._tell()
                    if launched.done():
                        return actor, launched.result()
                finally:
                    launched.cancel()  # unless it is done
            except BaseException as error:
                self._session.end(actor)
                if isinstance(error, RayError):
                    raise _plain(error) from None
                raise
            self._session.end(actor)  # it may be meant for the node that was lost just now

    async def _keeper(self) -> Any:
        """Ask Ray for a keeper, and return it. It may have to wait for a node."""
        if not self._session.lasts:
            raise ConfigError("this program has left Ray, while a stream has Blenders of the cluster: close it before")
        starting = apart(self._start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, starting: asyncio.Future[Any]) -> None:
        if starting.exception() is None:
            self._session.end(starting.result())

    def _start(self) -> Any:
        needs, labels, strategy = self._cluster.each, dict(self._cluster.labels), self._cluster.strategy
        avoided = self._present_avoided()
        if avoided and room(needs, without=avoided):
            # Ray learns only after a minute that a node is cut off. SPREAD would choose it in spite of the label.
            labels[_NODE], strategy = f"!in({','.join(avoided)})", "DEFAULT"
        return (
            _kind()
            .options(
                num_cpus=self._cluster.num_cpus,
                num_gpus=self._cluster.num_gpus,
                resources=dict(self._cluster.resources),
                label_selector=labels or None,
                scheduling_strategy=strategy,
                runtime_env=ENVIRONMENT,
            )
            .remote()
        )

    def _avoid(self, node: str) -> None:
        if node not in self._present_avoided():
            _log.warning("The node %s does not answer; Blenders start on others for %g s", node, _AVOIDED)
            self._silences += 1
        self._avoided[node] = time.monotonic() + _AVOIDED

    def _present_avoided(self) -> list[str]:
        now = time.monotonic()
        return sorted(node for node, until in self._avoided.items() if until > now)

    async def _tell(self) -> None:
        """Say what is wanted and what there is, now and then, if anything has been waited for that long."""
        now = time.monotonic()
        longest = now - min(self._waiting.values())
        if min(longest, now - self._told) < 0.9 * _TELL or not self._session.lasts:  # timers do not meet it exactly
            return
        self._told = now
        needs, avoided = self._cluster.each, self._present_avoided()
        nodes, fit = await apart(lambda: (describe_nodes(needs), room(needs)))
        _log.warning(
            "Waiting for %d x (%s), %.0f s so far; the cluster has nodes: %s%s, with room for %g such Blenders in all. "
            "Ctrl-C gives up.",
            len(self._waiting),
            ", ".join(f"{value:g} {name}" for name, value in needs.items()),
            longest,
            nodes,
            f", {len(avoided)} of them without an answer" if avoided else "",
            fit,
        )


@functools.cache
def _kind() -> Any:
    """Return the actor's class, as Ray knows it: made once, because each is kept in the cluster."""
    return ray.remote(Keeper)


def _plain(error: RayError) -> Exception:
    """Return what an error of Ray's means here."""
    if isinstance(error, RayTaskError):
        return error.cause  # type: ignore[no-any-return]
    text = str(error).strip()
    if isinstance(error, RayActorError) and "creation task" in text:
        return ConfigError(f"a node cannot import asyncblend as it is here; install the same version there: {text}")
    return ConnectionError(f"its node was lost: {text}")
