"""Keeper: an actor of Ray that has one Blender, on whichever node Ray chose, and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import ray

from ..config import PathLike, StreamConfig
from ..fleet.place import Here
from ..fleet.spawn import BlenderProcess
from ..fleet.workspace import Workspace
from ..wire.launch import Host, Life, Report
from .shipping import Shipment


class Ended(NamedTuple):
    """How a Blender ended."""

    status: int
    """The exit status; -N says that signal N killed it."""
    tail: str
    """The last lines of what it wrote."""
    report: Report
    log: bytes = b""
    """What `config.logs` keeps of this life."""


class Keeper:
    """Launches one Blender and waits for its end. All calls come from the host, and several run at once.

    When the host, the node or this actor dies, its pipe ends, so the Blender dies, and its folder is removed.
    """

    def __init__(self) -> None:
        self._resources = contextlib.ExitStack()
        self._child: BlenderProcess | None = None
        self._installing: asyncio.Task[None] | None = None

    async def launch(self, shipment: Shipment, life: Life, host: Host, first: int) -> str:
        """Launch the Blender of a life, and return the id of the node.

        Args:
            shipment: The config, and the files that it names.
            life: Which one.
            host: Where it finds its host.
            first: Number of the first instance.

        Raises:
            ConfigError, BlenderNotFound, OSError: As entering a BlenderStream on this node does.
        """
        context = ray.get_runtime_context()
        workspace = self._resources.enter_context(Workspace())
        config = shipment.unpacked(workspace.folder)
        if gpus := context.get_accelerator_ids().get("GPU"):
            config = dataclasses.replace(config, gpus=[",".join(gpus)])  # it renders on all that it can see
        self._logs = None if config.logs is None else workspace.folder / "logs"
        place = Here(dataclasses.replace(config, logs=self._logs), first)
        spawn = place.spawner(_Told(host), workspace, {}, {})
        await spawn.check()
        self._child = await spawn(life)
        return str(context.get_node_id())

    async def ended(self) -> Ended:
        """Return how the Blender ended, when nothing is left of it."""
        assert self._child is not None, "launch comes first"
        status = await self._child.wait()
        kept = b"" if self._logs is None else b"".join(file.read_bytes() for file in self._logs.glob("*.log"))
        ended = Ended(status, self._child.log.tail(), self._child.report(), kept)
        await self._child.stop(lambda: None, 0)
        return ended

    async def kill(self) -> None:
        """Kill the Blender, and all that it started."""
        if self._child is not None:
            self._child.kill()

    async def install(self, report: Report) -> None:
        """Install what its Python lacks on this node."""
        assert self._child is not None, "launch comes first"
        self._installing = asyncio.ensure_future(self._child.install(report))
        await self._installing

    async def close(self) -> None:
        """Remove what is left on this node."""
        if self._installing is not None:
            self._installing.cancel()
            await asyncio.wait([self._installing])
        if self._child is not None:
            await self._child.stop(lambda: None, 0)
        self._resources.close()


class _Told(NamedTuple):
    """The host's hub, as far as this node knows it."""

    host: Host

    @property
    def endpoint(self) -> str:
        return self.host.endpoint

    def host_of(self, _: Life) -> Host:
        return self.host


def packed(config: StreamConfig, threads: int | None, files: Sequence[PathLike]) -> Shipment:
    """Return what a Keeper needs of a config: without what only the host needs, which may not even be pickled."""
    return Shipment.packed(dataclasses.replace(config, params=None, cluster=None, threads=threads), files)
