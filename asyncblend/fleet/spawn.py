"""Spawner: launches one Blender with its command line, environment, folder, shared memory and log."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path

from ..config import StreamConfig
from ..errors import BlenderNotFound
from ..wire.launch import BOOTSTRAP, RUN, Host, Launch, Life, Report
from ..wire.line import Line
from ..wire.ring import Ring
from .discovery import Blender
from .install import packages
from .log import Log
from .process import TEMPORARY, ChildProcess
from .pythons import check
from .workspace import Workspace

_REPORT = "report.json"
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Environment variables that show a process one GPU only."""
_ALLOCATORS = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that every glibc takes
    "MALLOC_TRIM_THRESHOLD_": str((2 << 30) - 1),
    "MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0",
}
"""Have glibc's malloc (the bpy module) and jemalloc (most executables) keep the memory of a frame for the next one.

Otherwise a fast frame spends much of its time on fresh pages from the system. At 640 x 480 with one sample, an image
took 50 instead of 56 ms with glibc and 39 instead of 43 ms with jemalloc; with all labels 74 instead of 95 ms and 56
instead of 77 ms. Peak memory is the same with glibc and a fifth more with jemalloc.
"""
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Have numpy work in the script's own thread.

Otherwise OpenBLAS's threads spin after each product or inverse of a matrix, however small, on the cores that Blender
renders with. At 128 x 96 that was half of all processor time: 13 ms a frame instead of 7.
"""


class BlenderProcess(ChildProcess):
    """A Blender of the fleet, on this machine."""

    machine = ""
    """The name of the machine. This one has none."""

    async def install(self, report: Report) -> None:
        """Install what its Python lacks, where the next life will look for it. Called when this one has ended."""
        await packages.install(list(report.packages or ()), report.python, Path(report.folder))

    def report(self) -> Report:
        """Return what it left for the host."""
        return Report.read(self._folder / _REPORT)


class Spawner:
    """Launches a life's Blender when it is called with the life.

    Args:
        config: The options.
        blender: What to launch.
        workspace: Has the folders of the run.
        host_of: Returns where a life finds its host. With one on another machine nothing is shared.
        rings: Gets the memory that is shared with each life, where there can be any.
        lines: Gets the host's end of each life's line, likewise.
        cwd: The working directory when the run began. Every Blender gets it, also one that starts later.
        first: Number of the first instance.

    Raises (the call):
        BlenderNotFound: Blender cannot be executed.
        OSError: The operating system refused for another reason.
    """

    def __init__(
        self,
        config: StreamConfig,
        blender: Blender,
        workspace: Workspace,
        host_of: Callable[[Life], Host],
        rings: MutableMapping[Life, Ring],
        lines: MutableMapping[Life, Line],
        *,
        cwd: str,
        first: int = 0,
    ) -> None:
        self._config, self._blender, self._workspace, self._host_of = config, blender, workspace, host_of
        self._rings, self._lines, self._cwd, self._first = rings, lines, cwd, first

    async def check(self) -> None:
        """Check that Blender is there to be started, as far as `find_blender` could not. Raises BlenderNotFound."""
        await check(self._blender, self._workspace.folder)

    async def __call__(self, life: Life) -> BlenderProcess:
        folder = self._workspace.life_folder(*life)
        log = self._kept_log(life)
        host = self._host_of(life)
        near = host.keys is None  # on this machine
        ring = Ring.create() if near and self._config.shared_memory else None
        if ring is not None:
            self._rings[life] = ring
        shared = None if ring is None else ring.descriptor
        pair = Line.pair(None if ring is None else ring.hold) if near else None
        line, blenders_end = pair or (None, None)
        if line is not None:
            self._lines[life] = line
        inherited_line = None if blenders_end is None else blenders_end.fileno()
        lifeline = self._workspace.lifeline
        inherited = [one for one in (lifeline and lifeline.descriptor, shared, inherited_line) if one is not None]
        try:
            return await BlenderProcess.start(
                self._command(life),
                self._environment(life, host, folder, shared, inherited_line),
                folder,
                log=log,
                inherit=inherited,
                cwd=self._cwd,
            )
        except OSError as error:
            about = error.filename in (None, self._blender.path)  # not the log's, or the working directory's
            if about and error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
                raise BlenderNotFound(f"cannot execute {self._blender.path}: {error.strerror}") from error
            raise
        finally:
            if blenders_end is not None:
                blenders_end.close()
            if ring is not None:
                ring.close_descriptor()
            ring = line = pair = None  # the traceback of a failed start has this frame, and would keep the memory

    def _command(self, life: Life) -> list[str]:
        # What follows "--" is for people who look at the process list.
        about = ["--", f"instance={life.instance}", os.fspath(self._config.script)]
        if self._blender.kind == "module":
            return [self._blender.path, str(BOOTSTRAP), *about]
        startup = ["--factory-startup"] if self._config.factory_startup else []
        startup.append("--enable-autoexec" if self._config.autoexec else "--disable-autoexec")
        if (threads := self._config.threads_each()) is not None:
            startup += ["--threads", str(threads)]
        if not self._config.show:
            startup.append("--background")
        # The exit code must come before --python to have an effect.
        return [
            self._blender.path, *startup,
            "--python-exit-code", "1", "--python", str(BOOTSTRAP), *about,
        ]  # fmt: skip

    def _environment(
        self, life: Life, host: Host, folder: Path, shared: int | None, line: int | None
    ) -> dict[str, str]:
        config, workspace = self._config, self._workspace
        environment = dict(os.environ)
        if self._blender.path != sys.executable:
            # They are meant for the host's Python; Blender's is another build, or an environment of its own.
            for name in ("PYTHONPATH", "PYTHONHOME"):
                environment.pop(name, None)
        # Blender writes its temporary files and crash reports there: no two instances share a folder.
        environment.update(dict.fromkeys(TEMPORARY, str(folder)))
        for name, value in (_ALLOCATORS | _ONE_THREAD).items():
            environment.setdefault(name, value)
        if (gpu := config.gpu_of(life.instance)) is not None:
            environment.update(dict.fromkeys(VISIBLE, gpu))
        environment[RUN] = workspace.folder.name
        Launch(
            **host._asdict(),
            instance=life.instance,
            epoch=life.epoch,
            beat=min(1.0, config.timeouts.beat / 4),
            kind=self._blender.kind,
            script=os.fspath(config.script),
            script_args=list(config.args_of(life.instance - self._first)),
            scene=None if config.scene is None else os.fspath(config.scene),
            factory_startup=config.factory_startup,
            autoexec=config.autoexec,
            threads=config.threads_each(),
            gpu=gpu is not None,
            show=config.show,
            lifeline=workspace.lifeline,
            ring=shared,
            line=line,
            packages=str(packages.cache_folder()),
            report=str(folder / _REPORT),
        ).put(environment)
        return environment

    def _kept_log(self, life: Life) -> Log | None:
        """Open the instance's file in the user's folder for logs, which has its lives one after another."""
        if self._config.logs is None:
            return None
        folder = Path(self._cwd, self._config.logs)
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(folder / f"instance-{life.instance}.log")
        with log.open() as file:
            file.write(f"--- Blender {life.instance}, start {life.epoch}\n".encode())
        return log
