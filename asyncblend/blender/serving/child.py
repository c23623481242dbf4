"""One Blender of a fleet, from its first line of Python to its last."""

from __future__ import annotations

import faulthandler
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from ...wire.launch import Launch, Report
from . import lifeline, requirements

if TYPE_CHECKING:
    from .worker import Worker


def main(worker_type: Callable[[Launch], Worker] | None = None) -> None:
    """Connect to the host, open the scene, run the user's script, and end the process. Does not return.

    In a Blender with a window it returns when the script serves. Then Blender's main loop begins, and makes the samples.

    Args:
        worker_type: Makes the worker in place of `Worker`; for `asyncblend.testing`.
    """
    launch = Launch.take(os.environ)
    lifeline.hold(launch.lifeline)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()  # a crash in Blender leaves the Python traceback in the log
    requirements.find(launch.packages, launch.report)
    from .serve import attach
    from .worker import Worker  # needs zmq

    worker = (worker_type or Worker)(launch)
    worker.connect()
    attach(worker.run)
    with_window = launch.show and launch.kind == "executable"
    reason: BaseException = SystemExit(0)
    try:
        if with_window:
            from .window import Window  # needs bpy

            attach(Window(launch, worker, lambda error: _end(launch, worker, error)).run)
        _open_scene(launch)
        # From here on as `python script.py args` would.
        sys.argv = [launch.script, *launch.script_args]
        sys.path.insert(0, os.path.dirname(os.path.abspath(launch.script)))
        runpy.run_path(launch.script, run_name="__main__")
        if not worker.served:
            text = "ended without serving: call asyncblend.blender.serve(sample) as its last line"
            print(f"asyncblend: {launch.script} {text}", file=sys.stderr)
            reason = SystemExit(1)
    except BaseException as error:
        reason = error
    if with_window and worker.served and isinstance(reason, SystemExit) and reason.code == 0:
        return  # into Blender's main loop, which calls the window's timer
    _end(launch, worker, reason)


def _end(launch: Launch, worker: Worker, reason: BaseException) -> NoReturn:
    """End this process as Python would because of that exception, and say goodbye to the host."""
    code = 1
    try:
        if isinstance(reason, SystemExit):
            code = reason.code if isinstance(reason.code, int) else int(reason.code is not None)
            if not isinstance(reason.code, (int, type(None))):
                print(reason.code, file=sys.stderr)
        else:
            traceback.print_exception(type(reason), reason, _from_script(reason.__traceback__))
    finally:
        if not worker.served:
            Report(script_failed=True).write(launch.report)
        worker.close()
        sys.stdout.flush()
        sys.stderr.flush()
        # Blender's own teardown costs time and sometimes crashes; the host removes this process's folder.
        os._exit(code)


def _open_scene(launch: Launch) -> None:
    if launch.kind == "fake":
        return
    from .autoexec import execute_scripts
    from .devices import counting_cores, render_on

    with counting_cores(launch.threads if launch.kind == "module" else None, launch.instance):
        import bpy
    if launch.kind == "module":  # what the options of the command line do for an executable
        if launch.factory_startup:
            bpy.ops.wm.read_factory_settings()
        execute_scripts(launch.autoexec)
    if launch.scene is not None:
        bpy.ops.wm.open_mainfile(filepath=os.path.abspath(launch.scene), load_ui=False)
    render_on(launch.threads, gpu=launch.gpu)


def _from_script(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames of this file and of runpy that come before the user's script."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    own = trace
    while own is not None and own.tb_frame.f_code.co_filename in ours:
        own = own.tb_next
    return own or trace
