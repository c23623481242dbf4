"""Rows as tables: every kind of value that a sample may have gets a type, or a message that says why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import asyncblend as ab
from asyncblend.recording import codec
from asyncblend.recording.codec import Images, encode_sample
from asyncblend.stream.clips import Clip
from asyncblend.wire.payload import DTYPES

pa = pytest.importorskip("pyarrow", reason='pip install ".[ray]"')
pytest.importorskip("ray.data", reason='pip install ".[ray]"')
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def table(values: Sequence[Any], **params: Any) -> Any:
    """Return the table of samples whose only value is `x`."""
    from asyncblend.ray.rows import table_of

    return table_of([ab.Frame({"x": value}, index=i + 7, instance=0, params=params) for i, value in enumerate(values)])


@pytest.mark.parametrize("dtype", [name for name in DTYPES if not name.startswith("complex")])
@pytest.mark.parametrize("shapes", [[(2, 3)] * 2, [(0, 4), (2, 4)], [(0, 4)] * 2, [(3,), (1,)], [(), ()]], ids=str)
def test_arrays_come_back_with_dtype_and_shape(dtype: str, shapes: list[tuple[int, ...]]) -> None:
    """Of one shape or of several, without elements, and without dimensions."""
    arrays = [np.ones(shape, DTYPES[dtype]) for shape in shapes]
    rows = table(arrays)
    assert "object" not in str(rows.schema)
    from ray.data.block import BlockAccessor

    found = BlockAccessor.for_block(rows).to_numpy(["x"])["x"]
    for one, array in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(one), array, strict=True)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        [1.0, 2.5],
        [True, False],
        ["a", None],
        [None, None],
        [[1, 2], []],
        [[], []],
        [["a"], ["b", "c"]],
        [[{"n": 1}, {"n": 2}], []],
        [{"a": 1, "b": {"c": "d"}}, {"a": 2, "b": None}],
        [{}, {}],
        [None, {"a": None}, {"a": 1}],
        [None, [], [1], None],
        [[[1], [2, 3]], [[]]],
        [2**63 - 1, -(2**63)],
        [float("nan"), float("inf")],
    ],
    ids=str,
)
def test_plain_values_come_back(values: list[Any]) -> None:
    """None is None again, where it may be."""
    assert repr(table(values)["x"].to_pylist()) == repr(values)


def test_what_a_dict_lacks_is_none() -> None:
    """All rows of a struct have the same fields."""
    found = table([{"a": 1, "b": {"c": [2]}}, {"a": 2}])["x"].to_pylist()
    assert found == [{"a": 1, "b": {"c": [2]}}, {"a": 2, "b": None}]


def test_params_are_a_column_where_there_are_any() -> None:
    """They are a struct, whatever the sample returns."""
    assert table([1]).column_names == ["index", "x"]
    assert table([1], level=2.5, at=np.arange(2))["params"].to_pylist()[0]["level"] == 2.5
    assert table([1])["index"].to_pylist() == [7]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.zeros(2), np.zeros(2, np.float32)], r"'x' is float64\[2\] in one of them, float32\[2\] in another"),
        ([np.zeros(2), np.zeros((2, 2))], r"float64\[2, 2\]"),
        ([np.zeros(2), None], "'x' must be of one kind in all of them, but it is None in one"),
        ([{"y": 1}, 2], "'x' must be of one kind"),
        ([[1], "a"], "'x' must be of one kind"),
        ([{"y": [1]}, {"y": ["a"]}], r"each item of 'x'\['y'\]"),
        ([[128, 96, "CYCLES"]] * 2, "each item of 'x'"),
        ([1, "a"], "'x'"),
        ([2**70, 1], "'x'"),
        ([np.zeros(2, np.complex64)], "'x' has complex numbers"),
    ],
    ids=str,
)
def test_what_has_no_type_is_refused(values: list[Any], words: str) -> None:
    """The message names the value and the samples."""
    with pytest.raises(ab.SampleError, match=words) as caught:
        table(values)
    assert f"samples 7 to {6 + len(values)} cannot be rows of one table" in str(caught.value)
    assert caught.value.index == 7


def encoded(samples: Sequence[ab.Frame], **how: Any) -> list[dict[str, Any]]:
    """Return the files of samples that were rows in between."""
    from ray.data.block import BlockAccessor

    from asyncblend.ray import encode
    from asyncblend.ray.rows import table_of

    rows = BlockAccessor.for_block(table_of(samples)).iter_rows(public_row_format=True)
    return [encode(row, **how) for row in rows]


def recorded(sample: ab.Frame) -> dict[str, Any]:
    """Return the files that `record` writes of a sample."""
    return {"__key__": f"{sample.index:09d}", **encode_sample(sample, Images())}


def test_files_are_those_of_a_recording() -> None:
    """Byte for byte: images, arrays of one shape and of several, numbers, strings, dicts, lists and params."""
    rng = np.random.default_rng(0)

    def values(n: int) -> dict[str, Any]:
        return {
            "image": rng.integers(0, 256, (4, 5, 3), np.uint8),
            "mask": rng.random((2, 2)) < 0.5,
            "bbox": rng.random((n, 4)),
            "number": n,
            "far": math.inf,
            "nothing": None,
            "camera": {"matrix": rng.random((4, 4)), "name": "Camera"},
            "empty": [],
            "objects": [{"name": "Cube", "corners": rng.random((i, 2))} for i in range(n)],
        }

    params = {"level": 0.25, "tint": np.arange(3)}
    samples = [ab.Frame(values(n), index=n, instance=0, params=params) for n in range(3)]
    assert encoded(samples) == [recorded(sample) for sample in samples]


def test_files_of_episodes_are_those_of_a_recording() -> None:
    """They have their steps, if it is said that they are episodes; one of a single step is a sample like others."""

    def frame(step: int, steps: int) -> ab.Frame:
        values = {"image": np.full((4, 5, 3), step, np.uint8), "name": f"{step}", "body": {"x": step / 2}}
        return ab.Frame(values, index=steps, instance=0, step=step, last=step == steps - 1)

    clips = [Clip([frame(step, steps) for step in range(steps)], 1) for steps in (1, 2, 3)]
    files = encoded(clips, episodes=True)
    assert files == [recorded(clip) for clip in clips]
    assert [codec.decode({n: f for n, f in own.items() if n != "__key__"}).steps for own in files] == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"x": np.zeros(2), "y": np.zeros(3)}, "its values need one length in common, and have 'x' 2, 'y' 3"),
        ({"x": np.zeros(2), "y": 3}, "'x' 2, 'y' none"),
        ({"x": {"a": np.zeros(2), "b": np.zeros(3)}}, "'x' 2/3"),
        ({}, "have none"),
    ],
    ids=str,
)
def test_what_is_no_episode_is_refused(values: dict[str, Any], words: str) -> None:
    """It could not be read again. The message names the row."""
    with pytest.raises(ab.ConfigError, match=f"row 7 is no episode: .*{words}"):
        encoded([ab.Frame(values, index=7, instance=0)], episodes=True)


def test_files_of_something_else_are_refused() -> None:
    """Decoding names the file."""
    from asyncblend.ray import decode

    with pytest.raises(ab.RecordingError, match=r"sample 000 of a\.tar: there is no 'json'"):
        decode(pa.table({"__key__": ["000"], "__url__": ["a.tar"], "image.png": [b"no"]}))
