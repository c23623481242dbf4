"""Screen: writes moments for rerun, into a file or to a viewer that listens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import rerun as rr

from ..errors import ConfigError
from ..stream.frame import Frame
from ..tap.moment import Moment
from .activity import LOG, STATES, Activity, lines, state_colours
from .entities import entities_of, fixed_entities
from .layout import Eye, eye_for, layout

_PATIENCE = 30.0  # seconds until what was written must have arrived


class ScreenLost(Exception):
    """Nobody takes what is written: the viewer has ended, or the file has no room."""


class _Recording(rr.RecordingStream):  # type: ignore[misc]  # rerun is in another environment
    """What is written, which can be given up: rerun itself waits for ever until somebody has taken all of it.

    It does so when it is disconnected, when its object is collected, and at the exit of the program.
    """

    lost = False

    def give_up(self) -> None:
        """Leave what was not taken."""
        self.lost = True
        rr.unregister_shutdown()

    def __del__(self) -> None:
        if not self.lost:
            super().__del__()


class Screen:
    """Where moments are drawn. A context manager; one thread draws.

    Each moment has arrived before `show` returns, so nothing piles up here.

    A file's index of its parts is kept in memory until the end, a thousandth of what is written.

    Args:
        url: Of a viewer or a server that listens. None for none.
        file: The .rrd file to write. None for none.
        live: Whether there is a stream behind the moments.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, *, url: str | None, file: str | os.PathLike[str] | None, live: bool) -> None:
        self.activity: Activity = Activity()
        self._live = live
        self._paths: dict[str, bool] = {}  # those of the frames so far, and whether the last one had it
        self._eye: Eye | None = None
        self._states: set[str] = set()  # the paths of those Blenders whose colours are told
        sinks: list[Any] = [] if url is None else [rr.GrpcSink(url)]
        self._recording = _Recording("asyncblend", send_properties=True)
        try:
            if file is not None:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                sinks.append(rr.FileSink(file))
            self._recording.set_sinks(*sinks)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--save {os.fspath(file or '')!r} cannot be written: {error}") from None
        for path, archetypes in fixed_entities().items():
            self._recording.log(path, *archetypes, static=True)
        self._lay_out()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._recording.lost:
            self._recording.disconnect()

    def show(self, moment: Moment) -> None:
        """Draw a moment.

        Raises:
            ScreenLost: Nobody takes it.
        """
        self._recording.reset_time()
        changed = self.activity.entities(moment)
        self._recording.set_time("frame", sequence=self.activity.came)
        for path, archetypes in changed.items():
            if path.startswith(STATES) and path not in self._states:
                self._states.add(path)
                self._recording.log(path, state_colours(), static=True)
            self._recording.log(path, *archetypes)
        for line in lines(moment):
            self._recording.log(LOG, line)
        if (frame := moment.frame) is not None:
            self._recording.set_time("sample", sequence=frame.index)
            if frame.step or not frame.last:
                self._recording.set_time("step", sequence=frame.step)
            self._draw(frame)
        self._flush()

    def _draw(self, frame: Frame) -> None:
        entities = entities_of(frame)
        for path, archetypes in entities.items():
            self._recording.log(path, *archetypes)
        for path in [path for path, there in self._paths.items() if there and path not in entities]:
            self._recording.log(path, rr.Clear(recursive=False))
        known = len(self._paths)
        self._paths = {**dict.fromkeys(self._paths, False), **dict.fromkeys(entities, True)}
        if len(self._paths) > known:
            self._eye = self._eye or eye_for(frame)
            self._lay_out()

    def _lay_out(self) -> None:
        self._recording.send_blueprint(layout(self._paths, live=self._live, eye=self._eye))

    def _flush(self) -> None:
        try:
            self._recording.flush(timeout_sec=_PATIENCE)
        except (RuntimeError, OSError) as error:
            self._recording.give_up()
            raise ScreenLost(str(error)) from None
