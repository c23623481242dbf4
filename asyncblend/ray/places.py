"""Places: what the programs that are attached to a warm fleet hold there, and how it is made.

A program has as many places as there are Blenders, and each place makes the leases that it holds one after another. So
no program has more than its share of what is rendered next, and none waits for another's queue. A place whose program
takes no more frames stands still, and its Blender goes on for others.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from ..errors import SampleError
from ..stream.frames import Frames
from ..stream.passes import Pass
from ..stream.run import Run
from ..warm.told import Answer, Bad, Ended, Gone, Made, Over
from ..wire import payload
from ..wire.protocol import Name
from ..wire.request import Request

_AHEAD = 16  # frames of an episode that are made before its program wants them


class Job:
    """A lease, and the answers that are awaited for it. A place makes it.

    Args:
        request: What is asked for.
        forget: Called when nothing of it is made any more.
    """

    def __init__(self, request: Request, forget: Callable[[], object]) -> None:
        self.request = request
        self.finished: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        """What answers who has revoked it, when nothing of it is made any more."""
        self.revoked: bool = False
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


class Place:
    """Makes the leases of one place, one after another."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._jobs: list[Job] = []  # those that are not begun
        self._turns = itertools.count()
        self._working: asyncio.Task[None] | None = None

    def add(self, job: Job) -> None:
        """Make a lease after the others, an urgent one before those that are not."""
        at = (
            next((i for i, other in enumerate(self._jobs) if not other.request.urgent), None)
            if job.request.urgent
            else None
        )
        self._jobs.insert(len(self._jobs) if at is None else at, job)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="asyncblend place")  # ends with its last lease

    async def _work(self) -> None:
        while self._jobs:
            job = self._jobs.pop(0)
            if not job.finished.done():  # else it was taken back
                job.making = asyncio.create_task(self._make(job), name=f"asyncblend sample {job.request.index}")
                await asyncio.wait([job.making])
                job.finish(self._in_order(Over()) if job.revoked else Answer(None, Over()))
        self._working = None

    async def _make(self, job: Job) -> None:
        """Make the wanted steps of a lease."""
        end = Answer(None, Gone())
        try:
            async with Frames(self._run, self._pass_of(job)) as frames:
                step, last = job.request.first, False
                while not last:
                    await job.wanted(step)
                    frame = await anext(frames)
                    last = frame.last
                    saved = frames.state_dict() if step == 0 and not last else {}
                    fingerprint = saved.get("fingerprints", {}).get("0", [])
                    made = Made(frame.index, dict(frame), frame.instance, step, last, fingerprint, frame.spent)
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

    def _pass_of(self, job: Job) -> Pass:
        request, seed = job.request, self._run.config.seed
        indices = range(request.index, request.index + 1)
        state = None
        if request.first:
            place = {"start": indices.start, "stop": indices.stop, "step": 1}
            steps = {"steps": {"0": request.first}, "fingerprints": {"0": list(request.fingerprint)}}
            state = {"seed": seed, "indices": place, "watermark": 0, "above": [], **steps}
        return Pass(
            self._run.config,
            indices,
            params=payload.decode_values(request.params),
            queue_size=_AHEAD,
            urgent=request.urgent,
            on_bad_sample="raise",
            state=state,
        )


class Program:
    """What a program holds."""

    def __init__(self, run: Run, places: int) -> None:
        self.places: list[Place] = [Place(run) for _ in range(places)]
        self.jobs: dict[Name, Job] = {}
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
