"""Curriculum: weights from losses, and what it draws, remembers, saves and refuses."""

from __future__ import annotations

import collections
import json
import math
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

import asyncblend as ab

BINS: dict[str, list[Any]] = {"distance": [(2, 4), (4, 8), (8, 16)], "kind": ["box", {"of": [1]}]}


def drawn(curriculum: ab.Curriculum, count: int = 60, first: int = 0) -> list[Any]:
    return [curriculum(index) for index in range(first, first + count)]


def fed(curriculum: ab.Curriculum, loss: Any, count: int = 60, first: int = 0) -> None:
    """Draw samples, and tell the loss of each, which `loss` has of its params."""
    each = drawn(curriculum, count, first)
    curriculum.feedback(range(first, first + count), [loss(one) for one in each])


def far_is_hard(params: Any) -> float:
    return {2: 0.5, 4: 1.0, 8: 3.0}[params["distance"][0]]


def test_the_weights_are_a_softmax_of_mean_losses_with_a_floor() -> None:
    """Each name by itself; a bin without a loss counts as the hardest one."""
    curriculum = ab.Curriculum(BINS, floor=0.3)
    assert curriculum.weights() == {"distance": pytest.approx([1 / 3] * 3), "kind": pytest.approx([1 / 2] * 2)}
    fed(curriculum, far_is_hard)
    rises = np.exp([0.5, 1.0, 3.0])
    assert curriculum.weights()["distance"] == pytest.approx(list(0.7 * rises / rises.sum() + 0.1))

    curriculum = ab.Curriculum(BINS, floor=0.3)
    index = next(index for index in range(99) if curriculum(index)["distance"] == [2, 4])
    curriculum.feedback(index, 5.0)
    assert curriculum.weights()["distance"] == pytest.approx([1 / 3] * 3)


def test_no_bin_falls_under_its_floor() -> None:
    """However far apart the losses are, and without a floor too nothing overflows."""
    for floor in (0.0, 0.1, 1.0):
        curriculum = ab.Curriculum(BINS, floor=floor, temperature=1e-6)
        fed(curriculum, lambda params: 1e9 * far_is_hard(params))
        weights = curriculum.weights()["distance"]
        assert sum(weights) == pytest.approx(1.0)
        assert weights[:2] == pytest.approx([floor / 3] * 2)
        counts = collections.Counter(one["distance"][0] for one in drawn(curriculum, 600, 1000))
        assert all(abs(counts[low] / 600 - share) < 0.06 for low, share in zip((2, 4, 8), weights, strict=True))


def test_the_mean_follows_the_training() -> None:
    """First it is the plain mean, later a running one that forgets."""
    curriculum = ab.Curriculum({"a": [0, 1]}, floor=0.0, rate=0.25)
    ones = [index for index in range(40) if curriculum(index)["a"] == 1]
    for losses in ([1.0], [3.0], [0.0, 0.0]):  # means 1, 2, 4/3, 1
        curriculum.feedback(ones[: len(losses)], losses)
    assert curriculum.state_dict()["means"]["a"][1] == pytest.approx(1.0)
    for _ in range(30):
        curriculum.feedback(ones[0], 9.0)
    assert curriculum.state_dict()["means"]["a"][1] == pytest.approx(9.0, abs=0.01)


def test_losses_at_both_ends_of_what_a_float_holds() -> None:
    """Means and weights stay finite, whatever the order in which the losses come."""
    most = sys.float_info.max
    curriculum = ab.Curriculum({"a": [0, 1, 2]}, temperature=5e-324)
    first, second, third = (next(i for i in range(99) if curriculum(i)["a"] == bin) for bin in range(3))
    for losses in ([most, -most, 1], [-most, most, 0.0], [most, most, -most], [10**308, -most, most]):
        curriculum.feedback([first, second, third], losses)
        weights = curriculum.weights()["a"]
        assert all(map(math.isfinite, [*curriculum.state_dict()["means"]["a"], *weights]))
        assert sum(weights) == pytest.approx(1.0)
        assert min(weights) == pytest.approx(0.1 / 3)


def test_a_sample_that_is_drawn_again_has_its_new_bins() -> None:
    """Its loss counts for those alone, as feedback says."""
    curriculum = ab.Curriculum({"a": [0, 1]}, floor=0.0, temperature=0.01)
    index, other = (next(i for i in range(99) if curriculum(i)["a"] == bin) for bin in range(2))
    curriculum.feedback([index, other], [0.0, 9.0])
    assert curriculum(index)["a"] == 1
    curriculum.feedback(index, 5.0)
    assert curriculum.state_dict()["means"]["a"] == [0.0, 7.0]


