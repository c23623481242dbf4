"""SyncStream: a fleet in a background thread with its own event loop, for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import Params, StreamConfig
from ..errors import ConfigError, StreamClosed
from .attached import run_of
from .bridge import Bridge, Channel
from .episode_pass import MAX_REPLAY, EpisodePass
from .frame import Frame
from .indices import Indices
from .loop_thread import LoopThread
from .passes import Pass
from .stats import StreamStats
from .sync_episode import SyncEpisode
from .sync_frames import SyncFrames


class SyncStream(Iterator[Frame]):
    """A BlenderStream for programs without asyncio. `BlenderStream(...).sync()` returns one:

        with BlenderStream(script="cube.py", length=100).sync() as frames:
            for frame in frames:
                ...

    Iterating over it is one pass over the config's own indices; `frames` begins others, and `render` makes a single
    sample. It may be used by several threads, each pass by one at a time, of the process that started it.

    Args:
        config: The options.
        state: From `state_dict`; iterating goes on there.
        first_instance: Number of the first instance, where several processes number theirs together.
    """

    def __init__(
        self, config: StreamConfig, state: Mapping[str, Any] | None = None, *, first_instance: int = 0
    ) -> None:
        self.config: StreamConfig = config
        self._run = run_of(config, first_instance=first_instance)
        self._source = Pass(config, state=state)
        self._own: SyncFrames | None = None
        self._own_channel = Channel(self._source)
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._opened = threading.Event()  # passes can be begun, or it is known why not
        self._thread = LoopThread(self._main, self._ended)
        self._bridge = Bridge(self._run, self._thread)

    # -- from any thread ----------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start the thread and the fleet, and return when the first Blender is ready.

        Args:
            wait: Whether to wait for that. Otherwise what goes wrong at the start, the passes raise.

        Raises:
            ConfigError: It was started before.
            AsyncblendError: As entering a BlenderStream does. Nothing is left running.
        """
        if self._thread.started or self._thread.closing:
            raise ConfigError("a stream can be started only once; make another one")
        self._thread.start()
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def wait_ready(self) -> None:
        """Wait until the first Blender is ready, or raise why there will be none.

        Raises:
            ConfigError: Nobody has started the stream.
        """
        self._wait_open()
        self._started.result()

    def __enter__(self) -> SyncStream:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __next__(self) -> Frame:
        """Wait for the next frame of the config's own pass, as `SyncFrames` does."""
        if self._own is None:
            own = SyncFrames(self._bridge, self._own_channel)
            own._finalizer.detach()  # it lives as long as this stream, which the finalizer would keep alive
            self._begin(self._own_channel)  # if Ctrl-C interrupts it, the next call goes on with the same channel
            self._own = own
        return next(self._own)

    def frames(
        self,
        indices: Indices | None = None,
        *,
        params: Params | None = None,
        ordered: bool | None = None,
        queue_size: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> SyncFrames:
        """Begin another pass over the warm fleet, as `BlenderStream.frames` does.

        Args:
            indices, params, ordered, queue_size: As `BlenderStream.frames` has them.
            state: From `state_dict` of a pass over the same indices; the samples delivered then are excluded. The params'
                own state goes back too, also of params that other passes share.

        Raises:
            AsyncblendError: As `BlenderStream.frames` raises, or because the fleet could not start.
        """
        self._wait_open()
        return self._frames(
            Pass(self.config, indices, params=params, ordered=ordered, queue_size=queue_size, state=state)
        )

    def render(self, index: int, params: Mapping[str, Any] | None = None) -> Frame:
        """Render one sample, and wait for its frame, as `BlenderStream.render` does."""
        self._wait_open()
        with self._frames(Pass.single(self.config, index, params)) as frames:
            return next(frames)

    def episode(
        self, index: int, params: Mapping[str, Any] | None = None, *, max_replay: int = MAX_REPLAY
    ) -> SyncEpisode:
        """Begin an episode that is stepped by its consumer, and wait for its first frame, as `BlenderStream.episode` does.

        Args:
            index, params, max_replay: As `BlenderStream.episode` has them.
        """
        episode = self.begin_episode(index, params, max_replay=max_replay)
        try:
            episode.receive()
        except BaseException:
            episode.close()
            raise
        return episode

    def begin_episode(
        self, index: int, params: Mapping[str, Any] | None = None, *, max_replay: int = MAX_REPLAY
    ) -> SyncEpisode:
        """Begin an episode, and do not wait for its first frame: its `receive` does. So several begin at once."""
        self._wait_open()
        source = EpisodePass(self.config, index, params, max_replay=max_replay, wants_line=True)
        return SyncEpisode(source, self._frames(source), self._bridge)

    def flush(self) -> int:
        """Give up the samples of the config's own pass that no Blender has begun, as `BlenderStream.flush` does."""
        self._wait_open()
        return self._bridge.call(lambda: self._run.dispatcher.flush(self._source))

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters of all passes and of the fleet, also after the end."""
        return self._bridge.call_or_now(self._run.stats)

    def state_dict(self) -> dict[str, Any]:
        """Return which samples of the config's own pass have been delivered, as plain data that JSON can hold."""
        return self._bridge.call_or_now(self._source.state_dict)

    def source(self) -> dict[str, Any]:
        """Return what the samples are a function of, but for params, as `BlenderStream.source` does.

        Raises:
            ConfigError: The script or the scene cannot be read.
            AsyncblendError: Why the `fleet` cannot be attached to.
        """
        if self.config.fleet is not None:
            self.wait_ready()
        return self._run.source()

    @property
    def consumer(self) -> str | None:
        """What takes the frames, as `verdict` names it in the log once a minute: "training", if nothing else was set.

        None: something that drops them at once, and waits by nature.
        """
        return self._run.consumer

    @consumer.setter
    def consumer(self, consumer: str | None) -> None:
        self._run.consumer = consumer

    @property
    def blender_version(self) -> str:
        """Blender's version, once an instance is ready; "" before, and where there is none."""
        return self._run.blender_version

    @property
    def usable(self) -> bool:
        """Whether passes can be begun: it is started, of this process, and its fleet has not ended."""
        return not self._run.forked and self._thread.alive and not self._run.ending

    def close(self) -> None:
        """Stop the fleet and the thread. Return when nothing of them is left. From any thread, also twice.

        From the event loop's own thread (a garbage collection there) it only begins to stop. A KeyboardInterrupt
        meanwhile kills the Blenders at once.
        """
        if self._run.forked:
            return  # a forked copy owns nothing
        for channel in list(self._bridge.channels):
            channel.drop()
        self._thread.close()

    def _frames(self, source: Pass) -> SyncFrames:
        channel = Channel(source)
        frames = SyncFrames(self._bridge, channel)  # if Ctrl-C interrupts the next line, its finalizer ends the pass
        self._begin(channel)
        return frames

    def _begin(self, channel: Channel) -> None:
        self._bridge.check_thread()
        self._wait_open()
        try:
            self._bridge.begin(channel)
        except StreamClosed:
            if self._started.done():
                self._started.result()  # if the start has failed, it says why
            raise

    def _wait_open(self) -> None:
        """Wait until passes can be begun, or it is known why not."""
        self._run.check_process()
        if not self._thread.started:
            if self._thread.closing:
                raise StreamClosed("the stream was closed")
            raise ConfigError("the stream is not started; use it in a `with` block")
        self._opened.wait()

    # -- in the event-loop thread -------------------------------------------------------------------------------

    def _ended(self, error: BaseException | None) -> None:
        cause = StreamClosed("the stream was closed")
        cause.__cause__ = error
        if not self._started.done():
            self._started.set_exception(error or cause)
        for channel in list(self._bridge.channels):
            channel.end(error if isinstance(error, Exception) else cause)
        self._opened.set()

    async def _main(self) -> None:
        try:
            await self._run.begin()
            if self._run.config is not self.config:
                self.config = self._run.config
                self._source.know_seed(self.config.seed)
            self._opened.set()
            await self._run.ready()
            self._started.set_result(None)
            await asyncio.Event().wait()  # until close cancels this task
        finally:
            # That the queues are closed is no end of the passes; `_ended` says why they end.
            for channel in self._bridge.channels:
                channel.source.queue.hand_to(None)
            await self._run.aclose()
