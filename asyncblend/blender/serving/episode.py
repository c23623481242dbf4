"""Episode: a sample with several frames, which a generator makes one after another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ...errors import SampleError
from ...wire.payload import Shared
from ...wire.protocol import Message, Name, Spent
from .fingerprint import fingerprint_of, same
from .task import encode_sample
from .timed import timed

Values = Mapping[str, Any]
Call = Callable[[Callable[[], Any]], Any]
"""Calls a function of the user's, and raises what it raises."""

NOT_THE_SAME = (
    "an episode of which frames were sent before cannot be replayed, because {}. A sample must be a function of its task "
    "alone: draw random numbers from task.rng, and use neither the clock nor what earlier samples have left in the scene"
)

_NOTHING: Any = object()


def first_frame(generator: Iterator[Values]) -> Values:
    """Run a generator until it yields its first frame.

    Raises:
        SampleError: It yields none.
        Exception: What the user's code raised.
    """
    values = next(generator, _NOTHING)
    if values is _NOTHING:
        raise SampleError("the sample is a generator that yielded nothing; it must yield a dict for each frame")
    return values


class Step(NamedTuple):
    """A frame of an episode."""

    number: int
    parts: list[Any] | None
    """As it travels. None: the host has it already."""
    fingerprint: list[Any] | None
    """Of the first frame."""
    last: bool
    spent: Spent
    """What it took to make."""


class Episode:
    """Goes through a generator, as far as the host allows.

    `params = yield values` gives one frame, and returns the params of the next one: those of the lease, or, on demand,
    those of the host's STEP.

    So that the host knows with each frame whether it is the last one, the generator is one frame ahead of what is sent.
    On demand it cannot be, and that it has ended is told afterwards.

    Args:
        lease: The LEASE that it answers.
        params: Those of the lease.
        generator: What the sample function returned.
        values: Its first frame.
        spent: What that took.
        call: Calls the user's code.
    """

    def __init__(
        self,
        lease: Message,
        params: Values,
        generator: Generator[Values, Any, Any],
        values: Values,
        spent: Spent,
        call: Call,
    ) -> None:
        self.lease = lease
        self.name: Name = (lease.fields["pass"], lease.fields["lease"])
        self.index: int = lease.fields["index"]
        self._generator, self._call = generator, call
        self._lease_params = params
        self._first: int = lease.fields.get("first", 0)
        self._on_demand: bool = lease.fields.get("on_demand", False)
        self._expected: list[Any] = lease.fields.get("fingerprint", [])
        self._granted = self._first  # the number of the last step that may be made
        self._params: dict[int, Values] = {}  # by step, on demand
        self._number = 0  # of the latest frame
        self._values = values  # the latest frame, until `go_on` has returned it
        self._spent = spent  # on that frame
        self._over = False
        self._error: Exception | None = None  # of the frame after the latest one

    def grant(self, number: int, params: Values | None) -> None:
        """Let this step be made. On demand it gets these params."""
        self._granted = max(self._granted, number)
        if self._on_demand:
            self._params[number] = MappingProxyType(params or {})

    @property
    def may_go_on(self) -> bool:
        """Whether `go_on` may be called now."""
        if self._error is not None:
            return True
        return self._number + 1 in self._params if self._values is _NOTHING else self._number <= self._granted

    def go_on(self, shared: Shared | None) -> Step | None:
        """Return the next frame. None: on demand, the generator has ended instead.

        Raises:
            SampleError: The generator does not yield what it yielded before its Blender died.
            Exception: What the user's code raised.
        """
        if self._error is not None:
            raise self._error
        if self._values is _NOTHING:
            self._resume(self._params.pop(self._number + 1))
            if self._values is _NOTHING:
                self._check_length()
                return None
        number, spent, values, self._values = self._number, self._spent, self._values, _NOTHING
        fingerprint = fingerprint_of(values) if number == 0 else None
        if fingerprint and self._expected and not same(fingerprint, self._expected):
            raise SampleError(NOT_THE_SAME.format("its first frame is not the one that was sent before"))
        parts = None if number < self._first else encode_sample(values, shared)
        if not self._on_demand:
            if parts is not None:  # the generator may write into the same arrays for its next frame
                parts[1:] = [array.copy() for array in parts[1:]]
            try:
                self._resume(self._lease_params)
            except Exception as error:
                self._error = error
            if self._over:
                self._check_length()
        return Step(number, parts, fingerprint, self._over, spent)

    def close(self) -> None:
        """End the generator, so that its `finally` blocks run.

        Raises:
            Exception: What they raise.
        """
        self._generator.close()

    def _resume(self, params: Values) -> None:
        try:
            self._values, self._spent = timed(self._call, functools.partial(self._generator.send, params))
            self._number += 1
        except StopIteration:
            self._over = True

    def _check_length(self) -> None:
        # Those before `first` were sent, and none of them as the last one: on demand, no frame is sent as that.
        if self._number < self._first - self._on_demand:
            raise SampleError(NOT_THE_SAME.format(f"it ended after {self._number + 1} frames instead of going on"))
