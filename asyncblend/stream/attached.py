"""AttachedRun: the engine of a stream whose Blenders are those of a fleet that runs already."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from ..aio import apart, separate_after_fork
from ..config import StreamConfig
from ..errors import ConfigError
from ..recording.about import source
from ..warm import connection  # noqa: F401  it must be there before any fork, which it notices
from .dispatcher import Dispatcher
from .run import Run

if TYPE_CHECKING:
    from ..warm.attachment import Attachment
    from ..warm.told import Welcome

__all__ = ["AttachedRun", "run_of"]

_SAMPLES = ("script", "scene", "script_args", "seed", "blender", "factory_startup", "autoexec")
"""What makes the samples."""


def run_of(config: StreamConfig, *, first_instance: int = 0) -> Run:
    """Return the engine for a config: a fleet of its own, or a part in the one that it names."""
    return Run(config, first_instance=first_instance) if config.fleet is None else AttachedRun(config)


class AttachedRun(Run):
    """A program's part in a fleet that stays warm. What `Run` says of Blenders, it says of those of the fleet.

    Closing it gives back what is leased, and leaves the fleet as it is.
    """

    _attachment: Attachment | None = None
    _beginning = False

    async def begin(self) -> None:
        """Find the fleet, and take from it what the config leaves open. Passes may be begun from now on.

        Raises:
            ConfigError: There is no such fleet, or it is of something else than the config says.
            ForkedProcessError: This process is a forked copy of one that was connected to Ray.
            FleetLost: It has ended meanwhile.
            AsyncblendError: Why it has failed.
            ModuleNotFoundError: Ray is not installed.
        """
        if self._beginning:
            raise ConfigError("a BlenderStream can be entered only once; make another one")
        self._beginning = True
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._ready = self.loop.create_future()
        attaching = apart(self._attach)
        try:
            attachment = self._attachment = await asyncio.shield(attaching)
        except BaseException as error:
            self._beginning = False
            if isinstance(error, asyncio.CancelledError):
                attaching.add_done_callback(_give_up)  # the thread goes on
            raise
        self._dispatcher = Dispatcher(self.config, attachment, attachment, {})
        self._serving = asyncio.create_task(self._serve(), name="asyncblend attached")  # aclose awaits it
        self._keep()
        self._ready.set_result(None)

    @property
    def blender_version(self) -> str:
        """Blender's version; "" before, and where there is none."""
        return "" if self._attachment is None else self._attachment.welcome.status.blender

    def source(self) -> dict[str, Any]:
        """Return what the fleet's samples are a function of, but for params, as JSON values.

        Raises:
            ConfigError: `begin` comes first.
        """
        if self._attachment is None:
            raise ConfigError(f"what fleet {self.config.fleet!r} is made of is known when the stream is entered")
        return dict(self._attachment.welcome.source)

    def _attach(self) -> Attachment:
        try:
            from ..warm.attachment import Attachment
        except ImportError as error:
            raise ModuleNotFoundError(
                f'fleet={self.config.fleet!r} needs Ray ({error}); type: pip install "asyncblend[ray]"', name=error.name
            ) from None
        assert self.config.fleet is not None, "run_of looks at it"
        attachment = Attachment(self.config.fleet, self.config.timeouts)
        try:
            self.config: StreamConfig = _completed(self.config, attachment.welcome)
        except BaseException:
            attachment.give_up()
            raise
        return attachment

    async def _run(self) -> None:
        assert self._attachment is not None, "begin comes first"
        try:
            await self._attachment.run(self.dispatcher)
        finally:
            await self._attachment.leave()

    def _kill(self) -> None:
        """The fleet notices by itself that this program is gone."""

    def _disown(self) -> None:
        """In a forked copy: leave the loop to the parent."""
        separate_after_fork(self.loop)


def _give_up(attaching: asyncio.Future[Attachment]) -> None:
    if not attaching.cancelled() and attaching.exception() is None:
        attaching.result().give_up()


def _completed(config: StreamConfig, welcome: Welcome) -> StreamConfig:
    """Return a config with what the fleet has and the config leaves open.

    Raises:
        ConfigError: It says something else than the fleet's, or its files cannot be read.
    """
    default = {field.name: field.default for field in dataclasses.fields(StreamConfig)}
    given = [name for name in _SAMPLES if config.script or getattr(config, name) != default[name]]
    own, theirs = (
        {**{name: getattr(one, name) for name in _SAMPLES}, **made_of}
        for one, made_of in ((config, source(config)), (welcome.config, dict(welcome.source)))
    )
    for name in given:
        content = f"{name}_sha256"
        same = own[content] == theirs[content] if content in own else str(own[name]) == str(theirs[name])
        if not same:
            shown, here = (
                f"{one[name]!r}" + (f" (SHA-256 {one[content]!s:.12})" if content in one else "")
                for one in (theirs, own)
            )
            raise ConfigError(
                f"fleet {config.fleet!r} has {name}={shown}, and this config has {here}; leave `script` and {name} out, "
                f"for those of the fleet, or start another fleet with them"
            )
    shared = {name: getattr(welcome.config, name) for name in (*_SAMPLES, "instances")}
    return dataclasses.replace(config, **shared)
