"""SyncEpisode: an Episode for programs without asyncio. What `SyncStream.episode` returns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import StreamClosed
from .episode import Turns
from .episode_pass import EpisodePass
from .frame import Frame
from .params import Drawn
from .queue import NotInTime


class _Frames(Protocol):
    """The frames of the episode's pass: SyncFrames."""

    @property
    def finished(self) -> bool: ...
    def get(self, timeout: float | None = None) -> Frame: ...
    def close(self, reason: str) -> None: ...


class _Steps(Protocol):
    """Where steps are asked for and may be answered: Bridge."""

    def ask(self, source: EpisodePass, drawn: Drawn) -> None: ...
    def answer(self, source: EpisodePass, timeout: float | None) -> Frame | None: ...


class SyncEpisode(Turns, contextlib.AbstractContextManager["SyncEpisode"]):
    """One episode, gone through step by step by one thread; `Episode` says how:

        with stream.episode(7) as episode:
            while not episode.frame["terminated"]:
                episode.step({"action": policy(episode.frame["observation"])})

    Several are stepped at once by `send` to each, then `receive` from each.
    """

    def __init__(self, source: EpisodePass, frames: _Frames, steps: _Steps) -> None:
        super().__init__()
        self._source, self._frames, self._steps = source, frames, steps

    @property
    def frame(self) -> Frame:
        """The latest frame."""
        return self.receive() if self._frame is None else self._frame

    def step(self, params: Mapping[str, Any] | None = None) -> Frame:
        """Make the next frame with these params, and wait for it.

        What has ended the episode is raised by each later call too.

        Raises:
            EpisodeOver: The generator has ended, or the episode was closed.
            EpisodeLost: Its Blender died, or a message was lost, and it had more steps than `max_replay`.
            SampleError: The script raised, cannot be replayed, or killed its Blender too often.
            ConfigError: The params cannot travel, or the frame of the step before was not received.
            StreamClosed: The stream was closed.
        """
        self.send(params)
        return self.receive()

    def send(self, params: Mapping[str, Any] | None = None) -> None:
        """Begin the next step, and do not wait for its frame: `receive` does. Raises what `step` does."""
        self._check_may_send()
        drawn = self._source.drawn(params)
        self._waiting = True
        self._steps.ask(self._source, drawn)

    def receive(self, timeout: float | None = None) -> Frame:
        """Wait for the frame of the step that was begun, at most `timeout` seconds. Raises what `step` does.

        Raises:
            TimeoutError: No frame came in time. It can be received later.
            ConfigError: No step was begun.
        """
        self._check_may_receive()
        limit = None if timeout is None else time.monotonic() + timeout
        try:
            if (frame := self._steps.answer(self._source, timeout)) is not None:
                return self._received(frame)
            left = None if limit is None else max(0, limit - time.monotonic())
            return self._received(self._frames.get(left))
        except NotInTime:
            raise TimeoutError(f"no frame came within {timeout:g} s") from None
        except StreamClosed as error:
            end = self._ended(None if self._frames.finished else error)
        except Exception as error:
            end = self._ended(error)
        raise end  # not above, where it would seem to follow from another error

    def close(self) -> None:
        """End the episode, and let its Blender make other samples. From any thread, also twice."""
        self._closed()
        self._frames.close("this episode was closed")

    def __exit__(self, *error: object) -> None:
        self.close()
