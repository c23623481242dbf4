"""Blenders that are launched without asyncblend and told what to render. benchmarks/inside/told.py is their side."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from asyncblend.fleet.discovery import find_blender
from asyncblend.fleet.install.packages import cache_folder
from asyncblend.fleet.spawn import VISIBLE

__all__ = ["INSIDE", "PlainBlenders", "Scene"]

INSIDE = Path(__file__).parents[1] / "inside"
"""Folder of the scripts that run inside Blender."""

Scene = tuple[int, int, str] | tuple[int, int, str, str]
"""Width, height, engine and, if it is not Blender's own, view transform."""

_PATIENCE = 120.0  # seconds to wait for an answer


class PlainBlenders:
    """Several Blenders that run a script of benchmarks/inside. It is a context manager, and leaving it ends them.

    If Blender's Python lacks numpy or pyzmq, asyncblend must have installed them before.

    Args:
        script: One of benchmarks/inside.
        blender: What to launch, as the stream's option has it.
        count: How many.
        folder: For their logs and files.
        gpu: The only GPU that they see. None: whatever there is.
        about: What the script finds in `told.about` beside that.
    """

    def __init__(
        self, script: str, blender: str | None, count: int, folder: Path, *, gpu: str | None = None, **about: Any
    ) -> None:
        found = find_blender(blender)
        command = [found.path, str(INSIDE / script)]
        if found.kind == "executable":
            command = [found.path, "--background", "--factory-startup", "--python", command[1], "--"]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[IO[bytes]] = []
        self._folder = folder
        for number in range(count):
            own, its = os.pipe()
            own_about = {"id": number, "folder": str(folder), "packages": str(cache_folder()), "pipe": its}
            own_about |= {"root": str(INSIDE.parents[1]), "gpu": gpu, **about}
            with open(folder / f"{script}-{number}.log", "wb") as log:
                process = subprocess.Popen(
                    [*command, json.dumps(own_about)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[its],
                    cwd=folder,
                    env=_environment(found.path, gpu),
                )
            os.close(its)
            self._processes.append(process)
            self._pipes.append(os.fdopen(own, "rb", 0))

    def __enter__(self) -> PlainBlenders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()  # it may be stuck writing to a socket that nobody reads
            process.wait()
        for pipe in self._pipes:
            pipe.close()

    def go(self, scene: Scene) -> None:
        """Begin to render, and return when every Blender has rendered one frame."""
        self.tell(scene=scene)
        self.answers()

    def stop(self) -> list[dict[str, Any]]:
        """Stop rendering. Return the "frames" that each Blender has rendered since its first one, and the "seconds"."""
        self.tell(stop=True)
        return self.answers()

    def tell(self, **words: Any) -> None:
        """Send a message to every Blender."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(words).encode() + b"\n")
            process.stdin.flush()

    def answers(self) -> list[dict[str, Any]]:
        """Return the next answer of every Blender."""
        return [self._answer(number) for number in range(len(self._processes))]

    def _answer(self, number: int) -> dict[str, Any]:
        pipe, line, end = self._pipes[number], b"", time.monotonic() + _PATIENCE
        while not line.endswith(b"\n"):
            there, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            more = pipe.read(1) if there else b""
            if not more:
                logs = sorted(self._folder.glob(f"*-{number}.log"))
                tail = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
                raise RuntimeError(f"a Blender {'died' if there else 'does not answer'}; its log:\n{tail}")
            line += more
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment(path: str, gpu: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    if gpu is not None:
        environment.update(dict.fromkeys(VISIBLE, gpu))
    if path != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
    return environment
