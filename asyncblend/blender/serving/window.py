"""Window: Blender's end in a Blender with a window. Samples are made from a timer, and in between the user is served."""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ...wire.launch import Launch, Report
from .serve import Sample
from .worker import Worker

_REST = 0.01  # seconds until the next look for a lease, when there is none


class Window:
    """Makes samples from Blender's main loop, in place of `Worker.run`, which would leave the window no time.

    Args:
        launch: Says where to leave a report if the user closes the window.
        worker: Takes the leases.
        end: Ends this process, as Python would because of that exception.
    """

    def __init__(self, launch: Launch, worker: Worker, end: Callable[[BaseException], NoReturn]) -> None:
        self._launch, self._worker, self._end = launch, worker, end
        self._rested = time.monotonic()
        _keep_the_window_in_the_context()
        if launch.factory_startup:
            _prefer_what_suits_a_stream()
        atexit.register(self._closed)

    def run(self, sample: Sample) -> None:
        """Have Blender's main loop make samples, which begins when the script is over. Return at once."""
        import bpy

        self._sample, self._script = sample, sys.modules["__main__"]
        bpy.app.timers.register(self._turn, persistent=True)  # also when the user opens another file
        self._worker.begin()

    def _turn(self) -> float:
        """Make one sample, if one is leased. Return the seconds until the next turn.

        Between two turns Blender's main loop always goes round: it takes in what the user does, and draws.
        """
        import bpy

        try:
            sys.modules["__main__"] = self._script  # Blender has put a module of its own there
            if not self._worker.hear():
                raise SystemExit(0)
            # Blender crashes if it renders twice at once. What the user renders comes first.
            busy = any(bpy.app.is_job_running(job) for job in ("RENDER", "OBJECT_BAKE"))
            if not busy and self._worker.answer_next(self._sample):
                self._rested = time.monotonic()
                _redraw()
                return 0.0
            if time.monotonic() - self._rested > self._launch.beat:
                self._rested = time.monotonic()
                self._worker.hello()
        except BaseException as error:  # Blender would print it, drop the timer and go on
            self._end(error)
        return _REST

    def _closed(self) -> None:
        """Tell the host that Blender exits by itself, which it does only if the user closes the window."""
        Report(window_closed=True).write(self._launch.report)
        self._end(SystemExit(0))


def _redraw() -> None:
    import bpy

    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            area.tag_redraw()


def _prefer_what_suits_a_stream() -> None:
    import bpy
    from bpy.app import handlers

    @handlers.persistent  # type: ignore[misc,untyped-decorator,unused-ignore]
    def apply(*_: object) -> None:
        bpy.context.preferences.view.show_splash = False  # it would cover the scene
        # Undo replaces all objects, so that the script's variables would stand for removed ones.
        bpy.context.preferences.edit.use_global_undo = False

    apply()
    handlers.load_factory_preferences_post.append(apply)  # again, as a script's read_factory_settings undoes it


def _keep_the_window_in_the_context() -> None:
    """Let a script that has opened a file go on as it would in the background.

    A Blender with a window takes it out of the context then, until its main loop goes round: `bpy.context.object` does
    not exist, and many operators fail. So each operator gives the context its window back.
    """
    import bpy

    operator: Any = type(bpy.ops.wm.open_mainfile)
    call = operator.__call__

    def call_and_restore(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return call(self, *args, **options)
        finally:
            if bpy.context.window is None and (windows := bpy.context.window_manager.windows):
                bpy.context.temp_override(window=windows[0]).__enter__()  # the main loop sets it anew

    with contextlib.suppress(TypeError):  # since Blender 5.2 operators are written in C, and stay as they are
        operator.__call__ = call_and_restore
