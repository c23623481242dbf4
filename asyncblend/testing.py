"""A fake Blender, for tests of a pipeline that need no Blender, take milliseconds, and can cause faults on purpose.

    fake = fake_blender(tmp_path, values={"image": ("uint8", (480, 640, 3))}, crash_after=3)
    async with ab.BlenderStream(script="scene.py", blender=fake) as stream:
        ...

The fake is a small real process. It is launched like a Blender executable, runs the real worker loop and speaks the
real protocol, but has no bpy. Faults happen in the thread that makes the samples, as they would in Blender.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import stat
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ConfigError
from .wire.launch import BOOTSTRAP, Launch

if TYPE_CHECKING:
    from .blender.serving.worker import Worker

__all__ = ["fake_blender"]


@dataclass(frozen=True, kw_only=True)
class _Faults:
    crash_after: int | None = None
    crash_status: int | None = None
    exit_at_start: int | None = None
    never_ready: bool = False
    hang_after: int | None = None
    freeze_after: int | None = None
    garbage_after: int | None = None
    garbage_messages: int = 1
    slow: float = 0.0
    ignore_stop: bool = False
    lives: int | None = None
    instances: Sequence[int] | None = None


def fake_blender(
    folder: str | os.PathLike[str], *, values: Mapping[str, tuple[Any, Sequence[int]]] | None = None, **faults: Any
) -> Path:
    """Write a fake Blender into `folder` (made if missing), and return its executable: the stream's `blender`.

    Args:
        folder: The folder to write to. Each fake needs its own.
        values: By name, the dtype and shape of the arrays of each sample. They are filled with random numbers that
            depend on seed and index alone: integers over their whole range, floats in [0, 1). The stream's script is
            not run then, but its file must exist. None: the script is run, so it must not import bpy.
        faults: Faults of each life. `..._after` counts the samples that the life has made before; each frame of an
            episode counts:

            - `crash_after` (int): It dies in the next sample, by SIGKILL, or with the exit status `crash_status` (int).
            - `hang_after` (int): The next sample never ends, while heartbeats go on.
            - `freeze_after` (int): The whole process is stopped by SIGSTOP in the next sample.
            - `garbage_after` (int): It sends bytes that are no message, `garbage_messages` (int) times, and goes on.
            - `exit_at_start` (int): It exits with that status before it sends anything.
            - `never_ready` (bool): It starts and sends heartbeats, but never serves.
            - `slow` (float): Each sample takes so many seconds more.
            - `ignore_stop` (bool): It goes on when the host asks it to stop, and ignores SIGTERM.
            - `lives` (int): Only so many first lives of an instance have faults.
            - `instances` (list of int): Only these instances have faults.

    Raises:
        ConfigError: There is no such fault, or no such dtype.
    """
    names = {field.name for field in dataclasses.fields(_Faults)}
    if unknown := faults.keys() - names:
        raise ConfigError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    try:
        as_json = json.dumps(faults)
    except TypeError as error:
        raise ConfigError(f"faults must be plain numbers, booleans and lists; got {faults!r}") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    script = None
    if values is not None:
        script = folder / "synthetic.py"
        script.write_text(
            _SYNTHETIC.format(spec={name: (_named(d), tuple(shape)) for name, (d, shape) in values.items()})
        )
    main = folder / "main.py"
    main.write_text(_MAIN.format(bootstrap=str(BOOTSTRAP), faults=as_json, script=script and str(script)))
    executable = folder / "blender"
    executable.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(main))} "$@"\n')
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return executable


def _named(dtype: Any) -> str:
    import numpy as np  # not above: who gives no values needs none

    try:
        found = None if dtype is None else np.dtype(dtype)  # None would be a float64
    except (TypeError, ValueError):
        found = None
    if found is None or found.kind not in "biufc":
        raise ConfigError(f"values need dtypes of numbers, such as 'uint8'; got {dtype!r}")
    return found.str


_MAIN = """\
import runpy
runpy.run_path({bootstrap!r})["load_asyncblend"]()
from asyncblend.testing import _run
_run({faults!r}, {script!r})
"""

_SYNTHETIC = """\
import numpy as np
from asyncblend import blender as bl
SPEC = {spec!r}

def numbers(rng, dtype, shape):
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind in "iu":
        ends = np.iinfo(dtype)
        return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)
    values = rng.random(shape)
    values = (values + 1j * rng.random(shape) if kind == "c" else values).astype(dtype)
    return values % 1 if kind == "f" else values  # a narrow dtype rounds the largest numbers to 1

def sample(task):
    return {{name: numbers(task.rng, *spec) for name, spec in SPEC.items()}}

bl.serve(sample)
"""


def _run(faults: str, script: str | None) -> NoReturn:
    """Run a fake Blender, and do not return."""
    launch = Launch.take(os.environ)
    launch = dataclasses.replace(launch, kind="fake", script=script or launch.script)
    launch.put(os.environ)
    own = _Faults(**json.loads(faults))
    faultless = (own.lives is not None and launch.epoch >= own.lives) or (
        own.instances is not None and launch.instance not in own.instances
    )
    if faultless:
        own = _Faults()
    if own.exit_at_start is not None:
        sys.stdout.write("fake Blender: exits at its start\n")
        sys.stdout.flush()
        os._exit(own.exit_at_start)
    if own.ignore_stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from .blender.serving import child

    child.main(lambda launch: _faulty_worker(launch, own))
    raise AssertionError("child.main does not return")


def _faulty_worker(launch: Launch, faults: _Faults) -> Worker:
    from .blender.serving.worker import Worker
    from .wire.protocol import STOP

    class FaultyWorker(Worker):
        made = 0

        def run(self, sample: Any) -> None:
            if faults.never_ready:
                threading.Event().wait()
            super().run(sample)

        def make(self, frame: Any) -> Any:
            if self.made == faults.crash_after:
                if faults.crash_status is not None:
                    os._exit(faults.crash_status)
                os.kill(os.getpid(), signal.SIGKILL)
            if self.made == faults.hang_after:
                threading.Event().wait()
            if self.made == faults.freeze_after:
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.made == faults.garbage_after:
                for _ in range(faults.garbage_messages):
                    self._socket.send_multipart([b"\xff garbage", b"", b"\0" * 100])
            self.made += 1
            if faults.slow:
                threading.Event().wait(faults.slow)
            return super().make(frame)

        def _receive(self, message: Any) -> bool:
            if faults.ignore_stop and message.kind == STOP:
                threading.Event().wait()
            return super()._receive(message)

    return FaultyWorker(launch)