def test_drawing_is_a_function_of_seed_index_and_weights() -> None:
    """Neither the global generators nor what was drawn before matter."""
    first = drawn(ab.Curriculum(BINS, seed=5))
    np.random.seed(3)
    again = ab.Curriculum(BINS, seed=5)
    assert [again(index) for index in reversed(range(60))] == first[::-1]
    assert drawn(ab.Curriculum(BINS, seed=6)) != first
    one, other = (ab.Curriculum(BINS) for _ in range(2))
    for curriculum in (one, other):
        fed(curriculum, far_is_hard)
        fed(curriculum, far_is_hard, first=60)
    assert drawn(one, first=120) == drawn(other, first=120)
    assert one.weights() == other.weights()


def test_indices_and_losses_of_every_kind() -> None:
    """Numbers, lists, arrays and tensors, with a gradient too, mean the same."""
    states = []
    losses = torch.linspace(0, 1, 4, dtype=torch.float64, requires_grad=True)
    for indices, values in (
        ([0, 1, 2, 3], losses),
        (torch.arange(4), losses.tolist()),
        (np.arange(4), losses.detach().numpy()),
        (range(4), [one for one in losses]),  # noqa: C416
        ([torch.tensor(0), np.int64(1), 2, 3], list(losses.detach().numpy())),
    ):
        curriculum = ab.Curriculum(BINS)
        drawn(curriculum, 4)
        curriculum.feedback(indices, values)
        states.append(curriculum.state_dict())
    assert all(state == states[0] for state in states)
    curriculum.feedback(3, 2)
    curriculum.feedback(torch.tensor(3), torch.tensor(2.0))
    curriculum.feedback([], [])


def test_wrong_feedback_is_named_and_changes_nothing() -> None:
    """Each is a ConfigError with the value and advice."""
    curriculum = ab.Curriculum(BINS, memory=8)
    drawn(curriculum, 20)
    before = curriculum.state_dict()
    wrong: list[tuple[Any, Any, str]] = [
        ([12, 13], [1.0], "got 2 indices and 1 losses .a mean. ask the loss function for reduction=none"),
        ([12], [1.0, 2.0], "got 1 indices and 2 losses$"),
        (
            [12, 13],
            [1.0, math.nan],
            "the loss of sample 13 is nan; a loss must be a finite number. Leave the sample out",
        ),
        ([12], torch.tensor([math.inf]), "the loss of sample 12 is inf"),
        ([12, 13], [1.0, 10**400], "the loss of sample 13 is inf"),
        ([12], [-(10**5000)], "the loss of sample 12 is -inf"),
        ([12], ["1.0"], "the loss of sample 12 is '1.0'"),
        ([12], [None], "the loss of sample 12 is None"),
        ([12], torch.ones(1, 1), r"the loss of sample 12 is \[1.0\]"),
        ([12.0], [1.0], "whole numbers as indices; got 12.0"),
        ([True], [1.0], "whole numbers as indices; got True"),
        (["12"], [1.0], "whole numbers as indices; got '12'"),
        (
            [12, 99],
            [1.0, 1.0],
            r"sample 99 was not drawn from this Curriculum, or is not among its latest 8 \(memory=\)",
        ),
        ([11], [1.0], "sample 11 was not drawn .*num_workers=0"),
    ]
    for indices, losses, message in wrong:
        with pytest.raises(ab.ConfigError, match=message):
            curriculum.feedback(indices, losses)
    assert curriculum.state_dict() == before


