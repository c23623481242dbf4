"""Chaos: injects faults at random times, from the consumer's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import zmq

import asyncblend as ab
from asyncblend.aio import end_context
from asyncblend.wire.gate import show_token
from asyncblend.wire.launch import Launch

from .faults import GARBAGE, KILL, KINDS, SLOW, STOP, Recoveries
from .garbage import message
from .processes import BlenderProcess, blenders, launch

__all__ = ["Chaos"]

_SERVING = {"idle", "ready", "rendering"}  # states of an instance


class Chaos:
    """Injects faults into one stream, `between` seconds apart on average."""

    def __init__(self, rng: random.Random, between: float, stream: ab.BlenderStream, recoveries: Recoveries) -> None:
        self._rng, self._between, self._stream, self._recoveries = rng, between, stream, recoveries
        self._launch: Launch | None = None
        self._pause = 0.0
        self.times: list[tuple[float, str]] = []
        """The faults: seconds since the start, and the kind."""
        self.messages = 0
        """Messages of garbage that were sent."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of faults of each kind."""
        counts = Counter(kind for _, kind in self.times)
        return {kind: counts[kind] for kind in KINDS}

    async def run(self, seconds: float) -> None:
        """Inject faults for so many seconds."""
        began = time.monotonic()
        context = zmq.Context()  # not the stream's own, because garbage comes from other programs
        inject: dict[str, Callable[[], bool]] = {
            KILL: self._kill,
            STOP: self._stop,
            GARBAGE: functools.partial(self._talk_garbage, context),
            SLOW: self._slow_down,
        }
        try:
            while True:
                wait = min(self._rng.expovariate(1 / self._between), 3 * self._between)
                if time.monotonic() + wait > began + seconds:
                    return
                await asyncio.sleep(wait)
                kind = self._rng.choice(KINDS)
                if inject[kind]():
                    self.times.append((time.monotonic() - began, kind))
        finally:
            end_context(context)

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
        return True

    def _kill(self) -> bool:
        """Kill a Blender, perhaps while it starts."""
        return self._signal(KILL, signal.SIGKILL, blenders())

    def _stop(self) -> bool:
        # A Blender that is stopped while it starts is noticed only after the long budget for the start.
        states = self._stream.stats().state
        serving = [blender for blender in blenders() if states[blender.instance] in _SERVING]
        return self._signal(STOP, signal.SIGSTOP, serving)

    def _signal(self, kind: str, number: int, among: list[BlenderProcess]) -> bool:
        fresh = [one for one in among if not self._recoveries.was_hit(one.instance, one.process.pid)]
        if not fresh:
            return False
        instance, process = self._rng.choice(fresh)
        try:
            process.send_signal(number)
        except psutil.Error:  # it has ended meanwhile
            return False
        self._recoveries.hit(instance, kind, process.pid)
        return True

    def _talk_garbage(self, context: zmq.Context[Any]) -> bool:
        self._launch = self._launch or launch()
        if self._launch is None:
            return False
        endpoint = self._launch.endpoint
        if endpoint.startswith("ipc://") and self._rng.random() < 0.25:
            self._talk_no_zeromq(endpoint.removeprefix("ipc://"))
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
