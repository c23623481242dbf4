"""RemoteBlender: a Blender on another machine, as the fleet knows one on its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError

from ..aio import finish
from ..errors import InstanceError
from ..fleet.log import Log
from ..fleet.process import ask_to_end
from ..warm.session import Session
from ..wire.launch import Report
from .keeper import Ended

_SIGKILL = 9
_PATIENCE = 5.0  # seconds that a node has to say what became of a Blender that was killed, and to clean up

_log = logging.getLogger("asyncblend")


class RemoteBlender:
    """A Blender that a `Keeper` has launched. `ChildProcess` says what each call means.

    Args:
        session: This program's connection to the cluster.
        actor: The Keeper.
        node: The id of its node.
        on_silence: Called if the node does not answer any more.
        kept_log: The file that what it wrote is added to at its end. None: nowhere.
    """

    def __init__(
        self, session: Session, actor: Any, node: str, on_silence: Callable[[], None], kept_log: Path | None
    ) -> None:
        self.machine = node
        self._session, self._actor, self._on_silence, self._kept_log = session, actor, on_silence, kept_log
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[Ended] = self._loop.create_future()
        self._giving_up: asyncio.TimerHandle | None = None
        self._stopped = False
        self._answer: concurrent.futures.Future[Ended] = actor.ended.remote().future()
        self._answer.add_done_callback(self._on_answer)

    @property
    def log(self) -> RemoteBlender:
        """What it wrote: known when it has ended."""
        return self

    def tail(self) -> str:
        """Return the last lines of its output."""
        return self._exited.result().tail if self._exited.done() else ""

    def trim(self) -> None:
        """Nothing: its node keeps the log small."""

    def report(self) -> Report:
        """Return what it left for the host."""
        return self._exited.result().report if self._exited.done() else Report()

    async def wait(self) -> int:
        """Wait for its end, and return the exit status."""
        return (await asyncio.shield(self._exited)).status

    def kill(self) -> None:
        """Kill it, and all that it started. If its node does not answer, it is lost, and will end itself."""
        if self._stopped or self._exited.done() or self._giving_up is not None or self._loop.is_closed():
            return  # where the loop is closed, it dies with this program
        if not self._session.lasts:
            self._lose("this program has left Ray")
            return
        self._actor.kill.remote()
        self._giving_up = self._loop.call_later(_PATIENCE, self._give_up)

    def see_dead(self) -> None:
        """Nothing: it dies with this program, as its keeper does."""

    def disown(self) -> None:
        """In a forked copy of the host: leave it alone from now on."""
        self._stopped = True

    async def stop(self, ask: Callable[[], None], grace: float) -> None:
        """Have it end. Return when it has, or when its node does not answer."""
        if self._stopped:
            return
        try:
            await ask_to_end(self._exited, ask, grace)
        finally:
            self.kill()
            await finish(self._clean())

    async def install(self, report: Report) -> None:
        """Install what its Python lacks, on its node, when it has ended.

        Raises:
            InstanceError: That failed, or the node was lost meanwhile.
        """
        installed = asyncio.wrap_future(self._actor.install.remote(report).future())
        try:
            await installed
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise InstanceError(f"the node was lost while packages were installed: {error}") from None
        finally:
            await finish(self._close())

    async def _clean(self) -> None:
        await self.wait()
        self._stopped = True
        # One that lacks packages has yet to install them. If nobody asks for that, it ends with its last handle.
        if self.report().packages is None:
            await self._close()

    async def _close(self) -> None:
        """Have the keeper remove what is left there, and end it."""
        if self._session.lasts and not self.report().lost:
            closed = asyncio.wrap_future(self._actor.close.remote().future())
            await asyncio.wait([closed], timeout=_PATIENCE)
            if not closed.cancel():
                closed.exception()  # it has died meanwhile, which removes all as well
        self._session.end(self._actor)

    def _on_answer(self, answer: concurrent.futures.Future[Ended]) -> None:
        """In a thread of Ray's."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._note, answer)

    def _note(self, answer: concurrent.futures.Future[Ended]) -> None:
        if (error := answer.exception()) is not None:
            self._lose(f"its keeper has died: {str(error).strip()}")
        elif not self._exited.done():
            self._set_exited(answer.result())

    def _give_up(self) -> None:
        if self._answer.done():  # while this loop stood still
            self._note(self._answer)
        elif not self._exited.done():
            self._on_silence()
            self._lose(f"its node has not answered for {_PATIENCE:g} s")

    def _lose(self, why: str) -> None:
        if not self._exited.done():
            self._set_exited(Ended(-_SIGKILL, "", Report(lost=why)))

    def _set_exited(self, ended: Ended) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        if self._kept_log is not None and ended.log:
            try:
                self._kept_log.parent.mkdir(parents=True, exist_ok=True)
                with open(self._kept_log, "ab") as file:
                    file.write(ended.log)
                Log(self._kept_log).trim()
            except OSError as error:
                _log.warning("Cannot keep the log of a Blender: %s", error)
        self._exited.set_result(ended)
