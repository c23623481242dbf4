"""Other host programs with Blenders of their own: one is killed, another has too few descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil

import asyncblend as ab
from asyncblend.aio import finish

from .processes import blenders, is_running

__all__ = ["DESCRIPTORS", "Hosts"]

_ROOT = Path(__file__).parents[2]
_LENGTH = 20  # frames of a host with few descriptors
DESCRIPTORS = (24, 128)
"""Limits of open files, from what is enough for Python to what is enough for a small stream."""


class Hosts:
    """Starts one program after another, and finds what is wrong with what becomes of it.

    Args:
        config: Options of the stream that the programs' own are like.
        folder: Gets a folder for temporary files for each of them, which stays if the program leaves something in it.
        patience: Seconds for a program to begin, to finish, or to be gone.
    """

    def __init__(self, config: ab.StreamConfig, folder: Path, patience: float) -> None:
        self.folder = folder
        self.gone: list[float] = []
        """Seconds from the SIGKILL of a host until none of its Blenders and nothing in its folder was left."""
        self.refused = self.served = 0
        """Hosts with few descriptors that refused to begin, and that got all their frames."""
        self.problems: list[str] = []
        self._config, self._patience = config, patience
        self._numbers = itertools.count()

    async def kill(self, rng: random.Random, killed: Callable[[], None]) -> None:
        """Kill a host while one of its Blenders is stopped, and wait until all of them and its folder are gone."""
        async with self._running("a killed host", [], instances=2) as (host, temporary):
            assert host.stdout is not None
            if not await host.stdout.readline():
                raise _Wrong(f"no frame came: {await _end(host)}")
            await asyncio.sleep(rng.uniform(0, 0.5))  # its other Blender may be starting, or serve
            own = [blender.process for blender in blenders(host.pid)]
            if not own:
                raise _Wrong("it has frames and no Blender")
            rng.choice(own).suspend()
            host.kill()
            killed()
            began = time.monotonic()
            while any(map(is_running, own)) or any(temporary.iterdir()):
                if time.monotonic() > began + self._patience:
                    alive, folders = sum(map(is_running, own)), sorted(map(str, temporary.iterdir()))
                    raise _Wrong(f"{self._patience:g} s later {alive} of its Blenders and {folders} are left")
                await asyncio.sleep(0.02)
            self.gone.append(time.monotonic() - began)

    async def starve(self, rng: random.Random) -> None:
        """Start a host with few descriptors. It must refuse to begin, or get all its frames."""
        number, soft_only, instances = rng.randint(*DESCRIPTORS), rng.random() < 0.5, rng.randint(1, 2)
        about = f"a host with {number} descriptors{', or more if it asks,' if soft_only else ''}"
        limited = ["/bin/sh", "-c", f'ulimit {"-S " if soft_only else ""}-n {number} && exec "$@"', "sh"]
        async with self._running(about, limited, instances=instances, length=_LENGTH) as (host, temporary):
            out, err = await host.communicate()
            if host.returncode == 0 and sorted(map(int, out.split())) == list(range(_LENGTH)):
                self.served += 1
            elif soft_only or not err.startswith(f"ConfigError: instances={instances} needs about".encode()):
                raise _Wrong(f"it ended with status {host.returncode}: {out[-200:]!r} {err[-1000:]!r}")
            elif _logs(temporary).exists():
                raise _Wrong("it launched a Blender before it refused")
            else:
                self.refused += 1

    @contextlib.asynccontextmanager
    async def _running(
        self, about: str, limited: list[str], *, instances: int, length: int | None = None
    ) -> AsyncIterator[tuple[Process, Path]]:
        """Run a host with a folder for temporary files. What goes wrong in the body becomes a problem."""
        temporary = self.folder / str(next(self._numbers)) / "tmp"
        temporary.mkdir(parents=True)
        options = {
            "script": os.fspath(self._config.script),
            "blender": self._config.blender and os.fspath(self._config.blender),
            "seed": self._config.seed,
            "logs": str(_logs(temporary)),
            "instances": instances,
            "length": length,
        }
        host = await asyncio.create_subprocess_exec(
            *(*limited, sys.executable, "-m", "benchmarks.soak.program", json.dumps(options)),
            cwd=_ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            async with asyncio.timeout(2 * self._patience):
                yield host, temporary
        except (TimeoutError, _Wrong, psutil.Error) as error:
            self.problems.append(f"{about}: {str(error) or f'not done after {2 * self._patience:g} s'}")
        finally:
            await finish(_end(host))
        if not any(temporary.iterdir()):
            shutil.rmtree(temporary.parent)


class _Wrong(Exception):
    """A host did what it must not."""


async def _end(host: Process) -> str:
    """End a host, and return the end of what it wrote."""
    with contextlib.suppress(ProcessLookupError):
        host.kill()
    out, err = await host.communicate()
    return f"{out[-200:]!r} {err[-1000:]!r}"


def _logs(temporary: Path) -> Path:
    """Return the folder for the logs of a host's Blenders, which is made when the first one is launched."""
    return temporary.with_name("logs")
