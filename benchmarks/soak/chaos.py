"""Chaos: injects faults at random times, from the consumer's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import psutil
import zmq

import asyncblend as ab
from asyncblend.aio import end_context
from asyncblend.wire.gate import show_token
from asyncblend.wire.launch import Launch

from .faults import (
    CLOSE,
    ENDING,
    FEW,
    GARBAGE,
    GARBLE,
    HANG,
    HOST,
    KILL,
    KINDS,
    PAUSE,
    REDIRECT,
    SLOW,
    STOP,
    Recoveries,
)
from .garbage import message
from .hosts import Hosts
from .orders import CLOSES, GARBLES, HANGS, REDIRECTS, give
from .processes import BlenderProcess, blenders, launch

__all__ = ["Chaos"]

_SERVING = {"idle", "ready", "rendering"}  # states of an instance


class Chaos:
    """Injects faults into one stream, `between` seconds apart on average, and starts the programs of `hosts`.

    Each kind comes once, in a random order, before any comes again.
    """

    def __init__(
        self, rng: random.Random, between: float, stream: ab.BlenderStream, recoveries: Recoveries, hosts: Hosts
    ) -> None:
        self._rng, self._between, self._stream, self._recoveries, self._hosts = rng, between, stream, recoveries, hosts
        self._launch: Launch | None = None
        self._pause = 0.0
        self._began = 0.0
        self._suspended: set[int] = set()  # process ids
        self._host: asyncio.Task[None] | None = None  # at most one at a time, as they take much
        self.times: list[tuple[float, str]] = []
        """The faults: seconds since the start, and the kind."""
        self.messages = 0
        """Messages of garbage that were sent."""
        self.over = False
        """Whether no more faults will come."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of faults of each kind."""
        counts = Counter(kind for _, kind in self.times)
        return {kind: counts[kind] for kind in KINDS}

    async def run(self, seconds: float, patience: float) -> None:
        """Inject faults for so many seconds, and up to `patience` seconds longer until there was one of each kind."""
        self._began = time.monotonic()
        context = zmq.Context()  # not the stream's own, because garbage comes from other programs
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._inject(tasks, context, seconds, patience)
            self.over = True
        finally:
            end_context(context)

    async def _inject(
        self, tasks: asyncio.TaskGroup, context: zmq.Context[Any], seconds: float, patience: float
    ) -> None:
        inject: dict[str, Callable[[], bool]] = {
            KILL: self._kill,
            STOP: self._stop,
            HANG: functools.partial(self._order, HANG, HANGS),
            CLOSE: functools.partial(self._order, CLOSE, CLOSES),
            GARBLE: functools.partial(self._order, GARBLE, GARBLES),
            PAUSE: functools.partial(self._suspend, tasks),
            REDIRECT: functools.partial(self._order, REDIRECT, REDIRECTS),
            GARBAGE: functools.partial(self._talk_garbage, context),
            SLOW: self._slow_down,
            HOST: functools.partial(self._start, tasks, self._kill_host),
            FEW: functools.partial(self._start, tasks, self._starve_host),
        }
        due: list[str] = []
        while True:
            await asyncio.sleep(min(self._rng.expovariate(1 / self._between), 3 * self._between))
            passed = time.monotonic() - self._began
            if passed > seconds + (0 if all(self.counts.values()) else patience):
                return
            due = due or self._rng.sample(KINDS, len(KINDS))
            # The next one that is possible now: it may be that no Blender serves.
            if (kind := next((kind for kind in due if inject[kind]()), None)) is not None:
                due.remove(kind)

    def _note(self, kind: str) -> None:
        self.times.append((time.monotonic() - self._began, kind))

    async def hold_up(self) -> None:
        """Delay the consumer that calls this next. Each of them calls it after each frame."""
        pause, self._pause = self._pause, 0.0
        if pause > 0:
            await asyncio.sleep(pause)
        elif pause < 0:
            _block(-pause)

    def _slow_down(self) -> bool:
        # A negative pause blocks the event loop, and with it all consumers.
        self._pause = self._rng.uniform(0.05, 1.0) * self._rng.choice((1, -1))
        self._note(SLOW)
        return True

    # -- Blenders of the stream -----------------------------------------------------------------------------------

    def _kill(self) -> bool:
        """Kill a Blender, perhaps while it starts."""
        return self._hit(KILL, blenders(), psutil.Process.kill)

    def _stop(self) -> bool:
        """Stop a Blender for good: the stream must notice, and replace it."""
        # One that is stopped while it starts is noticed only after the long budget for the start.
        return self._hit(STOP, self._serving(), psutil.Process.suspend)

    def _suspend(self, tasks: asyncio.TaskGroup) -> bool:
        """Stop a Blender for less than the budget of its heartbeats."""

        def suspend(process: psutil.Process) -> None:
            process.suspend()
            self._suspended.add(process.pid)
            tasks.create_task(self._go_on(process))

        return self._hit(PAUSE, self._serving(), suspend)

    async def _go_on(self, process: psutil.Process) -> None:
        try:
            await asyncio.sleep(self._stream.config.timeouts.beat * self._rng.uniform(0, 0.7))
        finally:
            self._suspended.remove(process.pid)
            with contextlib.suppress(psutil.Error):
                process.resume()

    def _order(self, kind: str, orders: Sequence[str]) -> bool:
        """Order a Blender to do one of these things to itself."""
        order, script = self._rng.choice(orders), Path(self._stream.config.script)
        return self._hit(kind, self._serving(), lambda process: give(process, order, script))

    def _serving(self) -> list[BlenderProcess]:
        states = self._stream.stats().state
        return [blender for blender in blenders() if states[blender.instance] in _SERVING]

    def _hit(self, kind: str, among: list[BlenderProcess], harm: Callable[[psutil.Process], object]) -> bool:
        """Harm one of these Blenders, if there is one that nothing else is being done to."""
        fresh = [
            one
            for one in among
            if one.process.pid not in self._suspended and not self._recoveries.was_hit(one.instance, one.process.pid)
        ]
        if not fresh:
            return False
        instance, process = self._rng.choice(fresh)
        try:
            harm(process)
        except psutil.Error:  # it has ended meanwhile
            return False
        if kind in ENDING:
            self._recoveries.hit(instance, kind, process.pid)
        self._note(kind)
        return True

    # -- other programs -------------------------------------------------------------------------------------------

    def _start(self, tasks: asyncio.TaskGroup, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        if self._host is not None and not self._host.done():
            return False
        self._host = tasks.create_task(work())
        return True

    async def _kill_host(self) -> None:
        await self._hosts.kill(self._rng, lambda: self._note(HOST))

    async def _starve_host(self) -> None:
        await self._hosts.starve(self._rng)
        self._note(FEW)

    def _talk_garbage(self, context: zmq.Context[Any]) -> bool:
        self._launch = self._launch or launch()
        if self._launch is None:
            return False
        endpoint = self._launch.endpoint
        if endpoint.startswith("ipc://") and self._rng.random() < 0.25:
            self._talk_no_zeromq(endpoint.removeprefix("ipc://"))
            self._note(GARBAGE)
            return True
        with context.socket(zmq.DEALER) as peer:
            peer.linger = 1000  # milliseconds for the messages to leave
            # Half of them are let in, so that the host has to read what they send.
            show_token(peer, self._launch.token if self._rng.random() < 0.5 else "guess")
            peer.connect(endpoint)
            for _ in range(self._rng.randint(1, 40)):
                with contextlib.suppress(zmq.Again):
                    peer.send_multipart(message(self._rng), zmq.DONTWAIT)
                    self.messages += 1
        self._note(GARBAGE)
        return True

    def _talk_no_zeromq(self, path: str) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(0.2)
            plain.connect(path)
            plain.sendall(self._rng.randbytes(self._rng.randint(1, 5000)))
            self.messages += 1


def _block(seconds: float) -> None:
    """Block the event loop, as a training step in its thread does."""
    time.sleep(seconds)
