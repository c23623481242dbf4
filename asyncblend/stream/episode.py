"""Episode: a sample whose frames are made one by one, each with params that depend on the frame before."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..config import StreamConfig, check_whole
from ..errors import ConfigError, EpisodeLost, EpisodeOver
from .frame import Frame
from .frames import Frames
from .leases import Lease
from .params import Drawn, snapshot
from .passes import Guilt, Pass
from .run import Run

MAX_REPLAY = 10_000


class EpisodePass(Pass):
    """The pass of one episode whose every step is asked for.

    Args:
        config: Options of the stream.
        index: The sample's index.
        params: Those of its first frame. None: drawn as the stream does.
        max_replay: How many steps are made again at most when a Blender has died.
    """

    on_demand = True

    def __init__(
        self, config: StreamConfig, index: int, params: Mapping[str, Any] | None = None, *, max_replay: int = MAX_REPLAY
    ) -> None:
        check_whole("max_replay", max_replay, 0)
        super().__init__(config, [index], params=params, queue_size=1, urgent=True, on_bad_sample="raise")
        self._index, self._max_replay = index, max_replay
        self._asked: dict[int, Drawn] = {}  # by step
        self.steps = 0  # How many steps were asked for

    def drawn(self, params: Mapping[str, Any] | None) -> Drawn:
        """Return the params of a step as they travel. Any thread may call it.

        Raises:
            ConfigError: They cannot travel.
        """
        return snapshot({} if params is None else params, f" of step {self.steps + 1} of index {self._index}")

    def ask(self, drawn: Drawn) -> None:
        """Want the next step."""
        self.steps += 1
        if self.steps > self._max_replay:  # it cannot be replayed any more
            self._asked.clear()
        self._asked[self.steps] = drawn
        self.book.ask(0)

    def params_of_step(self, step: int) -> Drawn | None:
        """Return what was asked for, or None for the first frame."""
        return self._asked.get(step)

    def give_back(self, lease: Lease[Drawn], guilt: Guilt = "none") -> None:
        """Take back the lease as any pass does, if its steps may be replayed."""
        steps = self.book.first_step(lease) - 1
        super().give_back(lease, guilt)
        if steps > 0 and steps > self._max_replay - (self.steps > steps):
            text = (
                f"the Blender of episode {self._index} died after {steps} steps, and at most {self._max_replay} are "
                f"replayed; begin another episode, or allow more by max_replay"
            )
            self.fail(EpisodeLost(text, step=steps))


class Episode(contextlib.AbstractAsyncContextManager["Episode"]):
    """One episode: a sample function that is a generator, gone through step by step. `BlenderStream.episode` returns it.

        async with await stream.episode(7) as episode:
            while not episode.frame["terminated"]:
                await episode.step({"action": policy(episode.frame["observation"])})

    It keeps one Blender for itself until it is closed. If that dies, another one makes the same steps again, with the
    same params, and the episode goes on as if nothing had happened.
    """

    def __init__(self, run: Run, source: EpisodePass) -> None:
        self._run, self._source = run, source
        self._frames = Frames(run, source)
        self._waiting = True  # whether the frame of a step is on its way
        self._frame: Frame | None = None

    @property
    def frame(self) -> Frame:
        """The latest frame."""
        assert self._frame is not None, "receive comes first"
        return self._frame

    async def step(self, params: Mapping[str, Any] | None = None) -> Frame:
        """Make the next frame: the generator's `yield` returns these params. Return the frame.

        If the call is cancelled, the step is made nevertheless; `receive` returns its frame.

        Raises:
            EpisodeOver: The generator has ended, or the episode was closed.
            EpisodeLost: Its Blender died, and it had more steps than `max_replay`.
            SampleError: The script raised, cannot be replayed, or killed its Blender too often.
            ConfigError: The params cannot travel, or the frame of the step before was not received.
            StreamClosed: The stream was closed.
        """
        self.send(params)
        return await self.receive()

    def send(self, params: Mapping[str, Any] | None = None) -> None:
        """Begin the next step, and do not wait for its frame: `receive` does. Raises ConfigError as `step` does."""
        self._run.check_process()
        if self._waiting:
            raise ConfigError("the frame of the step before was not received; call receive() first")
        self._source.ask(self._source.drawn(params))
        self._waiting = True
        self._run.dispatcher.step(self._source)

    async def receive(self) -> Frame:
        """Wait for the frame of the step that was begun. Raises what `step` does."""
        try:
            self._frame = await anext(self._frames)
        except StopAsyncIteration:
            self._waiting = False
            raise EpisodeOver("the episode has ended: its generator has returned") from None
        self._waiting = False
        return self._frame

    async def aclose(self) -> None:
        """End the episode, and let its Blender make other samples. May be called twice."""
        await self._frames.aclose()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()
