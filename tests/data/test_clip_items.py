"""Items of a dataset that are clips: their axes, which ones there are, and going on in mid-episode."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import asyncblend as ab

from .conftest import Loading

Make = Callable[..., ab.BlenderDataset]
EPISODE = """
import numpy as np
def sample(task):
    for step in range(4 + 2 * (task.index % 2)):
        yield {"image": np.full((3, 5, 3), 10 * task.index + step, np.uint8), "boxes": np.zeros((step, 4), np.float32)}
"""
STEPS = {index: 4 + 2 * (index % 2) for index in range(4)}


def clips_of(item: Any) -> list[tuple[int, ...]]:
    """Return the values of the frames of each clip in an item, which is one clip or a batch of them."""
    values = item["image"][..., 0, 0, 0]
    return [tuple(clip) for clip in values.reshape(-1, values.shape[-1]).tolist()]


def expected(length: int, stride: int = 1) -> list[tuple[int, ...]]:
    """Return the same of all clips of four episodes: each begins after the last frame of the one before."""
    span = (length - 1) * stride + 1
    return [
        tuple(range(10 * index + first, 10 * index + first + span, stride))
        for index, steps in STEPS.items()
        for first in range(0, steps - span + 1, span)
    ]


def test_an_item_has_a_time_axis(make: Make) -> None:
    """It is T x H x W x C, and what differs in its shape from frame to frame is a list of as many."""
    dataset = make(EPISODE, length=4, clip=4, ordered=True)
    items = list(dataset)
    assert [clip for item in items for clip in clips_of(item)] == expected(4)
    for item in items:
        assert item["image"].shape == (4, 3, 5, 3)
        assert item["image"].dtype == torch.uint8
        assert [len(boxes) for boxes in item["boxes"]] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="clips has no len"):
        len(dataset)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("length", "stride"), [(2, 1), (2, 2), (3, 1)])
def test_each_clip_comes_once(length: int, stride: int, workers: int, make: Make) -> None:
    """In batches, with and without workers, which share the episodes out."""
    with Loading(make(EPISODE, length=4, clip=length, clip_stride=stride, batch_size=2), workers) as loading:
        batches = list(loading)
    assert all(batch["image"].shape[1:] == (length, 3, 5, 3) for batch in batches)
    assert sorted(clip for batch in batches for clip in clips_of(batch)) == sorted(expected(length, stride))


@pytest.mark.parametrize("stop", range(0, 11, 2))
@pytest.mark.exhaustive
def test_it_goes_on_where_it_stopped(stop: int, make: Make) -> None:
    """What came before a stop and what comes after it are all clips once, also if that is in the middle of an episode."""
    dataset = make(EPISODE, length=4, clip=2)
    iterator = iter(dataset)
    before = [clip for _ in range(stop) for clip in clips_of(next(iterator))]
    state = json.loads(json.dumps(dataset.state_dict()))
    del iterator
    again = make(EPISODE, length=4, clip=2)
    again.load_state_dict(state)
    after = [clip for item in again for clip in clips_of(item)]
    assert sorted(before + after) == sorted(expected(2))


def test_a_clip_longer_than_an_episode(make: Make) -> None:
    """No item comes of it, and the error says how long the episode is."""
    with pytest.raises(ab.ConfigError, match=r"4"):
        list(make(EPISODE, length=1, clip=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, "clip must be a whole number, at least 1; got 0"),
        ({"clip": 2.5}, "clip must be a whole number, at least 1; got 2.5"),
        ({"clip": True}, "clip must be a whole number, at least 1; got True"),
        ({"clip": 2, "clip_stride": 0}, "clip_stride must be a whole number, at least 1; got 0"),
        ({"clip_stride": 2}, "clip_stride goes with clip; got clip_stride=2 without it"),
        ({"clip": None, "clip_stride": "x"}, "clip_stride goes with clip; got clip_stride='x' without it"),
    ],
)
def test_wrong_clips_are_refused(options: dict[str, Any], message: str, make: Make) -> None:
    """The message has the option and the value."""
    with pytest.raises(ab.ConfigError, match=f"^{message}"):
        make(EPISODE, **options)


def test_a_loader_makes_batches_of_clips(make: Make) -> None:
    """PyTorch's own loader stacks them: B x T x H x W x C."""
    body = EPISODE.replace(', "boxes": np.zeros((step, 4), np.float32)', "")
    batches = list(DataLoader(make(body, length=4, clip=4, ordered=True), batch_size=4))
    assert [tuple(batch["image"].shape) for batch in batches] == [(4, 4, 3, 5, 3)]
    np.testing.assert_array_equal(batches[0]["image"][:, :, 0, 0, 0], expected(4))
