"""Curriculum: params that follow the training's losses. What is hard is rendered more often."""

from __future__ import annotations

import json
import math
import operator
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .checks import check_whole
from .errors import ConfigError


class Curriculum:
    """Params that are drawn from bins, and more often from those in which the losses are high:

        curriculum = ab.Curriculum({"distance": [(2, 4), (4, 8), (8, 16)], "occluders": [0, 3, 6]})
        dataset = ab.BlenderDataset(script="scene.py", params=curriculum)
        for batch in DataLoader(dataset, batch_size=8):
            losses = ...  # one for each sample
            dataset.feedback(batch["index"], losses)

    Each sample gets one bin of each name as it stands here, but tuples as lists: `task.params["distance"]` is [2, 4].
    The script draws within it: `task.rng.uniform(*task.params["distance"])`.

    For each name, the weights of the bins are a softmax of their mean losses, mixed with a floor: no bin is drawn less
    often than `floor` divided by the number of bins. A bin without a loss counts as if it had the highest mean, and
    without any feedback all weights are equal. The mean of a bin is that of its first losses, then a running one.

    Bins are a function of `seed`, the index and the weights at the moment of the lease, so the same feedback at the same
    moments gives the same params. It is part of the `state_dict()` of a stream or dataset, and may be used from any
    thread. With workers of a DataLoader each has a copy, which `feedback` does not reach: use `num_workers=0`.

    Args:
        bins: By name, the bins: whatever JSON can hold.
        floor: The share of samples that is spread evenly over all bins, from 0 to 1.
        temperature: The difference of two mean losses that makes one bin e = 2.7 times as likely as the other, before
            the floor is mixed in. Small where losses are small.
        rate: The weight of a new loss in a bin's running mean, over 0 and at most 1.
        memory: How many of the latest samples are remembered, for the feedback on them. They are part of the state.
        seed: Of the drawing.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        bins: Mapping[str, Sequence[Any]],
        *,
        floor: float = 0.1,
        temperature: float = 1.0,
        rate: float = 0.05,
        memory: int = 4096,
        seed: int = 0,
    ) -> None:
        self._bins = _checked(bins)
        self._floor = _checked_number("floor", floor, "from 0 to 1", lambda number: 0 <= number <= 1)
        self._temperature = _checked_number("temperature", temperature, "over 0", lambda number: number > 0)
        self._rate = _checked_number("rate", rate, "over 0 and at most 1", lambda number: 0 < number <= 1)
        check_whole("memory", memory, 1)
        check_whole("seed", seed, 0)
        self._memory, self._seed = memory, seed
        self._means = {name: [0.0] * len(each) for name, each in self._bins.items()}
        self._counts = {name: [0] * len(each) for name, each in self._bins.items()}
        self._drawn: dict[int, list[int]] = {}  # by index: the number of its bin of each name; the latest one last
        self._renew_lock()

    def __call__(self, index: int) -> dict[str, Any]:
        """Draw the bins of a sample, and remember them. What streams call at a lease."""
        index = operator.index(index)
        with self._lock:
            chosen = []
            for name, each in self._bins.items():
                rng = np.random.default_rng([self._seed, index, zlib.crc32(name.encode())])
                place = float(rng.random()) - np.cumsum(self._weights(name))
                chosen.append(min(int((place >= 0).sum()), len(each) - 1))
            self._drawn.pop(index, None)
            self._drawn[index] = chosen
            if len(self._drawn) > self._memory:
                del self._drawn[next(iter(self._drawn))]
            return {name: each[k] for k, (name, each) in zip(chosen, self._bins.items(), strict=True)}

    def feedback(self, indices: Any, losses: Any) -> None:
        """Take in the losses of samples. What is drawn from now on has the new weights.

        A loss counts for the bins that its index had when it was drawn last. `render(index)` of a stream or dataset
        draws too, also while the index is on its way in an iteration; with params of its own, `render(index, {...})`,
        it does not. Recorded samples of a MixedDataset may have the indices of live ones: leave them out of the feedback.

        Args:
            indices: The samples: an int, or a list, array or tensor of ints.
            losses: The loss of each of them: a number, or a list, array or tensor of as many, on any device.

        Raises:
            ConfigError: The lengths differ, a loss is not a finite number, or an index was not drawn here, or too long
                ago. Then nothing is taken in.
        """
        which, values = _listed(indices), _listed(losses)
        if len(which) != len(values):
            raise ConfigError(
                f"feedback needs one loss for each index; got {len(which)} indices and {len(values)} losses"
                f"{' (a mean? ask the loss function for reduction=none)' if len(values) == 1 else ''}"
            )
        with self._lock:
            for index, loss in zip(which, values, strict=True):
                self._check(index, loss)
            for index, loss in zip(which, values, strict=True):
                for name, k in zip(self._bins, self._drawn[index], strict=True):
                    self._counts[name][k] += 1
                    share = max(self._rate, 1 / self._counts[name][k])
                    # Not the mean plus a share of the difference, which may be too large for a float.
                    self._means[name][k] = (1 - share) * self._means[name][k] + share * float(loss)

    def weights(self) -> dict[str, list[float]]:
        """Return the probability of each bin, by name, as it is now."""
        with self._lock:
            return {name: self._weights(name) for name in self._bins}

    def state_dict(self) -> dict[str, Any]:
        """Return the losses so far and the samples that are remembered, as plain data that JSON can hold."""
        with self._lock:
            return {
                "bins": self._bins,
                "means": {name: list(each) for name, each in self._means.items()},
                "counts": {name: list(each) for name, each in self._counts.items()},
                "names": list(self._bins),
                "drawn": [[index, *chosen] for index, chosen in self._drawn.items()],
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved.

        Raises:
            ConfigError: It is no state, or one of other bins.
        """
        bins = state.get("bins") if isinstance(state, Mapping) else None
        if bins is not None and bins != self._bins:
            raise ConfigError(
                f"the saved state is of a Curriculum with the bins {bins!r:.200}, not {self._bins!r:.200}"
            )
        sizes = {name: len(each) for name, each in self._bins.items()}
        try:
            means = _of_bins(state["means"], sizes, _is_finite)
            counts = _of_bins(state["counts"], sizes, _is_count)
            # The names of the state may be in another order than here.
            places = [list(state.get("names", self._bins)).index(name) for name in self._bins]
            entries = [(index, chosen) for index, *chosen in state["drawn"]]
            good = bins is not None and all(len(chosen) == len(places) for _, chosen in entries)
            drawn = {index: [chosen[place] for place in places] for index, chosen in entries if good}
            good &= all(map(_is_count, drawn))
            good &= all(_fits(chosen, list(sizes.values())) for chosen in drawn.values())
        except (LookupError, TypeError, ValueError):
            good = False
        if not good:
            raise ConfigError(f"not a saved state of a Curriculum: {state!r:.200}")
        with self._lock:
            self._means = {name: [float(mean) for mean in each] for name, each in means.items()}
            self._counts = counts
            self._drawn = dict(list(drawn.items())[-self._memory :])

    def __repr__(self) -> str:
        return f"Curriculum({self._bins!r:.200})"

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**self.__dict__, "_drawn": dict(self._drawn), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew_lock()

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        _living.add(self)

    def _weights(self, name: str) -> list[float]:
        counts = self._counts[name]
        highest = max((mean for mean, count in zip(self._means[name], counts, strict=True) if count), default=0.0)
        # Relative to the highest, so that no exponential overflows.
        rises = [
            math.exp((mean - highest) / self._temperature) if count else 1.0
            for mean, count in zip(self._means[name], counts, strict=True)
        ]
        total = sum(rises)
        return [(1 - self._floor) * rise / total + self._floor / len(rises) for rise in rises]

    def _check(self, index: Any, loss: Any) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise ConfigError(f"feedback needs whole numbers as indices; got {index!r:.100}")
        if not _is_finite(loss):
            raise ConfigError(
                f"the loss of sample {index} is {_number(loss)!r:.100}; a loss must be a finite number. Leave the sample "
                f"out of the feedback, or find out why the training diverges"
            )
        if index not in self._drawn:
            raise ConfigError(
                f"sample {index} was not drawn from this Curriculum, or is not among its latest {self._memory} (memory=); "
                f"give feedback soon after the sample comes, on samples that it has rendered. The workers of a DataLoader "
                f"have copies of the Curriculum: use num_workers=0"
            )


