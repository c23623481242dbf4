"""Serving: what runs in the actor of a fleet that stays warm. Its Blenders render for all programs that are attached.

A program has as many places as there are Blenders, and each place makes the leases that it holds one after another. So
no program has more than its share of what is rendered next, and none waits for another's queue. A place whose program
takes no more frames stands still, and its Blender goes on for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray.exceptions import RayError

from ..config import StreamConfig
from ..errors import AsyncblendError, FleetLost, SampleError
from ..fleet.workspace import Workspace
from ..stream.frames import Frames
from ..stream.passes import Pass
from ..stream.run import Run
from ..warm.told import Answer, Bad, Ended, FleetStatus, Gone, Made, Over, Welcome
from ..wire import payload
from ..wire.protocol import VERSION, Name
from .shipping import Shipment

_AHEAD = 2  # frames of an episode that are made before its program wants them


class Serving:
    """A fleet and the programs that are attached to it. It runs in an actor of Ray: `begin`, and at last `stop`.

    Each program numbers its calls from 0 on. They take effect in that order, which Ray does not keep.

    Args:
        name: The fleet's.
        shipment: Its config, and the files that this names.
        config: The same config with the paths of the machine where it was started.
        source: What its samples are a function of.
    """

    def __init__(self, name: str, shipment: Shipment, config: StreamConfig, source: Mapping[str, Any]) -> None:
        self._name, self._shipment, self._told = name, shipment, (config, source)
        self._resources = contextlib.ExitStack()
        self._run: Run | None = None
        self._begun = asyncio.Event()
        self._stopped: FleetLost | None = None
        self._programs: dict[str, _Program] = {}
        self._left: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)  # by program
        self._watching: set[asyncio.Task[None]] = set()

    async def begin(self) -> Exception | None:
        """Start the Blenders, and return when the first one is ready, or why there will be none."""
        context = ray.get_runtime_context()
        config = self._shipment.unpacked(self._resources.enter_context(Workspace()).folder)
        if gpus := context.get_accelerator_ids().get("GPU"):
            config = dataclasses.replace(config, gpus=gpus)
        if config.logs is not None:
            config = dataclasses.replace(config, logs=Path(config.logs, context.get_actor_id()))
        run = Run(config)
        try:
            await run.begin()
            self._run = run
            self._begun.set()
            await run.ready()
        except AsyncblendError as error:
            await run.aclose()
            self._resources.close()
            return error
        return None

    async def stop(self) -> None:
        """Tell all programs that the fleet has ended, and stop the Blenders. May be called twice."""
        self._stopped = FleetLost(f"fleet {self._name!r} was stopped", fleet=self._name)
        for program in list(self._programs.values()):
            program.end(self._stopped)
        if self._run is not None:
            await self._run.aclose()
        self._resources.close()

    async def status(self) -> FleetStatus:
        """Return how the fleet is, once its Blenders are being started."""
        await self._begun.wait()
        assert self._run is not None, "it has begun"
        stats, why = self._run.stats(), self._stopped or self._run.dispatcher.end_error
        return FleetStatus(
            name=self._name,
            node=ray.util.get_node_ip_address(),
            blender=self._run.blender_version,
            programs=len(self._programs),
            frames=sum(stats.frames.values()),
            restarts=stats.restarts,
            recycled=stats.recycled,
            state=dict(stats.state),
            error=why if isinstance(why, Exception) else None,
        )

    # -- for the programs -----------------------------------------------------------------------------------------

    async def stay(self, program: str) -> None:
        """Return when a program has left. What a call returns belongs to the caller, and is lost with it."""
        await self._left[program].wait()

    async def attach(self, program: str, presence: list[ray.ObjectRef[None]]) -> Welcome:
        """Admit a program, until it leaves or dies.

        Args:
            program: A name that it has made up for itself.
            presence: What its call of `stay` returns.
        """
        status, (config, source) = await self.status(), self._told
        if status.error is None:
            assert self._run is not None, "it has begun"
            self._programs[program] = _Program(self._run, len(status.state))
            watching = asyncio.create_task(self._watch(program, presence[0]), name="asyncblend program")
            self._watching.add(watching)  # ends with the program
            watching.add_done_callback(self._watching.discard)
        return Welcome(version=VERSION, config=config, source=source, status=status)

    async def detach(self, program: str) -> None:
        """Give up what a program holds."""
        self._left.pop(program, asyncio.Event()).set()
        if (gone := self._programs.pop(program, None)) is not None:
            gone.end()

    async def _watch(self, program: str, presence: ray.ObjectRef[None]) -> None:
        with contextlib.suppress(RayError):  # its owner has died
            await presence
        await self.detach(program)

    async def lease(
        self,
        program: str,
        turn: int,
        name: Name,
        place: int,
        index: int,
        params: list[Any],
        urgent: bool,
        first: int,
        fingerprint: list[Any],
    ) -> Answer:
        """Make a sample in one of a program's places, and return its first frame.

        Args:
            program: Its name.
            turn: The number of this call.
            name: The lease's.
            place: Number of the place.
            index, params: The sample's index and params, these as they travel.
            urgent: Whether it comes before what is not begun in that place, and for Blenders before other samples.
            first: The first step that is wanted, of an episode that was begun before.
            fingerprint: What the first frame of that episode was like.
        """
        if (one := await self._in_turn(program, turn)) is None:
            return self._no_more()
        values = payload.decode_values(params)
        forget = functools.partial(one.jobs.pop, name, None)
        job = _Job(index, values, forget, urgent=urgent, first=first, fingerprint=fingerprint)
        one.jobs[name] = job
        answer = job.step(first)
        one.places[place].add(job)
        return await answer

    async def step(self, program: str, turn: int, name: Name, step: int) -> Answer:
        """Return a further frame of an episode."""
        if (one := await self._in_turn(program, turn)) is None:
            return self._no_more()
        job = one.jobs.get(name)
        return Answer(None, Gone()) if job is None else await job.step(step)

    async def revoke(self, program: str, turn: int, name: Name) -> Answer:
        """Take a lease back, and return when nothing of it is made any more."""
        if (one := await self._in_turn(program, turn)) is None:
            return self._no_more()
        if (job := one.jobs.get(name)) is None or job.revoked:
            return Answer(None, Over())
        return await job.revoke()

    async def _in_turn(self, name: str, turn: int) -> _Program | None:
        """Return the program of that name when its earlier calls have been heard. None: it is not attached any more."""
        program = self._programs.get(name)
        if program is not None:
            await program.in_turn(turn)
        return None if self._stopped is not None else self._programs.get(name)

    def _no_more(self) -> Answer:
        told = f"fleet {self._name!r} took this program for dead, and gave its leases back; attach again"
        return Answer(None, Ended(self._stopped or FleetLost(told, fleet=self._name)))


class _Job:
    """A lease, and the answers that are awaited for it. A place makes it.

    Args:
        index, params, urgent, first, fingerprint: As `Serving.lease` has them.
        forget: Called when nothing of it is made any more.
    """

    def __init__(
        self,
        index: int,
        params: dict[str, Any],
        forget: Callable[[], object],
        *,
        urgent: bool,
        first: int,
        fingerprint: list[Any],
    ) -> None:
        self.index, self.params, self.urgent = index, params, urgent
        self.first, self.fingerprint = first, fingerprint
        self.finished: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        """What answers who has revoked it, when nothing of it is made any more."""
        self.revoked = False
        self._forget = forget
        self.making: asyncio.Task[None] | None = None
        self._steps: dict[int, asyncio.Future[Answer]] = {}  # those that are wanted
        self._wanted = asyncio.Event()
        self._end: Answer | None = None

    def step(self, number: int) -> asyncio.Future[Answer]:
        """Want a step. Return its answer, which comes later."""
        answer = self._steps[number] = asyncio.get_running_loop().create_future()
        if self._end is not None:
            answer.set_result(self._end)
        self._wanted.set()
        return answer

    async def wanted(self, number: int) -> None:
        """Wait until a step is wanted."""
        while number not in self._steps:
            self._wanted.clear()
            await self._wanted.wait()

    def answer(self, number: int, answer: Answer) -> None:
        """Answer a step that is wanted."""
        self._steps.pop(number).set_result(answer)

    def close(self, end: Answer) -> None:
        """Make no more of it. Who waits for a step, or will want one, is answered with `end`."""
        if self._end is None:
            self._end = end
            for answer in self._steps.values():
                answer.set_result(end)
        if self.making is None:
            self.finish(Answer(None, Over()))
        elif self.making is not asyncio.current_task():
            self.making.cancel()

    def revoke(self) -> asyncio.Future[Answer]:
        """Take it back. Return the answer, which comes when nothing of it is made any more."""
        self.revoked = True
        self.close(Answer(None, Gone()))
        return self.finished

    def finish(self, answer: Answer) -> None:
        """Note that nothing of it is made any more. Who has revoked it is answered so."""
        if not self.finished.done():
            self.finished.set_result(answer)
        self._forget()


class _Place:
    """Makes the leases of one place, one after another."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._jobs: list[_Job] = []  # those that are not begun
        self._turns = itertools.count()
        self._working: asyncio.Task[None] | None = None

    def add(self, job: _Job) -> None:
        """Make a lease after the others, an urgent one before those that are not."""
        at = next((i for i, other in enumerate(self._jobs) if not other.urgent), None) if job.urgent else None
        self._jobs.insert(len(self._jobs) if at is None else at, job)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="asyncblend place")  # ends with its last lease

    async def _work(self) -> None:
        while self._jobs:
            job = self._jobs.pop(0)
            if not job.finished.done():  # else it was taken back
                job.making = asyncio.create_task(self._make(job), name=f"asyncblend sample {job.index}")
                await asyncio.wait([job.making])
                job.finish(self._in_order(Over()) if job.revoked else Answer(None, Over()))
        self._working = None

    async def _make(self, job: _Job) -> None:
        """Make the wanted steps of a lease."""
        end = Answer(None, Gone())
        try:
            async with Frames(self._run, self._pass_of(job)) as frames:
                step, last = job.first, False
                while not last:
                    await job.wanted(step)
                    frame = await anext(frames)
                    last = frame.last
                    saved = frames.state_dict() if step == 0 and not last else {}
                    fingerprint = saved.get("fingerprints", {}).get("0", [])
                    made = Made(frame.index, dict(frame), frame.instance, step, last, fingerprint)
                    job.answer(step, self._in_order(made))
                    step += 1
        except StopAsyncIteration:
            job.answer(step, self._in_order(Over()))
        except SampleError as error:
            job.answer(step, self._in_order(Bad(error)))
        except Exception as error:
            end = Answer(None, Ended(error))
        finally:
            job.close(end)

    def _in_order(self, what: Made | Bad | Over) -> Answer:
        return Answer(next(self._turns), what)

    def _pass_of(self, job: _Job) -> Pass:
        indices = range(job.index, job.index + 1)
        state = None
        if job.first:
            place = {"start": indices.start, "stop": indices.stop, "step": 1}
            steps = {"steps": {"0": job.first}, "fingerprints": {"0": job.fingerprint}}
            state = {"seed": self._run.config.seed, "indices": place, "watermark": 0, "above": [], **steps}
        return Pass(
            self._run.config,
            indices,
            params=job.params,
            queue_size=_AHEAD,
            urgent=job.urgent,
            on_bad_sample="raise",
            state=state,
        )


class _Program:
    """What a program holds."""

    def __init__(self, run: Run, places: int) -> None:
        self.places = [_Place(run) for _ in range(places)]
        self.jobs: dict[Name, _Job] = {}
        """Those of which more may be wanted."""
        self._turn = 0
        self._later: dict[int, asyncio.Future[None]] = {}  # calls that came before their turn

    async def in_turn(self, turn: int) -> None:
        """Wait until the calls before this one have been heard. What the caller does at once comes before the next one."""
        if turn != self._turn:
            waiting = self._later[turn] = asyncio.get_running_loop().create_future()
            await waiting
        self._turn += 1
        if (following := self._later.pop(self._turn, None)) is not None:
            following.set_result(None)

    def end(self, why: Exception | None = None) -> None:
        """Give all leases up. Who waits for one is told why."""
        for job in list(self.jobs.values()):
            job.close(Answer(None, Gone() if why is None else Ended(why)))
        for waiting in self._later.values():
            waiting.set_result(None)
        self._later.clear()
