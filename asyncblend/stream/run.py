"""Run: one running fleet with its hub and its dispatcher, from the launch to the last process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from ..aio import AtExit, finish, separate_after_fork, the_one_error
from ..config import StreamConfig
from ..errors import ConfigError, ForkedProcessError, InstanceError, StreamClosed
from ..fleet.fleet import Fleet
from ..fleet.place import Here
from ..fleet.preflight import check_descriptors
from ..fleet.workspace import Workspace
from ..recording.about import source
from ..wire.launch import Life
from ..wire.line import Line
from ..wire.ring import Ring
from .dispatcher import Dispatcher
from .hub import Hub
from .stats import StreamStats
from .timing import WINDOW
from .verdict import verdict

_log = logging.getLogger("asyncblend")
_REPORT_EVERY = WINDOW  # seconds

_process = os.getpid()  # kept, because a system call for each frame is slow


class Run:
    """The engine under `BlenderStream` and `Bridge`: both begin passes on its dispatcher.

    `begin`, then `ready`, and `aclose` on every path; once each, in one event loop.

    Args:
        config: The options.
        first_instance: Number of the first instance.
    """

    consumer: str | None = "training"
    """What takes the frames, as `verdict` has it, which is logged. `BlenderStream.consumer` sets it."""

    def __init__(self, config: StreamConfig, *, first_instance: int = 0) -> None:
        self.config: StreamConfig = config
        self._first = first_instance
        self._pid = _process
        self._resources = contextlib.ExitStack()
        self._rings: dict[Life, Ring] = {}
        self._lines: dict[Life, Line] = {}
        self._dispatcher: Dispatcher | None = None
        self._serving: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    async def begin(self) -> None:
        """Find Blender, bind the socket and begin to launch the fleet. Passes may be begun from now on.

        Raises:
            ConfigError: Script or scene do not exist, or this process may not open enough files, or has no usable
                working directory or folder for temporary files; or Blender cannot open the window that is wanted.
            BlenderNotFound: There is no Blender.
        """
        config = self.config
        check_descriptors(config.instances)
        place = Here(config, self._first) if config.cluster is None else config.cluster.place(config, self._first)
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self.loop.create_future()
        try:
            workspace = self._workspace = self._resources.enter_context(Workspace())
            self._hub = self._resources.enter_context(Hub(workspace.folder, config.seed, self._rings, place.network))
            spawn = self._spawn = place.spawner(self._hub, workspace, self._rings, self._lines)
            self._fleet = Fleet(config, spawn, self._hub.send_stop, first=self._first)
            self._dispatcher = Dispatcher(config, self._hub, self._fleet, self._lines)
            self._serving = asyncio.create_task(self._serve(), name="asyncblend run")  # aclose awaits it
            self._keep()
        except BaseException:
            self._resources.close()
            raise

    async def ready(self) -> None:
        """Wait until the first instance serves.

        Raises:
            InstanceExited, StartTimeout: A Blender died, or was not ready in time.
            BlenderNotFound: `blender` is a Python without bpy.
            StreamClosed: The run was closed meanwhile.
        """
        await asyncio.shield(self._ready)

    @property
    def opened(self) -> bool:
        """Whether `begin` has succeeded."""
        return self._dispatcher is not None

    @property
    def dispatcher(self) -> Dispatcher:
        """Serves the passes, once the run is open."""
        assert self._dispatcher is not None, "begin comes first"
        return self._dispatcher

    @property
    def blender_version(self) -> str:
        """Blender's version, once an instance is ready; "" before, and where there is none."""
        return self._hub.blender if self.opened else ""

    def source(self) -> dict[str, Any]:
        """Return what the samples are a function of, but for params, as JSON values.

        Raises:
            ConfigError: The script or the scene cannot be read.
        """
        return source(self.config)

    def stats(self) -> StreamStats:
        """Return a snapshot, also before the start and after the end."""
        if self._dispatcher is not None:
            return self._dispatcher.stats()
        numbers = range(self._first, self._first + self.config.instances)
        return StreamStats(
            delivered=0, rendering=0, queued=0, restarts=0, recycled=0, duplicates=0, stale=0, bad_messages=0, refused=0,
            skipped=0, frames=dict.fromkeys(numbers, 0), state=dict.fromkeys(numbers, "new"),
            instance_restarts=dict.fromkeys(numbers, 0),
        )  # fmt: skip

    @property
    def ending(self) -> bool:
        """Whether the fleet has ended or is about to: its consumers may know that before the fleet is gone."""
        return self.ended or (self._dispatcher is not None and self._dispatcher.end_error is not None)

    @property
    def ended(self) -> bool:
        """Whether the fleet has ended, by itself or because it was closed."""
        return self._serving is not None and self._serving.done()

    @property
    def forked(self) -> bool:
        """Whether this process is a forked copy of the one that opened the run. It owns nothing of the run."""
        return self._pid != _process

    def check_process(self) -> None:
        """Check that this is the process that opened the run.

        Raises:
            ForkedProcessError: It is a forked copy.
        """
        if self._pid != _process:  # not `forked`, as each step of an episode looks here twice
            raise ForkedProcessError(
                "this stream belongs to the process from which this one was forked; make a new one here"
            )

    def check_loop(self) -> None:
        """Check that the event loop that runs here is the one that the run was begun in.

        Raises:
            ConfigError: It is another one, in which nothing of the run would ever happen.
        """
        if asyncio.get_running_loop() is not self.loop:
            raise ConfigError(
                "this stream was entered in another event loop, in which alone it can be used and closed; in a program "
                "with several loops use `BlenderStream(...).sync()`, whose loop has a thread of its own"
            )

    async def aclose(self) -> None:
        """Stop the fleet. Return when nothing of it is left. May be called at any time, also twice."""
        if self.forked:
            return
        if self._serving is not None:
            if self.ended and self.loop.is_closed():
                return  # asyncio.run has cancelled it
            self.check_loop()
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.ensure_future(self._close())
        await finish(self._closing)

    async def _close(self) -> None:
        if self._serving is None:
            return
        self._serving.cancel()
        await asyncio.wait([self._serving])
        closed = StreamClosed("the stream was closed")
        if not self._ready.done():
            self._ready.set_exception(closed)
        self._ready.exception()  # whoever waits has it; nobody else needs it
        self.dispatcher.close(closed)  # also frees the memory of frames that nobody can take any more
        await self.dispatcher.feeds.aclose(self.config.timeouts.stop)
        self._free()

    async def _serve(self) -> None:
        """Run until cancelled, or until it cannot go on. Its error goes to the consumers."""
        dispatcher = self.dispatcher
        try:
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(self._report(), name="asyncblend verdict")
                await self._run()
                reporting.cancel()
        except BaseException as error:
            cause = the_one_error(error)
            if isinstance(cause, asyncio.CancelledError):
                # Not only in `aclose`: somebody else may have cancelled this task.
                dispatcher.close(StreamClosed("the stream was closed"))
                raise
            dispatcher.fail(cause)
            if not self._ready.done():
                self._ready.set_exception(dispatcher.end_error or cause)  # the first reason
            if not isinstance(cause, Exception):
                raise
        finally:
            self._free()

    async def _run(self) -> None:
        """Run the fleet and the hub until cancelled, or until they cannot go on."""
        fleet, dispatcher = self._fleet, self.dispatcher
        await self._spawn.check()
        # The hub outlives the fleet, so that a Blender that reconnects while the fleet stops still receives STOP.
        async with asyncio.TaskGroup() as outer:
            hearing = outer.create_task(self._hub.serve(fleet, dispatcher), name="asyncblend hub")
            async with asyncio.TaskGroup() as group:
                running = fleet.run(dispatcher.dispatch, self._life_over, dispatcher.watch)
                group.create_task(running, name="asyncblend fleet")
                await fleet.first_ready()
                if not self._ready.done():
                    self._ready.set_result(None)
            hearing.cancel()

    async def _report(self) -> None:
        """Log who is the bottleneck, once a minute, as long as frames that are rendered ahead are waited for or taken."""
        while True:
            await asyncio.sleep(_REPORT_EVERY)
            stats = self.stats()
            if (stats.rate or stats.waiting) and self.dispatcher.renders_ahead:
                _log.info("%s", verdict(stats, self.consumer))

    def _keep(self) -> None:
        """Let this run be ended at the exit, and disowned in forked copies."""
        _open.add(self)

    def _end_at_exit(self) -> None:
        """Stop the fleet of a loop that nobody runs any more, as ZeroMQ would wait at the exit for an open socket."""
        if self.forked or self.ended or self.loop.is_running():
            return
        if not self.loop.is_closed():
            self.loop.run_until_complete(self.aclose())
        else:
            self._kill()
            self._free()

    def _kill(self) -> None:
        self._fleet.kill()

    def _disown(self) -> None:
        """In a forked copy: let go of all that is the parent's, so that nothing that ends here ends it there."""
        self._resources.pop_all()
        self._hub.disown()
        self._lines.clear()
        self._fleet.disown()
        separate_after_fork(self.loop)

    def _life_over(self, life: Life, why: InstanceError | None) -> None:
        self._hub.forget(life)
        self._rings.pop(life, None)
        if (line := self._lines.pop(life, None)) is not None:
            line.end()  # who waits for its Blender wakes up
        self.dispatcher.life_over(life, why)

    def _free(self) -> None:
        self._resources.close()
        self._rings.clear()
        for line in self._lines.values():
            line.end()
        self._lines.clear()


_open = AtExit[Run](lambda run: run._end_at_exit())


def _disown_in_forked_child() -> None:
    global _process
    _process = os.getpid()
    for run in _open.living():
        run._disown()


os.register_at_fork(after_in_child=_disown_in_forked_child)