def test_wrong_arguments_are_named() -> None:
    """Each is a ConfigError that shows what was given."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"bins": {}}, "bins must be lists by name, .*got {}"),
        ({"bins": [1]}, r"bins must be lists by name, .*got \[1\]"),
        ({"bins": {"a": []}}, "'a' has no bins"),
        ({"bins": {"a": "text"}}, "bins must be lists by name; got 'text' for 'a'"),
        ({"bins": {"a": 5}}, "bins must be lists by name; got 5 for 'a'"),
        ({"bins": {3: [1]}}, r"bins must be lists by name; got \[1\] for 3"),
        ({"bins": {"a": [{1}]}}, "the bins of 'a' must be what JSON can hold .*got"),
        ({"bins": {"a": [math.nan]}}, "the bins of 'a' must be what JSON can hold"),
        ({"floor": 1.5}, "floor must be a finite number from 0 to 1; got 1.5"),
        ({"floor": "0"}, "floor must be a finite number from 0 to 1; got '0'"),
        ({"temperature": 0}, "temperature must be a finite number over 0; got 0"),
        ({"temperature": 10**400}, "temperature must be a finite number over 0; got inf"),
        ({"temperature": math.nan}, "temperature must be a finite number over 0; got nan"),
        ({"rate": -(10**5000)}, "rate must be a finite number over 0 and at most 1; got -inf"),
        ({"floor": True}, "floor must be a finite number from 0 to 1; got True"),
        ({"rate": 0.0}, "rate must be a finite number over 0 and at most 1; got 0.0"),
        ({"memory": 0}, "memory must be a whole number, at least 1; got 0"),
        ({"seed": -1}, "seed must be a whole number, at least 0; got -1"),
    ]
    for options, message in wrong:
        with pytest.raises(ab.ConfigError, match=message):
            ab.Curriculum(**{"bins": BINS, **options})


def test_memory_is_bounded_and_a_new_draw_counts() -> None:
    """The latest samples are kept; an index that is drawn again has its new bins, and is one of the latest."""
    curriculum = ab.Curriculum(BINS, memory=3)
    for index in (0, 1, 2, 0, 3):
        curriculum(index)
    assert [index for index, *_ in curriculum.state_dict()["drawn"]] == [2, 0, 3]
    curriculum.feedback([0, 2, 3], [1, 1, 1])


def test_a_state_goes_on_where_it_was_saved() -> None:
    """Through JSON and pickle: the same weights, draws, and memory of samples."""
    curriculum = ab.Curriculum(BINS)
    fed(curriculum, far_is_hard)
    drawn(curriculum, 4, 60)
    curriculum(np.int64(64))  # type: ignore[arg-type]  # an index of any kind
    other = ab.Curriculum(BINS)
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    each = (curriculum, other, pickle.loads(pickle.dumps(curriculum)))
    for one in each:
        one.feedback([60, 61], [4.0, 5.0])
    assert other.state_dict() == each[2].state_dict() == curriculum.state_dict()
    assert other.weights() == each[2].weights() == curriculum.weights()
    first, *others = [drawn(one, 20, 100) for one in each]
    assert others == [first, first]
    assert repr(other).startswith("Curriculum({'distance': [[2, 4]")


def test_the_order_of_the_names_does_not_matter_to_a_state() -> None:
    """Feedback on samples that it remembers counts for the same bins, also through JSON with sorted keys."""
    bins = {"distance": [1, 2, 3], "count": [1, 2]}
    curriculum = ab.Curriculum(bins)
    chosen = {index: curriculum(index) for index in range(20)}
    other = ab.Curriculum(dict(reversed(bins.items())))
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict(), sort_keys=True)))
    curriculum.feedback(list(chosen), [1.0] * 20)
    other.feedback(list(chosen), [1.0] * 20)
    assert other.state_dict()["counts"] == curriculum.state_dict()["counts"]
    assert other.weights() == curriculum.weights()


def test_a_state_that_does_not_fit_is_refused() -> None:
    """The error says whether it is none, or one of other bins."""
    curriculum = ab.Curriculum(BINS)
    fed(curriculum, far_is_hard)
    good = curriculum.state_dict()
    bad_means = (math.nan, math.inf, 10**400, "1.0", None, True)
    bad_counts = (-5, 1.7, 2.0, "3", True)
    bad_entries = (["3", 0, 0], [3, 0.9, 0], [3, 0, "0"], [3, True, 0], [3, -1, 0], [-3, 0, 0], [3.0, 0, 0], [3, 0])
    wrong: list[tuple[Any, str]] = [
        ({}, "not a saved state of a Curriculum: {}"),
        (None, "not a saved state of a Curriculum: None"),
        ({**good, "means": {"distance": [1.0]}}, "not a saved state"),
        ({**good, "counts": {"distance": 5, "kind": 5}}, "not a saved state"),
        ({**good, "bins": None}, "not a saved state"),
        ({**good, "bins": 5}, "of a Curriculum with the bins 5, not"),
        ({**good, "means": {**good["means"], "more": [1.0]}}, "not a saved state"),
        *(({**good, "means": {**good["means"], "kind": [0.0, mean]}}, "not a saved state") for mean in bad_means),
        *(({**good, "counts": {**good["counts"], "kind": [0, count]}}, "not a saved state") for count in bad_counts),
        *(({**good, "drawn": [entry]}, "not a saved state") for entry in bad_entries),
        ({**good, "drawn": [[3, 0, 7]]}, "not a saved state"),
        ({**good, "drawn": [3]}, "not a saved state"),
        ({**good, "names": ["distance"]}, "not a saved state"),
        ({**good, "names": 3}, "not a saved state"),
        (
            ab.Curriculum({"distance": [1, 2]}).state_dict(),
            r"of a Curriculum with the bins {'distance': \[1, 2\]}, not",
        ),
    ]
    for state, message in wrong:
        with pytest.raises(ab.ConfigError, match=message):
            curriculum.load_state_dict(state)
    assert curriculum.state_dict() == good


def test_threads_share_it() -> None:
    """Draws and feedback at once lose nothing."""
    curriculum = ab.Curriculum(BINS, memory=100_000)
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for index in range(first, first + 200):
                curriculum(index)
                curriculum.feedback(index, 1.0)
                curriculum.weights()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert {name: sum(each) for name, each in curriculum.state_dict()["counts"].items()} == {
        "distance": 800,
        "kind": 800,
    }
