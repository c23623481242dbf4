"""What is said of who is the bottleneck."""

from __future__ import annotations

from typing import Any

import pytest

from asyncblend import StreamStats, verdict
from asyncblend.stream.timing import Spread

COUNTS = ("delivered", "rendering", "queued", "skipped", "restarts", "recycled", "duplicates", "stale")
NONE: dict[str, Any] = dict.fromkeys((*COUNTS, "bad_messages", "refused"), 0)


def stats(sample: float = 0.0, render: float = 0.0, capture: float = 0.0, **timed: Any) -> StreamStats:
    """Return statistics of four instances that render, with frames that took so many seconds."""
    spreads = {
        f"seconds_{name}": Spread(*3 * [s])
        for name, s in zip(("sample", "render", "capture"), (sample, render, capture), strict=True)
    }
    given = {"window": 60.0, "frames": {}, "state": dict.fromkeys(range(4), "ready"), **spreads, **timed}
    return StreamStats(**NONE, **given)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        pytest.param({"window": 0.0}, "no frame has come yet", id="before the first frame"),
        pytest.param(
            {"waiting": 0.82, "sample": 1.2, "render": 1.08, "capture": 0.06},
            "rendering is the bottleneck: training waited 82 % of the time; a frame takes 1.2 s: 90 % to render, 5 % to "
            "capture, 5 % in the rest of the script; add instances (4 now) or cores, or lower the resolution or the samples",
            id="rendering",
        ),
        pytest.param(
            {"waiting": 0.5, "sample": 0.02, "render": 0.008, "capture": 0.01},
            "rendering is the bottleneck: training waited 50 % of the time; a frame takes 20 ms: 40 % to render, 50 % to "
            "capture, 10 % in the rest of the script; ask bl.render for fewer labels, or see bl.last_render() for why a "
            "file was needed; add instances (4 now) or cores",
            id="capture",
        ),
        pytest.param(
            {"waiting": 0.5, "sample": 1.0, "render": 0.2, "capture": 0.1},
            "rendering is the bottleneck: training waited 50 % of the time; a frame takes 1 s: 20 % to render, 10 % to "
            "capture, 70 % in the rest of the script; make the script faster outside of bl.render; add instances (4 now) "
            "or cores",
            id="the script",
        ),
        pytest.param(
            {"waiting": 0.99, "sample": 0.3, "state": {0: "ready", 1: "backoff", 2: "failed", 3: "idle"}},
            "rendering is the bottleneck: training waited 99 % of the time; a frame takes 0.3 s; add instances (4 now, 2 "
            "of them down) or cores, or make the script faster",
            id="instances that are down",
        ),
        pytest.param(
            {"idle": 0.75, "occupancy": 0.97},
            "training is the bottleneck: the Blenders waited 75 % of the time, and the queue was 97 % full; fewer instances "
            "would do (4 now), or render more for each frame",
            id="training",
        ),
        pytest.param(
            {"idle": 0.1, "waiting": 0.03},
            "balanced: training waited 3 % of the time, and the Blenders 10 %",
            id="balanced",
        ),
        pytest.param(
            {"idle": 0.6, "waiting": 0.7},
            "training and rendering wait for each other: training waited 70 % of the time, and the Blenders 60 %; let more "
            "be rendered ahead: raise queue_size, leave out `ordered`, ask for several samples at once",
            id="each other",
        ),
    ],
)  # fmt: skip
def test_who_waits_and_what_to_do(of: dict[str, Any], said: str) -> None:
    """The line names who waits, how long, where a frame's time goes, and what helps."""
    assert verdict(stats(**of)) == said


def test_advice_can_be_followed() -> None:
    """There are no fewer instances than one, and no part of a frame takes less than nothing."""
    alone = verdict(stats(idle=0.5, state={0: "idle"}))
    assert (
        alone
        == "training is the bottleneck: the Blenders waited 50 % of the time, and the queue was 0 % full; render more for each frame"
    )
    rounded = verdict(stats(waiting=0.5, sample=0.7, render=0.1 + 0.2, capture=0.4 + 1e-9))
    assert "0 % in the rest of the script" in rounded
    assert "-0 %" not in rounded


def test_a_consumer_has_a_name() -> None:
    """What takes the frames need not be a training loop."""
    assert verdict(stats(idle=0.5), "recording").startswith("recording is the bottleneck: the Blenders waited 50 %")


def test_no_statistics_are_said() -> None:
    """A dataset has none in a process that has not iterated it, such as the main one where workers do."""
    assert verdict(None).startswith("nothing was measured in this process")


def test_who_drops_frames_is_no_training() -> None:
    """It waits by nature, so that it waited says nothing; how fast rendering is by itself does."""
    alone = stats(waiting=0.99, rate=12.34, sample=0.3)
    assert verdict(alone, None) == (
        "rendering alone: 12.3 frames/s of 4 instances, so a training loop that takes fewer never waits; a frame takes 0.3 s"
    )
    idle = verdict(stats(waiting=0.5, idle=0.4, rate=14_000, state={0: "idle"}), None)
    assert (
        idle
        == "rendering alone: 14,000 frames/s of 1 instance, which waited 40 % of the time: this program cannot take more"
    )


def test_a_plain_dict_has_all_numbers() -> None:
    """TensorBoard and Weights & Biases take numbers by name: no text, nothing nested, the same names in each call."""
    found = stats(0.5, frames={0: 3, 1: 4}, state={0: "ready", 1: "backoff"}, instance_restarts={0: 0, 1: 2}).as_dict()
    assert all(type(value) in (int, float) for value in found.values())
    assert found["asyncblend/frames/1"] == 4
    assert found["asyncblend/instance_restarts/1"] == 2
    assert (found["asyncblend/state/ready"], found["asyncblend/state/idle"]) == (1, 0)
    assert found["asyncblend/seconds_sample/p90"] == 0.5
    other = stats(frames={0: 0, 1: 0}, state={0: "new", 1: "new"}, instance_restarts={0: 0, 1: 0})
    assert other.as_dict().keys() == found.keys()
    assert {name.removeprefix("asyncblend/") for name in found} == set(
        stats(frames={0: 3, 1: 4}, state={0: "ready", 1: "backoff"}, instance_restarts={0: 0, 1: 2}).as_dict(prefix="")
    )
