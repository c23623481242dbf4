"""Launch and Report: what a host and a Blender tell each other without a socket. Used by both sides."""

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
"""The Python file that every Blender is started with."""

RUN = "ASYNCBLEND_RUN"
"""Environment variable with the name of the run's folder. It marks every Blender and all processes that it starts."""

_VARIABLE = "ASYNCBLEND_LAUNCH"


class Life(NamedTuple):
    """One life of an instance, from its launch to its end."""

    instance: int
    epoch: int
    """Number of this launch of the instance, from 0 on."""


class Keys(NamedTuple):
    """What a life on another machine encrypts its connections with: CURVE's keys, as 40 characters each."""

    server: str
    """The host's public key."""
    public: str
    secret: str


class Host(NamedTuple):
    """Where a life finds its host, and how it shows who it is. `Launch` says what each part means."""

    endpoint: str
    token: str
    keys: Keys | None = None
    silence: float | None = None


class Lifeline(NamedTuple):
    """The read end of the host's pipe, as a descriptor that a Blender inherits, and which pipe it is."""

    descriptor: int
    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> Lifeline:
        """Describe an open pipe."""
        about = os.fstat(descriptor)
        return cls(descriptor, about.st_dev, about.st_ino)

    def holds(self) -> bool:
        """Return whether the descriptor is that pipe. Whoever closes descriptors may leave its number to another file."""
        try:
            return Lifeline.of(self.descriptor) == self
        except OSError:
            return False


@dataclass(frozen=True)
class Launch:
    """What one Blender is told at its start. It travels in the environment, because it has a secret."""

    endpoint: str
    """ZeroMQ endpoint of the host."""
    token: str
    """The run's secret, which each HELLO and heartbeat must have."""
    instance: int
    epoch: int
    beat: float
    """Seconds between heartbeats."""
    kind: str
    """"module" (bpy in a Python process), "executable", or "fake" (a process without bpy)."""
    script: str
    script_args: list[str]
    scene: str | None
    factory_startup: bool
    autoexec: bool
    """Whether Blender may execute the Python in .blend files."""
    threads: int | None
    """Number of threads to render with. None: as the scene has it."""
    gpu: bool
    """Whether to render on the GPU. The process can see only one."""
    show: bool
    """Whether Blender has a window, and serves it between two samples."""
    lifeline: Lifeline | None
    """A pipe that reads as ended when the host is gone. None: there is none."""
    ring: int | None
    """Inherited descriptor of the memory that is shared with the host (`ring`). None: there is none."""
    line: int | None
    """Inherited descriptor of Blender's end of a `line`. None: there is none."""
    packages: str
    """Folder in which each kind of Python has a folder with packages that Blender's Python may lack."""
    report: str
    """Path of the file for a `Report`."""
    keys: Keys | None = None
    """What connections are encrypted with. None: they are not, and the host is on this machine."""
    silence: float | None = None
    """Seconds without any sign of the host, after which this Blender ends. None: the lifeline tells of the host's end."""

    def __post_init__(self) -> None:
        if self.keys is None:
            _check_endpoint(self.endpoint)

    def put(self, environment: MutableMapping[str, str]) -> None:
        """Write this into the environment of a child process."""
        environment[_VARIABLE] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Launch:
        """Read this from the environment, and remove it, so that processes which the script starts do not get the secret."""
        told = json.loads(environment.pop(_VARIABLE))
        told["lifeline"] = told["lifeline"] and Lifeline(*told["lifeline"])
        told["keys"] = told["keys"] and Keys(*told["keys"])
        return cls(**told)


@dataclass(frozen=True)
class Report:
    """Why a Blender ended by itself. It leaves this in a file for its host."""

    script_failed: bool = False
    """Whether the scene could not be opened, or the script raised, exited, or ended without calling serve."""
    lost: str = ""
    """Why nobody knows how it ended: its machine was lost. The host writes this itself."""
    window_closed: bool = False
    """Whether the user closed its window."""
    packages: Sequence[str] | None = None
    """Names of the packages that its Python lacks. None: it lacks nothing."""
    python: str = ""
    """Version of that Python, as "major.minor"."""
    folder: str = ""
    """Folder in which it will look for those packages."""

    def write(self, path: str) -> None:
        """Write this to a file."""
        with open(path, "w") as file:
            json.dump(dataclasses.asdict(self), file)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report. Return an empty one if there is no file, or none that can be read."""
        try:
            with open(path) as file:
                return cls(**json.load(file))
        except (OSError, ValueError, TypeError):
            return cls()


def _check_endpoint(endpoint: str) -> None:
    """Raise ConfigError if the endpoint can be reached from other machines, because messages are not encrypted."""
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
