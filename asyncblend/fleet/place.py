"""Place: where the Blenders of a run are: on this machine, or wherever a cluster puts them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple, Protocol

from ..config import StreamConfig
from ..errors import ConfigError
from ..wire.launch import Host, Life
from ..wire.line import Line
from ..wire.ring import Ring
from .discovery import find_blender
from .fleet import Child
from .preflight import check_loopback, check_window, working_directory
from .spawn import Spawner
from .workspace import Workspace


class Network(NamedTuple):
    """How Blenders on other machines reach the host."""

    address: str
    """One of this machine's own, by which the others know it."""
    port: int | None
    """None: a free one."""
    silence: float
    """Seconds without any sign of the host, after which a Blender ends itself."""
    mixed_blenders: bool = False
    """Whether they may be of several versions."""


class Meeting(Protocol):
    """Where Blenders find the host: Hub."""

    @property
    def endpoint(self) -> str: ...
    def host_of(self, life: Life) -> Host: ...


class Launcher(Protocol):
    """Launches Blenders; `Spawner` says what each call means."""

    async def check(self) -> None: ...
    async def __call__(self, life: Life) -> Child: ...


class Place(Protocol):
    """Where Blenders are launched. Making one checks what can be checked before anything starts."""

    network: Network | None
    """How they reach the host from there. None: they are on this machine."""

    def spawner(
        self, hub: Meeting, workspace: Workspace, rings: MutableMapping[Life, Ring], lines: MutableMapping[Life, Line]
    ) -> Launcher:
        """Return what launches the Blender of a life. `Spawner` says what the arguments mean."""


class Here:
    """This machine.

    Args:
        config: The options.
        first: Number of the first instance.

    Raises:
        ConfigError: Script or scene do not exist, the working directory is gone, or Blender cannot open the window that
            is wanted.
        BlenderNotFound: There is no Blender.
    """

    network: Network | None = None

    def __init__(self, config: StreamConfig, first: int = 0) -> None:
        self._config, self._first, self._cwd = config, first, working_directory()
        _check_file("script", config.script)
        if config.scene is not None:
            _check_file("scene", config.scene)
        self._blender = find_blender(config.blender)
        if config.show:
            check_window(self._blender)

    def spawner(
        self, hub: Meeting, workspace: Workspace, rings: MutableMapping[Life, Ring], lines: MutableMapping[Life, Line]
    ) -> Spawner:
        """Return what launches the Blender of a life.

        Raises:
            ConfigError: They would reach the hub over the loopback interface, which cannot be used.
        """
        check_loopback(hub.endpoint)
        return Spawner(
            self._config, self._blender, workspace, hub.host_of, rings, lines, cwd=self._cwd, first=self._first
        )


def _check_file(name: str, path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        what = (
            "is a folder" if Path(path).is_dir() else "is no regular file" if Path(path).exists() else "does not exist"
        )
        raise ConfigError(f"{name} {os.fspath(path)!r} {what} (looked in {Path.cwd()})")