def _renew_locks() -> None:
    for curriculum in list(_living):  # another thread of the parent may have held one
        curriculum._lock = threading.Lock()


_living: weakref.WeakSet[Curriculum] = weakref.WeakSet()
os.register_at_fork(after_in_child=_renew_locks)


def _checked(bins: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the bins as they come out of JSON.

    Raises:
        ConfigError: They are not lists of JSON values by name.
    """
    if not isinstance(bins, Mapping) or not bins:
        raise ConfigError(f"bins must be lists by name, such as {{'distance': [(2, 4), (4, 8)]}}; got {bins!r:.100}")
    checked = {}
    for name, each in bins.items():
        if not isinstance(name, str) or isinstance(each, str | Mapping) or not isinstance(each, Iterable):
            raise ConfigError(f"bins must be lists by name; got {each!r:.100} for {name!r:.100}")
        try:
            checked[name] = json.loads(json.dumps(list(each), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the bins of {name!r} must be what JSON can hold ({error}); got {each!r:.100}") from None
        if not checked[name]:
            raise ConfigError(f"{name!r} has no bins")
    return checked


def _number(value: object) -> object:
    """Return a number as a float: an infinite one, if it is too large. What is no number is returned as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _checked_number(name: str, value: object, what: str, good: Callable[[float], bool]) -> float:
    number = _number(value)
    if not isinstance(number, float) or not math.isfinite(number) or not good(number):
        raise ConfigError(f"{name} must be a finite number {what}; got {number!r:.100}")
    return number


def _is_finite(value: object) -> bool:
    number = _number(value)
    return isinstance(number, float) and math.isfinite(number)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _of_bins(values: Any, sizes: Mapping[str, int], good: Callable[[object], bool]) -> dict[str, list[Any]]:
    """Return the values of all bins by name.

    Raises:
        LookupError, TypeError, ValueError: They are none of these bins, or one is not good.
    """
    found = {name: list(values[name]) for name in sizes}
    if len(values) != len(sizes) or not all(len(found[name]) == size for name, size in sizes.items()):
        raise ValueError("of other bins")
    if not all(good(value) for each in found.values() for value in each):
        raise ValueError("a value is not good")
    return found


def _fits(chosen: list[Any], sizes: list[int]) -> bool:
    return len(chosen) == len(sizes) and all(_is_count(k) and k < size for k, size in zip(chosen, sizes, strict=True))


def _listed(values: Any) -> list[Any]:
    """Return a number, list, array or tensor as a list."""
    if hasattr(values, "tolist"):  # of numpy and torch: Python's own numbers, also from a GPU or with a gradient
        values = values.tolist()
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        return [value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value for value in values]
    return [values]
