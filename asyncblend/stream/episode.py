"""Episode: a sample whose frames are made one by one, each with params that depend on the frame before."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, EpisodeOver
from .episode_pass import EpisodePass
from .frame import Frame
from .frames import Frames
from .run import Run


class Turns:
    """Whose turn it is in an episode: its consumer's, to begin a step, or Blender's, to make the frame."""

    def __init__(self) -> None:
        self._waiting = True  # whether the frame of a step is on its way
        self._frame: Frame | None = None  # the latest one
        self._end: Exception | None = None  # why there are no more frames: the first reason

    def _check_may_send(self) -> None:
        """Raise what ended the episode, or ConfigError if it is Blender's turn."""
        if self._end is not None:
            raise self._end
        if self._waiting:
            raise ConfigError("the frame of the step before was not received; call receive() first")

    def _check_may_receive(self) -> None:
        """Raise what ended the episode, or ConfigError if it is the consumer's turn."""
        if self._end is not None:
            raise self._end
        if not self._waiting:
            raise ConfigError("no step was begun; call send() first")

    def _received(self, frame: Frame) -> Frame:
        self._frame, self._waiting = frame, False
        return frame

    def _ended(self, error: Exception | None = None) -> Exception:
        """Return what every step raises from now on.

        Args:
            error: What was raised in place of a frame. None: all frames have been delivered.
        """
        if error is None:
            alone = self._frame is not None and self._frame.last  # a generator is not known to end before it has
            why = "its sample function is no generator, and makes one frame" if alone else "its generator has returned"
            error = EpisodeOver(f"the episode has ended: {why}")
        if self._end is None:
            self._end = error
        return self._end

    def _closed(self) -> None:
        self._ended(EpisodeOver("the episode was closed"))


class Episode(Turns, contextlib.AbstractAsyncContextManager["Episode"]):
    """One episode: a sample function that is a generator, gone through step by step. `BlenderStream.episode` returns it.

        async with await stream.episode(7) as episode:
            while not episode.frame["terminated"]:
                await episode.step({"action": policy(episode.frame["observation"])})

    It keeps one Blender for itself until it is closed. If that dies, another one makes the same steps again, with the
    same params, and the episode goes on as if nothing had happened.
    """

    def __init__(self, run: Run, source: EpisodePass) -> None:
        super().__init__()
        self._run, self._source = run, source
        self._frames = Frames(run, source)

    @property
    def frame(self) -> Frame:
        """The latest frame."""
        assert self._frame is not None, "receive comes first"
        return self._frame

    async def step(self, params: Mapping[str, Any] | None = None) -> Frame:
        """Make the next frame: the generator's `yield` returns these params. Return the frame.

        If the call is cancelled, the step is made nevertheless; `receive` returns its frame. What has ended the episode
        is raised by each later call too.

        Raises:
            EpisodeOver: The generator has ended, or the episode was closed.
            EpisodeLost: Its Blender died, or a message was lost, and it had more steps than `max_replay`.
            SampleError: The script raised, cannot be replayed, or killed its Blender too often.
            ConfigError: The params cannot travel, or the frame of the step before was not received.
            StreamClosed: The stream was closed.
        """
        self.send(params)
        return await self.receive()

    def send(self, params: Mapping[str, Any] | None = None) -> None:
        """Begin the next step, and do not wait for its frame: `receive` does. Raises what `step` does."""
        self._run.check_process()
        self._check_may_send()
        drawn = self._source.drawn(params)
        self._waiting = True
        self._run.dispatcher.ask(self._source, drawn)

    async def receive(self) -> Frame:
        """Wait for the frame of the step that was begun. Raises what `step` does, and ConfigError if none was begun."""
        self._check_may_receive()
        try:
            return self._received(await anext(self._frames))
        except StopAsyncIteration:
            end = self._ended()
        except Exception as error:
            end = self._ended(error)
        raise end  # not above, where it would seem to follow from another error

    async def aclose(self) -> None:
        """End the episode, and let its Blender make other samples. May be called twice."""
        self._closed()
        await self._frames.aclose()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()
