"""Attachment: a program's places in a fleet that another one has started. Leases go there, frames come back.

The program has as many places as the fleet has Blenders, and each looks to its dispatcher like a Blender: it takes the
leases that it is given one after another. Which Blender makes a sample, the fleet decides: all programs share them.

    Dispatcher -> add_lease, send_step, send_revoke -> calls of the fleet's actor
               <- frame, bad_sample, over ------------- what these calls return

Each call is answered by what the actor's method returns, so a frame is an object of Ray's that belongs to the program
which has asked for it, and goes when that program goes. Its arrays are copied out of Ray's memory as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from ..config import Timeouts
from ..errors import AsyncblendError, FleetLost, ProtocolError, SampleError
from ..wire.launch import Life
from ..wire.protocol import Name, Step, check_version
from ..wire.request import Request
from .finding import find
from .session import Session
from .told import Answer, Bad, Ended, FleetStatus, Gone, Made, Over, Welcome

_EVERY = 1.0  # seconds between two looks at how the fleet is
_LONGEST = 1e6  # seconds, as Ray takes no infinite ones


class Answers(Protocol):
    """What an attachment tells of leases; `Dispatcher` says what each call means. None of them may block."""

    def dispatch(self) -> None: ...
    def frame(
        self,
        life: Life,
        number: int,
        serial: int,
        index: int,
        values: dict[str, Any],
        step: Step = ...,
        made_by: int | None = ...,
    ) -> None: ...
    def bad_sample(self, life: Life, number: int, serial: int, error: SampleError) -> None: ...
    def over(self, life: Life, number: int, serial: int) -> None: ...


class Attachment:
    """One program's connection to a fleet. Made in any thread, then used in one event loop: `run`, and at last `leave`.

    To a dispatcher it is both ends of a fleet: it takes what is told to Blenders, and knows which there are.

    Args:
        name: The fleet's.
        timeouts: How long the fleet may be silent: `beat`, and `stop` at the end.

    Raises:
        ConfigError: There is no such fleet, or no cluster.
        ForkedProcessError: This process is a forked copy of one that was connected to Ray.
        FleetLost: It has ended meanwhile.
        ProtocolError: It runs another version of asyncblend.
        AsyncblendError: Why it has failed.
    """

    bad_messages = refused = 0

    def __init__(self, name: str, timeouts: Timeouts) -> None:
        self._name, self._timeouts = name, timeouts
        self._fleet = find(name)
        self._session = Session()
        self._program = uuid.uuid4().hex
        self._calls = itertools.count()
        self._answers: Answers | None = None  # while it runs
        self._open: set[ray.ObjectRef[Any]] = set()  # calls that are not answered
        self._group = asyncio.TaskGroup()
        # Of this program's objects one does not come before it leaves. If it dies, who waits for that one is told.
        self._presence = self._fleet.call.remote("stay", self._program)
        try:
            admitted = self._fleet.call.remote("attach", self._program, [self._presence])
            self.welcome: Welcome = ray.get(admitted, timeout=min(timeouts.beat, _LONGEST))
            check_version({"version": self.welcome.version}, f"fleet {name!r}")
            self._note(self.welcome.status)
        except RayError as error:
            self.give_up()
            silent = isinstance(error, GetTimeoutError)
            raise self._silent() if silent else self._lost(error) from None
        except AsyncblendError:
            self.give_up()
            raise
        self._places = [Life(place, 0) for place in range(len(self.states))]
        self._heard = dict.fromkeys(self._places, 0)  # how many answers
        self._early: dict[tuple[Life, int], Callable[[], None]] = {}  # by their turn: answers that others come before

    async def run(self, answers: Answers) -> None:
        """Ask for leases, and hand over what comes back, until cancelled.

        Raises (in an ExceptionGroup):
            FleetLost: The fleet was stopped or lost, or does not answer.
            AsyncblendError: Why the fleet cannot go on.
        """
        async with self._group:
            self._answers = answers
            try:
                answers.dispatch()
                while True:
                    await asyncio.sleep(_EVERY)
                    self._note(await self._look())
            finally:
                self._answers = None  # a group that ends takes no more tasks

    def give_up(self) -> None:
        """Leave at once, where nothing was leased."""
        with contextlib.suppress(Exception):  # it has ended, or this program has left Ray
            if self._session.lasts:
                self._fleet.call.remote("detach", self._program)

    async def leave(self) -> None:
        """Give all leases back. A fleet that does not hear of it will notice that this program is gone."""
        if not self._session.lasts:
            return
        # All that it was asked is answered then. Ray may crash a program that ends while it still waits for answers.
        calls = [self._fleet.call.remote("detach", self._program), *self._open]
        leaving = [asyncio.ensure_future(_result(call)) for call in calls]
        await asyncio.wait(leaving, timeout=self._timeouts.stop)
        for one in leaving:
            one.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)  # a fleet that has ended has nothing to give back

    # -- what the dispatcher tells a Blender ----------------------------------------------------------------------

    def add_lease(self, life: Life, request: Request) -> bool:
        """Lease an index of a pass, as `Hub.add_lease` does."""
        assert not request.on_demand, "streams refuse such episodes"
        return self._ask(life, *request.name, "lease", life.instance, request)

    def send_leases(self) -> Sequence[tuple[Life, Sequence[Name]]]:
        """Each lease is a call of its own, which is made at once."""
        return ()

    def send_step(self, life: Life, number: int, serial: int, step: int, params: Sequence[Any] = ()) -> bool:
        """Let an episode make another step."""
        return self._ask(life, number, serial, "step", step)

    def send_revoke(self, life: Life, number: int, serials: Sequence[int]) -> None:
        """Take back leases of a pass, also one that was begun."""
        for serial in serials:
            self._ask(life, number, serial, "revoke")

    def count_bad_line(self, life: Life, error: ProtocolError) -> None:
        """There are no lines."""
        raise AssertionError("there are no lines")

    def _ask(self, life: Life, number: int, serial: int, method: str, *args: Any) -> bool:
        """Call a method of the fleet about a lease, and hear what it answers later. Return False if it cannot be called."""
        if self._answers is None or not self._session.lasts:  # a call would start another Ray
            return False
        call = self._fleet.call.remote(method, self._program, next(self._calls), (number, serial), *args)
        self._open.add(call)
        self._group.create_task(self._hear(self._answers, life, (number, serial), call), name="asyncblend lease")
        return True

    async def _hear(self, answers: Answers, life: Life, name: Name, call: ray.ObjectRef[Any]) -> None:
        """Hand over what a call answers."""
        try:
            try:
                answer: Answer = await call
            except Exception as error:  # where the program has left Ray, errors are of any kind
                raise self._lost(error) from None
            self._open.discard(call)
            self._in_order(life, answer.turn, functools.partial(_hand_over, answers, life, name, answer.what))
        except BaseException:
            self._answers = None  # a group that ends takes no more tasks
            raise

    def _in_order(self, life: Life, turn: int | None, hand_over: Callable[[], None]) -> None:
        """Hand over an answer when it is its turn, and those that came before it although it is theirs later."""
        if turn is None:
            hand_over()
            return
        self._early[life, turn] = hand_over
        while (next_one := self._early.pop((life, self._heard[life]), None)) is not None:
            self._heard[life] += 1
            next_one()

    # -- what the dispatcher asks and tells of Blenders -----------------------------------------------------------

    def ready_lives(self) -> list[Life]:
        """Return this program's places."""
        return self._places if self._answers is not None else []

    # Nothing is to be noted of what follows: the fleet watches its Blenders itself.

    def leased(self, life: Life) -> None: ...
    def working_since(self, life: Life, began: float | None) -> None: ...
    def goes_on(self, life: Life) -> None: ...
    def answered(self, life: Life, *, more: bool, count: int = 1) -> None: ...

    # -- how the fleet is -----------------------------------------------------------------------------------------

    def _note(self, status: FleetStatus) -> None:
        if status.error is not None:
            raise status.error
        self.states: dict[int, str] = dict(status.state)
        before = self.welcome.status  # what happened before this program came is not its own
        self.recycled: int = status.recycled - before.recycled
        self.restarts: dict[int, int] = {
            number: count - before.instance_restarts.get(number, 0)
            for number, count in status.instance_restarts.items()
        }

    async def _look(self) -> FleetStatus:
        """Ask the fleet how it is."""
        if not self._session.lasts:
            raise self._lost("")
        looking = asyncio.ensure_future(_result(self._fleet.call.remote("status")))
        try:
            # Not wait_for, which would drop an answer that came while this loop itself stood still.
            await asyncio.wait([looking], timeout=min(self._timeouts.beat, _LONGEST))
            if not looking.done():
                raise self._silent()
            status: FleetStatus = looking.result()
        except FleetLost:
            raise
        except Exception as error:
            raise self._lost(error) from None
        finally:
            looking.cancel()
        return status

    def _lost(self, why: object) -> FleetLost:
        if not self._session.lasts:
            return FleetLost(f"this program has left Ray, and with it fleet {self._name!r}", fleet=self._name)
        about = str(why).strip().partition("\n")[0]
        return FleetLost(f"fleet {self._name!r} is gone: {about}; start it anew, and attach again", fleet=self._name)

    def _silent(self) -> FleetLost:
        text = f"fleet {self._name!r} has not answered for {self._timeouts.beat:g} s (timeouts.beat)"
        return FleetLost(
            f"{text}; attach again, or stop it by `asyncblend fleet stop {self._name}` and start it anew",
            fleet=self._name,
        )


def _hand_over(answers: Answers, life: Life, name: Name, what: Made | Bad | Over | Gone | Ended) -> None:
    number, serial = name
    if isinstance(what, Made):
        step = Step(what.step, what.last, what.fingerprint, spent=what.spent)
        answers.frame(life, number, serial, what.sample, _own(what.values), step, what.instance)
    elif isinstance(what, Bad):
        answers.bad_sample(life, number, serial, what.error)
    elif isinstance(what, Over):
        answers.over(life, number, serial)
    elif isinstance(what, Ended):
        raise what.error


async def _result(call: ray.ObjectRef[Any]) -> Any:
    return await call


def _own(value: Any) -> Any:
    """Return a value whose arrays are copies that cannot be written, as in all frames.

    Those that came are views of Ray's memory, which gets other content when this program has left Ray.
    """
    if isinstance(value, np.ndarray):
        copy = value.copy()
        copy.flags.writeable = False
        return copy
    if isinstance(value, dict):
        return {name: _own(one) for name, one in value.items()}
    return [_own(one) for one in value] if isinstance(value, list) else value
