"""Serving: what runs in the actor of a fleet that stays warm. Its Blenders render for all programs that are attached."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray.exceptions import RayError

from ..config import StreamConfig
from ..errors import AsyncblendError, FleetLost
from ..fleet.workspace import Workspace
from ..stream.run import Run
from ..warm.told import Answer, Ended, FleetStatus, Gone, Over, Welcome
from ..wire.protocol import VERSION, Name
from ..wire.request import Request
from .places import Job, Program
from .placing import Cluster
from .shipping import Shipment


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
        self._programs: dict[str, Program] = {}
        self._left: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)  # by program
        self._watching: set[asyncio.Task[None]] = set()
        self._given_up: set[str] = set()  # programs that left before they were admitted

    async def begin(self) -> Exception | None:
        """Start the Blenders, and return when the first one is ready, or why there will be none."""
        context = ray.get_runtime_context()
        folder = self._resources.enter_context(Workspace()).folder
        config = self._shipment.unpacked(folder)
        if isinstance(config.cluster, Cluster):  # all that came here travels on
            own = dataclasses.replace(config.cluster, files=[folder], address=None, host=None)  # those of this node
            config = dataclasses.replace(config, cluster=own)
        if gpus := context.get_accelerator_ids().get("GPU"):
            config = dataclasses.replace(config, gpus=gpus)
        if config.logs is not None:
            config = dataclasses.replace(config, logs=Path(config.logs, context.get_actor_id()))
        run = Run(config)
        run.consumer = None  # each program that is attached says by itself whether it waits
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
            instance_restarts=dict(stats.instance_restarts),
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
            with contextlib.suppress(AsyncblendError):  # then the status says so
                await self._run.ready()  # from then on Blender's version is known
            status = await self.status()
        if program in self._given_up:
            self._given_up.discard(program)
        elif status.error is None:
            assert self._run is not None, "it has begun"
            self._programs[program] = Program(self._run, len(status.state))
            watching = asyncio.create_task(self._watch(program, presence[0]), name="asyncblend program")
            self._watching.add(watching)  # ends with the program
            watching.add_done_callback(self._watching.discard)
        return Welcome(version=VERSION, config=config, source=source, status=status)

    async def detach(self, program: str) -> None:
        """Give up what a program holds."""
        self._left.pop(program, asyncio.Event()).set()
        if (gone := self._programs.pop(program, None)) is not None:
            gone.end()
        else:
            self._given_up.add(program)  # it may be on its way

    async def _watch(self, program: str, presence: ray.ObjectRef[None]) -> None:
        with contextlib.suppress(RayError):  # its owner has died
            await presence
        self._left.pop(program, None)
        if (gone := self._programs.pop(program, None)) is not None:
            gone.end(self._taken_for_dead())

    async def lease(self, program: str, turn: int, name: Name, place: int, request: Request) -> Answer:
        """Make a sample in one of a program's places, and return its first frame.

        Args:
            program: Its name.
            turn: The number of this call.
            name: The lease's.
            place: Number of the place.
            request: What is asked for. If it is urgent, it comes before what is not begun in that place.
        """
        if (one := await self._in_turn(program, turn)) is None:
            return self._no_more()
        job = one.jobs[name] = Job(request, functools.partial(one.jobs.pop, name, None))
        answer = job.step(request.first)
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

    async def _in_turn(self, name: str, turn: int) -> Program | None:
        """Return the program of that name when its earlier calls have been heard. None: it is not attached any more."""
        program = self._programs.get(name)
        if program is not None:
            await program.in_turn(turn)
        return None if self._stopped is not None else self._programs.get(name)

    def _no_more(self) -> Answer:
        return Answer(None, Ended(self._stopped or self._taken_for_dead()))

    def _taken_for_dead(self) -> FleetLost:
        told = f"fleet {self._name!r} took this program for dead, and gave its leases back; attach again"
        return FleetLost(told, fleet=self._name)
