"""The Blenders that are open, and the turns of the fleets that are put together from them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...aio import the_one_error
from ...config import StreamConfig, cores
from .judging import Turn
from .settings import Kind, Setting
from .usage import Used, memory, sessions

if TYPE_CHECKING:
    from ...stream.frames import Frames
    from ...stream.stream import BlenderStream

_LOOK_AGAIN = 0.005  # seconds between two looks at whether a Blender has ended its last sample
_AT_LEAST = 2  # frames of each Blender in a turn, after its first


class Blenders:
    """Blenders of several kinds, each with a stream of its own, so that fleets of one kind have the same ones.

    A fleet of two and a fleet of four need four Blenders, not six. An asynchronous context manager: leaving it ends them
    all.

    Args:
        config: What they render. Which of it says how many Blenders there are is not looked at.
        gpus: The GPUs, which the Blenders that use them get in turns.
    """

    def __init__(self, config: StreamConfig, gpus: Sequence[int | str]) -> None:
        self._config, self._gpus = config, gpus
        self._held: dict[Kind, list[BlenderStream]] = {}
        self._memory: dict[Kind, float] = {}
        self._frame = math.inf  # seconds that one took at the least
        self.starting: int = 0
        """How many are started just now, and have not rendered yet."""

    async def __aenter__(self) -> Blenders:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._close([stream for held in self._held.values() for stream in held])

    async def hold(self, wanted: Mapping[Kind, int]) -> None:
        """Have so many Blenders open of each kind, and no others. Each new one has rendered a sample when this returns.

        Raises:
            AsyncblendError: As a stream raises that starts, or that renders a sample.
        """
        from ...stream.stream import BlenderStream  # not above: `--help` needs none of the packages that it needs

        surplus = {kind: held[wanted.get(kind, 0) :] for kind, held in self._held.items()}
        for kind, streams in surplus.items():
            del self._held[kind][len(self._held[kind]) - len(streams) :]
        await self._close([stream for streams in surplus.values() for stream in streams])
        for kind, number in wanted.items():
            held = self._held.setdefault(kind, [])
            before = sessions()
            missing = [BlenderStream(self._config_of(kind, place)) for place in range(len(held), number)]
            held += missing
            await self._start(missing)
            # There is a session of each Blender, and one of its guard. Some systems do not tell what they take.
            if taken := memory(sessions().keys() - before.keys()):
                self._memory[kind] = taken / len(missing)

    def memory(self, kind: Kind) -> float | None:
        """Return the bytes that one Blender of this kind takes, or None if that is unknown."""
        return self._memory.get(kind)

    async def turn(self, setting: Setting, first: int, seconds: float) -> tuple[Turn, int]:
        """Let a fleet render samples from `first` on, while all other Blenders wait. Those that it needs must be open.

        Each of its Blenders renders until all of them have done so for `seconds`. The rate of each is counted from its
        first frame to a later one, so that it does not depend on how many a second are. Where one frame takes longer
        than `seconds`, each Blender renders a single sample instead, which is the same for all: samples differ in their
        time, and waiting for more of them would take minutes.

        Returns:
            What it did, and the index after those that were rendered.

        Raises:
            AsyncblendError: As iterating over a stream raises.
        """
        streams, slow = self._held[setting.kind][: setting.instances], self._frame > seconds
        every = [
            range(first, first + 1) if slow else range(first + k, sys.maxsize, len(streams))
            for k in range(len(streams))
        ]
        used = Used()
        async with contextlib.AsyncExitStack() as stack:
            passes = [stream.frames(indices) for stream, indices in zip(streams, every, strict=True)]
            for one in passes:
                await stack.enter_async_context(one)
            rates, most = (await _one_each(passes), 1) if slow else await _several(passes, seconds)
        processor, others = used.shares()
        await self._rest(streams)
        self._frame = min(self._frame, len(rates) / sum(rates))
        return Turn(sum(rates), processor, others), first + (1 if slow else len(streams) * most)

    def _config_of(self, kind: Kind, place: int) -> StreamConfig:
        config = self._config
        return dataclasses.replace(
            config,
            instances=1,
            threads=kind.threads,
            gpus=[self._gpus[place % len(self._gpus)]] if kind.gpu else None,
            queue_size=max(config.queue_size, 2 * config.prefetch),  # no Blender must wait for a free slot
            length=None,  # a short one would end before the clock does
            script_args=config.args_of(0),  # those of each instance may be given for another number of instances
            on_bad_sample="raise",  # each one counts, and nobody would say why there are fewer
            logs=None,  # all would write the same file, as each is instance 0 of its stream
            show=False,
        )

    async def _start(self, streams: Sequence[BlenderStream]) -> None:
        at_once = asyncio.Semaphore(cores())  # more would only wait for each other, and the last one too long
        self.starting = len(streams)

        async def start(stream: BlenderStream) -> None:
            async with at_once:
                stream.consumer = None  # frames are dropped
                await stream.__aenter__()
                async with stream.frames([self._config.start]) as frames:
                    began = time.perf_counter()
                    await anext(frames)  # compiles and loads what later ones need
                    self._frame = min(self._frame, time.perf_counter() - began)
                await self._rest([stream])
                self.starting -= 1

        await _together([start(stream) for stream in streams])

    async def _rest(self, streams: Sequence[BlenderStream]) -> None:
        """Wait until these Blenders have ended the samples that they had begun when their passes were closed."""
        while any("ready" in stream.stats().state.values() for stream in streams):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_LOOK_AGAIN)

    async def _close(self, streams: Sequence[BlenderStream]) -> None:
        await asyncio.gather(*(stream.aclose() for stream in streams))


async def _one_each(passes: Sequence[Frames]) -> list[float]:
    """Take the first frame of all passes, and return the rate of each."""
    began, rates = time.perf_counter(), [0.0] * len(passes)

    async def take(place: int) -> None:
        await anext(passes[place])
        rates[place] = 1 / (time.perf_counter() - began)

    await _together([take(place) for place in range(len(passes))])
    return rates


async def _several(passes: Sequence[Frames], seconds: float) -> tuple[list[float], int]:
    """Take the frames of all passes until each of them has a rate.

    Returns:
        The rate of each, and the most frames that one had.
    """
    counts, rates = [0] * len(passes), [0.0] * len(passes)

    async def take(place: int) -> None:
        await anext(passes[place])
        began = time.perf_counter()
        async for _ in passes[place]:
            passed = time.perf_counter() - began
            counts[place] += 1
            if passed >= seconds and counts[place] >= _AT_LEAST and not rates[place]:
                rates[place] = counts[place] / passed
                if all(rates):  # until then the others have this one beside them
                    for task in tasks:
                        task.cancel()

    tasks: list[asyncio.Task[None]] = []
    await _together([take(place) for place in range(len(passes))], tasks)
    return rates, 1 + max(counts)


async def _together(work: Sequence[Coroutine[Any, Any, None]], tasks: list[asyncio.Task[None]] | None = None) -> None:
    """Run coroutines at once. If one fails, the others are cancelled, and its error is raised."""
    tasks = [] if tasks is None else tasks
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(one) for one in work]
    except BaseExceptionGroup as error:
        raise the_one_error(error) from None
