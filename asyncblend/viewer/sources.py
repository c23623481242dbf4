"""Sources: where moments come from. Each is a generator that looks at `stop` twice a second, and ends when it is set."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator

import numpy as np

from ..config import StreamConfig
from ..errors import StreamClosed
from ..recording import Recording
from ..stream.frame import Frame
from ..stream.sync import SyncStream
from ..stream.sync_frames import SyncFrames
from ..tap.attached import Attached
from ..tap.moment import Moment
from ..tap.tap import Tap

Moments = Generator[Moment, None, None]

_LOOK = 0.5  # seconds without a frame, after which there is a moment all the same
_PACE = 0.1  # seconds from one frame to the next, where not every frame is shown: nobody sees more than ten a second


def of_stream(
    stream: SyncStream, config: StreamConfig, stop: threading.Event, seen: Callable[[Frame], None], *, every: bool
) -> Moments:
    """Yield what a stream gives, and what it does while it gives nothing. The stream is started, and closed at the end.

    Args:
        stream: It has this config.
        seen: Called with every frame.
        every: Whether each frame is shown, for which the stream waits. Otherwise it renders as fast as it can, and what
            comes while a frame is drawn is not shown.

    Raises:
        AsyncblendError: As entering and iterating a BlenderStream raises.
    """
    tap = Tap(stream.stats, config.queue_size)
    with contextlib.ExitStack() as stack:
        stack.callback(tap.end)
        stack.callback(stream.close)
        stream.start(wait=False)
        frames = stream.frames()
        if every:
            yield from _each(frames, tap, stop, seen)
        else:
            yield from _newest(frames, tap, stop, seen)


def of_recording(
    recording: Recording, stop: threading.Event, *, shuffled: bool, seed: int, length: int | None
) -> Moments:
    """Yield each frame of a recording.

    Args:
        shuffled: Whether its samples come in a random order instead of by index.
        seed: Of that order.
        length: How many samples; None for all.
    """
    order = np.random.default_rng(seed).permutation(len(recording)) if shuffled else np.arange(len(recording))
    tap = Tap()
    with contextlib.ExitStack() as stack:
        stack.callback(tap.end)
        for sample in recording.at(order[:length]):
            for step in range(sample.steps):
                if stop.is_set():
                    return
                frame = Frame(
                    sample.frame(step),
                    index=sample.index,
                    instance=sample.instance,
                    params=sample.params,
                    step=step,
                    last=step == sample.steps - 1,
                )
                yield tap.take(frame)


def of_training(address: str, stop: threading.Event) -> Moments:
    """Yield what is to be seen of a training that runs in another process, until it ends.

    Args:
        address: As `Attached` takes it.

    Raises:
        ConfigError: There is none.
        ProtocolError: It runs another version of asyncblend.
    """
    with Attached(address) as attached:
        while not stop.is_set() and not attached.silent:
            began = time.monotonic()
            if (moment := attached.look(_LOOK)) is not None:
                yield moment
                if moment.ended:
                    return
                stop.wait(began + _PACE - time.monotonic())


def _each(frames: SyncFrames, tap: Tap, stop: threading.Event, seen: Callable[[Frame], None]) -> Moments:
    while not stop.is_set():
        try:
            frame = frames.get(_LOOK)
        except TimeoutError:
            yield tap.look(0)
            continue
        except StreamClosed:
            if frames.finished:
                return
            raise
        seen(frame)
        yield tap.take(frame)


def _newest(frames: SyncFrames, tap: Tap, stop: threading.Event, seen: Callable[[Frame], None]) -> Moments:
    errors: list[Exception] = []

    def consume() -> None:
        try:
            for frame in tap.over(frames):
                seen(frame)
        except Exception as error:
            errors.append(error)
        finally:
            tap.end()

    consumer = threading.Thread(target=consume, name="asyncblend view consumes", daemon=True)
    consumer.start()
    try:
        ended = False
        while not ended and not stop.is_set():
            began = time.monotonic()
            moment = tap.look(_LOOK)
            ended = moment.ended
            yield moment
            stop.wait(began + _PACE - time.monotonic())
    finally:
        frames.close()
        consumer.join()
    if errors and not stop.is_set():
        raise errors[0]
