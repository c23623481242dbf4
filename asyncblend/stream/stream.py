"""BlenderStream: a fleet's frames in an asyncio program."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from ..aio import finish
from ..config import Params, StreamConfig, StreamOptions, resolve
from ..errors import ConfigError, StreamClosed
from .attached import run_of
from .clips import Clip
from .episode import Episode
from .episode_pass import MAX_REPLAY, EpisodePass
from .frame import Frame
from .frames import Batches, Collected, Frames
from .indices import Indices
from .passes import Pass
from .run import Run
from .stats import StreamStats

if TYPE_CHECKING:
    from ..recording.recorder import Recorder
    from .sync import SyncStream

_log = logging.getLogger("asyncblend")


class BlenderStream(AsyncIterator[Frame]):
    """Frames from a fleet of Blenders, as an asynchronous iterator:

        async with BlenderStream(script="cube.py", instances=2) as stream:
            async for frame in stream:
                ...

    Entering starts the fleet and returns when the first instance is ready. Leaving stops it, on every path, within
    `timeouts.stop` and a little. With `fleet`, entering attaches to one that runs already, and leaving gives back what
    that holds of this stream. A stream is entered once, in one event loop, and is not thread-safe; `sync` is for
    programs without asyncio. Several tasks may iterate; each frame goes to one of them.

    Iterating over the stream itself is one pass over the config's own indices. `frames` begins others over the same
    warm fleet, and `render` makes a single sample.

    Args:
        config: The options.
        options: StreamConfig's fields. They override the config's.

    Raises:
        ConfigError: An option is wrong.
    """

    def __init__(self, config: StreamConfig | None = None, **options: Unpack[StreamOptions]) -> None:
        self.config: StreamConfig = resolve(config, options)
        self._run = run_of(self.config)
        self._source = Pass(self.config)  # the config's own pass, begun when it is first iterated
        self._loaded: Mapping[str, Any] | None = None  # the state where that goes on
        self._frames: Frames | None = None
        self._closing: asyncio.Future[None] | None = None
        self._closed = False
        self._closers: list[Callable[[], Awaitable[BaseException | None]]] = []  # called when the fleet has ended
        self._deferred_error: BaseException | None = None  # of a recording whose loop had been left already
        self._recorder: Recorder[Frame] | None = None

    async def __aenter__(self) -> BlenderStream:
        """Start the fleet, and return when the first instance is ready.

        Raises:
            ConfigError: Script or scene do not exist, or the stream was entered before; or the `fleet` does not run, or
                makes other samples than the config says.
            BlenderNotFound: There is no Blender.
            InstanceExited, StartTimeout: A Blender died, or was not ready in time. Nothing is left running.
            FleetLost: The `fleet` has ended meanwhile.
            ForkedProcessError: This is a forked copy.
        """
        self._run.check_process()
        if self._entered():
            raise ConfigError("a BlenderStream can be entered only once; make another one")
        await self._run.begin()
        try:
            if self._closed:
                raise StreamClosed("the stream was closed")
            if self._run.config is not self.config:
                self.config = self._run.config
                self._source.know_seed(self.config.seed)
            await self._run.ready()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        if self._deferred_error is not None and error is None:
            raise self._deferred_error

    def __anext__(self) -> Coroutine[Any, Any, Frame]:
        """Return the next frame of the config's own pass, when it is awaited.

        Raises:
            StopAsyncIteration: All frames of a finite stream have been delivered.
            AsyncblendError: Why there are no more frames, after all good ones.
            ConfigError: The stream was not entered.
            StreamClosed: The stream was closed.
        """
        return self._own().__anext__()

    def frames(
        self,
        indices: Indices | None = None,
        *,
        params: Params | None = None,
        ordered: bool | None = None,
        queue_size: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Frames:
        """Begin another pass over the warm fleet, and return an asynchronous iterator over its frames.

        Several passes may run at once, and share the Blenders. Each has slots of its own, so one that nobody consumes
        stops by itself and holds up no other. Sample `i` is the same in every pass that gives it the same params.

        Args:
            indices: The samples to render: a range, or any other sequence or array of whole numbers from 0 on. An index
                that occurs twice is rendered twice. None: the config's own indices.
            params: As in StreamConfig. None: the config's. An iterator of this pass alone ends with it.
            ordered: Whether frames come in the order of `indices` instead of by arrival. None: as the config says.
            queue_size: Frames of this pass that may be rendering, in flight and queued at once. None: the config's.
            state: From `state_dict` of a pass over the same indices; the samples delivered then are excluded, and those
                that had params then get the same ones. The params' own state goes back, also of params that other passes
                share.

        Returns:
            An iterator with `stats()`, `state_dict()`, `flush()` and `aclose()`. It ends when all frames have been
            delivered; `aclose`, `async with` or closing the stream end it earlier.

        Raises:
            ConfigError: An argument is wrong, or the stream was not entered.
            StreamClosed: The stream was closed.
        """
        run = self._open()
        source = Pass(self.config, indices, params=params, ordered=ordered, queue_size=queue_size, state=state)
        return Frames(run, source)

    async def render(self, index: int, params: Mapping[str, Any] | None = None) -> Frame:
        """Render one sample and return its frame.

        The request is served before samples that no Blender has begun. Rendering the same index with the same params
        again gives the same arrays. In Cycles, pixels where a ray meets the edge between two triangles may differ in
        their last bits from one Blender to another.

        Args:
            index: The sample's index. It need not belong to the stream's own.
            params: Passed to the script as `task.params`. None: drawn as the stream does.

        Raises:
            SampleError: The script raised, or the sample killed its Blender too often.
            ConfigError: An argument is wrong, or the stream was not entered.
            StreamClosed: The stream was closed before the frame came.
        """
        run = self._open()
        async with Frames(run, Pass.single(self.config, index, params)) as frames:
            return await anext(frames)

    async def episode(
        self, index: int, params: Mapping[str, Any] | None = None, *, max_replay: int = MAX_REPLAY
    ) -> Episode:
        """Begin an episode that is stepped by its consumer, and return it with its first frame.

        The script's sample function is a generator: each `params = yield values` gives a frame, and waits for the
        params of the next one. The episode has one Blender for itself, and waits until one is free for it.

        Args:
            index: The sample's index.
            params: Passed to the script as `task.params`. None: drawn as the stream does.
            max_replay: If its Blender dies, the episode is made again from its beginning, unless more steps than this
                have been made. Until then the params of the steps are kept in memory.

        Raises:
            SampleError: The script raised, or the sample killed its Blender too often.
            ConfigError: An argument is wrong, or the stream was not entered; or its `fleet` is shared with others.
            StreamClosed: The stream was closed before the frame came.
        """
        episode = Episode(self._open(), EpisodePass(self.config, index, params, max_replay=max_replay))
        try:
            await episode.receive()
        except BaseException:
            await episode.aclose()
            raise
        return episode

    def flush(self) -> int:
        """Give up the samples of the stream's own pass that no Blender has begun, and draw their params anew.

        Changed params take hold at once instead of after what was leased before.

        Returns:
            The number of samples given up. Each of them is rendered later, with its new params.
        """
        return self._open().dispatcher.flush(self._source)  # not _own, which would begin the pass

    def batches(self, size: int, *, drop_last: bool = False, ragged: Collection[str] = ()) -> Batches:
        """Iterate over the stream in batches, as `Frames.batches` does."""
        return self._own().batches(size, drop_last=drop_last, ragged=ragged)

    def episodes(self) -> Collected[list[Frame]]:
        """Iterate over the stream in whole episodes, as `Frames.episodes` does."""
        return self._own().episodes()

    def clips(self, length: int, stride: int = 1) -> Collected[Clip]:
        """Iterate over the stream in clips of `length` frames, as `Frames.clips` does."""
        return self._own().clips(length, stride)

    def record(
        self,
        folder: str | os.PathLike[str],
        *,
        length: int | None = None,
        image_format: str = "png",
        quality: int | None = None,
        shard_size: int | str = 100,
    ) -> Recorder[Frame]:
        """Record the samples into a folder of WebDataset shards:

            async with BlenderStream(script="cube.py", length=1000) as stream:
                await stream.record("cubes")

        To train and record at once, iterate: `async for frame in stream.record("cubes")`. When that loop is left
        early, closing the stream makes the last shard whole. A stream that is not entered is entered, and closed at
        the end. Needs `pip install "asyncblend[record]"`.

        An episode is recorded as one sample, a Clip of all its frames.

        Samples that the folder has already are not rendered again. A crash of this program costs the samples of the
        unfinished shard, which are rendered again by the next run.

        Args:
            folder: Where to record; made if it is missing.
            length: Samples in all, with those that are there already. None: the stream's.
            image_format: "png", or "jpeg" for `image` and values whose name begins with that. Other images, with three
                or four channels of uint8, are PNG; all other arrays are gzipped npy.
            quality: Of JPEG, from 1 to 100. None: 95.
            shard_size: Samples in a shard; or bytes, as "500MB".

        Raises:
            ConfigError: An option is wrong. What else can go wrong, the iteration raises.
        """
        from ..recording.codec import Images
        from ..recording.recorder import Recorder  # not above: most streams are not recorded
        from ..recording.writer import ShardSize

        images = Images(image_format, quality)
        size = ShardSize(shard_size)
        recorder = Recorder(self, self._entered, folder, length=length, images=images, shard_size=size)
        if self._recorder is not None and not self._recorder.closed:
            raise ConfigError("the stream is being recorded already; close that recording with its aclose()")
        self._recorder = recorder
        self.consumer = "recording"
        self._closers = [recorder.stream_closed]
        return recorder

    def sync(self) -> SyncStream:
        """Return the same stream for programs without asyncio, which need not be entered asynchronously:

            with BlenderStream(script="cube.py", length=100).sync() as frames:
                for frame in frames:
                    ...

        Raises:
            ConfigError: The stream was entered already.
        """
        from .sync import SyncStream  # not above: it is another way to the same engine

        if self._entered():
            raise ConfigError("this BlenderStream was entered already; make another one for sync()")
        stream = SyncStream(self.config, self._loaded)
        stream.consumer = self.consumer
        return stream

    def stats(self) -> StreamStats:
        """Return a snapshot of the counters of all passes and of the fleet, also before the start and after the end."""
        return self._run.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return which samples of the stream's own pass have been delivered, as plain data that JSON can hold.

        The params that other samples have already are part of it, and the params' own state, as StreamConfig says.
        """
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved. Call it before the stream is entered.

        Raises:
            ConfigError: It is no state, or one of another stream (seed, start, length or shard differ), or the params
                cannot go on from it; or the stream was entered already.
        """
        if self._entered():
            raise ConfigError("load_state_dict comes before the stream is entered")
        if not isinstance(state, Mapping):
            raise ConfigError(f"not a saved state of a stream: {state!r:.200}")
        self._source, self._loaded = Pass(self.config, state=state), state

    def source(self) -> dict[str, Any]:
        """Return what the samples are a function of, but for params: seed, script, scene and arguments, as JSON values.

        With `fleet`, they are known once the stream is entered.

        Raises:
            ConfigError: The script or the scene cannot be read.
        """
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

    async def aclose(self) -> None:
        """Stop the fleet. Return when nothing of it is left. May be called at any time, also twice."""
        self._closed = True
        if not self._run.opened or self._run.forked:
            return
        if self._run.ended and self._run.loop.is_closed():
            return  # asyncio.run has cancelled it
        self._run.check_loop()
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.ensure_future(self._close())
        await finish(self._closing)

    async def _close(self) -> None:
        await self._run.aclose()
        for close in self._closers:
            if (error := await close()) is not None:
                self._deferred_error = error
                _log.error("%s", error)

    def _entered(self) -> bool:
        return self._run.opened or self._closed

    def _own(self) -> Frames:
        """Return the config's own pass; begin it at the first call."""
        run = self._open()
        if self._frames is None:
            self._frames = Frames(run, self._source)
        return self._frames

    def _open(self) -> Run:
        self._run.check_process()
        if self._closed:
            raise StreamClosed("the stream was closed")
        if not self._run.opened:
            raise ConfigError("the stream is not entered; use it as `async with`")
        return self._run

    def __del__(self) -> None:
        run = self.__dict__.get("_run")  # there is none if an option was wrong
        if run is not None and run.opened and not run.ended and not run.forked:
            warnings.warn(f"{self!r} was not closed; use it as `async with`", ResourceWarning, stacklevel=1)
