"""What a host and the Blender that it starts agree on before there is a socket. Both sides."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError

BOOTSTRAP = Path(__file__).parents[1] / "blender" / "serving" / "bootstrap.py"
"""The script that every Blender is started with."""

RUN = "ASYNCBLEND_RUN"
"""Environment variable that marks each Blender, and whatever it starts, with the name of the run's folder."""

_VARIABLE = "ASYNCBLEND_LAUNCH"


class Life(NamedTuple):
    """One life of an instance: what holds a lease."""

    instance: int
    epoch: int
    """Counts the instance's launches, from 0."""


@dataclass(frozen=True)
class Launch:
    """All that one Blender is told at its start. It travels in the environment, because it holds a secret."""

    endpoint: str
    """ZeroMQ endpoint of the host."""
    token: str
    """The run's secret."""
    instance: int
    epoch: int
    beat: float
    """Seconds between heartbeats."""
    kind: str
    """"module" (bpy in a Python), "executable", or "fake": one without bpy."""
    script: str
    script_args: list[str]
    scene: str | None
    factory_startup: bool
    threads: int | None
    """To render with. None: as the scene has it."""
    gpu: bool
    """Render on the one GPU that can be seen."""
    lifeline: int | None
    """Inherited descriptor that reads as ended when the host is gone. None where descriptors do not inherit."""
    ring: int | None
    """Inherited descriptor of the memory that is shared with the host. None: there is none."""
    scratch: str
    """The run's private folder, to be removed by whoever survives a killed host."""
    packages: str
    """Folder with one folder of packages per kind of Python, for what Blender's Python lacks."""
    report: str
    """File for a `Report`."""

    def __post_init__(self) -> None:
        _check_endpoint(self.endpoint)

    def put(self, environment: MutableMapping[str, str]) -> None:
        """Write this into a child's environment."""
        environment[_VARIABLE] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Launch:
        """Read it, and remove it: what the script starts has no need of the secret."""
        return cls(**json.loads(environment.pop(_VARIABLE)))


@dataclass(frozen=True)
class Report:
    """What a Blender that ends before it serves leaves for its host, where it knows why."""

    script_failed: bool = False
    """The scene could not be opened, or the script raised, exited or ended without serving."""
    packages: Sequence[str] | None = None
    """What its Python lacks; None: nothing."""
    python: str = ""
    """"major.minor" of that Python."""
    folder: str = ""
    """Where it will look for those packages."""

    def write(self, path: str) -> None:
        """Leave this for the host."""
        with open(path, "w") as file:
            json.dump(dataclasses.asdict(self), file)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Report:
        """What was left; an empty report if nothing was, or nothing that can be read."""
        try:
            with open(path) as file:
                return cls(**json.load(file))
        except (OSError, ValueError, TypeError):
            return cls()


def _check_endpoint(endpoint: str) -> None:
    """Frames and the token travel in the clear: they must not leave this machine."""
    where = urlsplit(endpoint)
    if where.scheme == "ipc":
        return
    try:
        local = where.scheme == "tcp" and ipaddress.ip_address(where.hostname or "").is_loopback
    except ValueError:
        local = where.hostname == "localhost"
    if not local:
        raise ConfigError(
            f"the endpoint {endpoint!r} can be reached from other machines, and messages are not encrypted; "
            f"use ipc://, or tcp:// on a loopback address such as 127.0.0.1"
        )
