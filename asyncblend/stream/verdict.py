"""verdict: one line that says who is the bottleneck, and what to do about it. Pure."""

from __future__ import annotations

from .stats import StreamStats

_MUCH = 0.2  # the share of its time in which somebody may wait without being told of it
_LARGE = 0.4  # the share of a frame's time from which on a part of it is worth advice


def verdict(stats: StreamStats | None, consumer: str | None = "training") -> str:
    """Return who waited for whom over the latest minute, and what to do about it, in one line.

    Such as "rendering is the bottleneck: training waited 82 % of the time; a frame takes 1.2 s: 91 % to render, 5 % to
    capture, 4 % in the rest of the script; add instances (4 now) or cores, or lower the resolution or the samples".

    Args:
        stats: What `stats()` of a stream or a dataset returns. None: of a dataset that was not iterated in this process.
        consumer: What takes the frames, as a word of this line. None: something that drops them at once, and waits by
            nature.
    """
    if stats is None:
        return "nothing was measured in this process: iterate the dataset first, without workers (num_workers=0)"
    if not stats.window:
        return "no frame has come yet"
    if consumer is None:
        return _alone(stats)
    waited, idle = stats.waiting, stats.idle
    if max(waited, idle) < _MUCH:
        return f"balanced: {consumer} waited {_percent(waited)} of the time, and the Blenders {_percent(idle)}"
    if min(waited, idle) >= _MUCH:
        return (
            f"{consumer} and rendering wait for each other: {consumer} waited {_percent(waited)} of the time, and the "
            f"Blenders {_percent(idle)}; let more be rendered ahead: raise queue_size, leave out `ordered`, ask for several "
            f"samples at once"
        )
    if waited > idle:
        return f"rendering is the bottleneck: {consumer} waited {_percent(waited)} of the time{_frame(stats)}; {_faster(stats)}"
    fewer = f"fewer instances would do ({len(stats.state)} now), or " if len(stats.state) > 1 else ""
    return (
        f"{consumer} is the bottleneck: the Blenders waited {_percent(idle)} of the time, and the queue was "
        f"{_percent(stats.occupancy)} full; {fewer}render more for each frame"
    )


def _alone(stats: StreamStats) -> str:
    """Say how fast rendering is by itself."""
    instances = len(stats.state)
    rate = f"{stats.rate:,.0f}" if stats.rate >= 100 else f"{stats.rate:.3g}"
    text = f"rendering alone: {rate} frames/s of {instances} instance{'s' * (instances != 1)}"
    if stats.idle >= _MUCH:
        return f"{text}, which waited {_percent(stats.idle)} of the time: this program cannot take more{_frame(stats)}"
    return f"{text}, so a training loop that takes fewer never waits{_frame(stats)}"


def _frame(stats: StreamStats) -> str:
    """Say what a frame's time goes to, as far as it is known."""
    if not stats.seconds_sample.mean:
        return ""
    text = f"; a frame takes {_seconds(stats.seconds_sample.mean)}"
    if not stats.seconds_render.mean:
        return text
    render, capture = _parts(stats)
    rest = _percent(max(0.0, 1 - render - capture))
    return f"{text}: {_percent(render)} to render, {_percent(capture)} to capture, {rest} in the rest of the script"


def _faster(stats: StreamStats) -> str:
    """Say how rendering would become faster."""
    down = sum(state in ("starting", "backoff", "failed") for state in stats.state.values())
    add = f"add instances ({len(stats.state)} now{f', {down} of them down' * (down > 0)}) or cores"
    if not stats.seconds_render.mean:
        return f"{add}, or make the script faster"
    render, capture = _parts(stats)
    if capture >= _LARGE:
        return f"ask bl.render for fewer labels, or see bl.last_render() for why a file was needed; {add}"
    if 1 - render - capture >= _LARGE:
        return f"make the script faster outside of bl.render; {add}"
    return f"{add}, or lower the resolution or the samples"


def _parts(stats: StreamStats) -> tuple[float, float]:
    """Return which share of a frame's time went to rendering and to capture, for the frames that called `bl.render`."""
    whole = max(stats.seconds_sample.mean, stats.seconds_render.mean + stats.seconds_capture.mean)
    return stats.seconds_render.mean / whole, stats.seconds_capture.mean / whole


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
