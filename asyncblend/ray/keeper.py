"""Keeper: an actor of Ray that has one Blender, on whichever node Ray chose, and ends with it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ray

from ..config import PathLike, StreamConfig
from ..errors import InstanceError
from ..fleet.ending import still_missing
from ..fleet.install import packages
from ..fleet.place import Here
from ..fleet.spawn import BlenderProcess
from ..fleet.workspace import Workspace
from ..wire.launch import Host, Life, Report
from .shipping import Shipment

_FATAL = Report(script_failed=True)  # another life would do no better


class Ended(NamedTuple):
    """How a Blender ended."""

    status: int
    """The exit status; -N says that signal N killed it."""
    tail: str
    """The last lines of what it wrote."""
    report: Report
    log: bytes
    """What `config.logs` keeps. Empty if that is not given."""


class Keeper:
    """Launches one Blender and waits for its end. All calls come from the host, and several run at once.

    When the host, the node or this actor dies, its pipe ends, so the Blender dies, and its folder is removed.

    Args:
        shipment: The config, and the files that it names.
        first: Number of the first instance.
    """

    def __init__(self, shipment: Shipment, first: int) -> None:
        self._resources = contextlib.ExitStack()
        self._workspace = self._resources.enter_context(Workspace())
        config = shipment.unpacked(self._workspace.folder)
        if gpus := ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            config = dataclasses.replace(config, gpus=gpus)
        self._logs = None if config.logs is None else self._workspace.folder / "logs"
        self._config, self._first = dataclasses.replace(config, logs=self._logs), first
        self._child: BlenderProcess | None = None
        self._killed = False

    async def launch(self, life: Life, host: Host) -> str:
        """Launch the Blender of a life, and return the id of the node.

        Raises:
            ConfigError, BlenderNotFound, OSError: As entering a BlenderStream on this node does.
        """
        self._life, self._host = life, host
        self._spawn = Here(self._config, self._first).spawner(self, self._workspace, {}, {})
        await self._spawn.check()
        self._child = await self._spawn(life)
        return str(ray.get_runtime_context().get_node_id())

    @property
    def endpoint(self) -> str:
        """The host's."""
        return self._host.endpoint

    def host_of(self, _: Life) -> Host:
        """Return where the Blender finds its host."""
        return self._host

    async def ended(self) -> Ended:
        """Return how the Blender ended, when nothing is left of it. One that lacks packages gets them, and starts again."""
        ended = await self._end()
        if ended.report.packages is None or self._killed:
            return ended
        try:
            await packages.install(list(ended.report.packages), ended.report.python, Path(ended.report.folder))
        except InstanceError as error:
            return ended._replace(tail=str(error), report=_FATAL)
        self._child = await self._spawn(self._life)
        ended = await self._end()
        if ended.report.packages is None:
            return ended
        missing = still_missing(self._life.instance, ended.report, ended.tail)
        return ended._replace(tail=str(missing), report=_FATAL)

    async def _end(self) -> Ended:
        assert self._child is not None, "launch comes first"
        status = await self._child.wait()
        ended = Ended(status, self._child.log.tail(), self._child.report(), self._kept_log())
        await self._child.stop(lambda: None, 0)
        return ended

    async def kill(self) -> None:
        """Kill the Blender, and all that it started."""
        self._killed = True
        if self._child is not None:
            self._child.kill()

    async def close(self) -> None:
        """Remove what is left on this node."""
        if self._child is not None:
            await self._child.stop(lambda: None, 0)
        self._resources.close()

    def _kept_log(self) -> bytes:
        if self._logs is None:
            return b""
        return b"".join(file.read_bytes() for file in self._logs.glob("*.log"))


def packed(config: StreamConfig, threads: int | None, files: Sequence[PathLike]) -> Shipment:
    """Return what a Keeper needs of a config: without what only the host needs, which may not even be pickled."""
    own = dataclasses.replace(config, params=None, cluster=None, threads=threads)
    return Shipment.packed(own, files)
