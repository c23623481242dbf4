"""The options that all datasets share: one dataclass, and the same keywords everywhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import asyncblend as ab
from asyncblend.config import StreamOptions
from asyncblend.data.dataset import _Options
from asyncblend.data.items import BatchKeywords, ItemKeywords, ItemOptions
from asyncblend.recording.codec import Images, encode
from asyncblend.recording.writer import ShardSize, Writer


@pytest.fixture
def makers(tmp_path: Path) -> dict[str, Callable[..., Any]]:
    """Make each kind of dataset with these keywords. No Blender is started."""
    writer = Writer(tmp_path, {"seed": 0, "script": "x.py", "script_sha256": "0" * 64}, ShardSize(4))
    writer.open()
    writer.add(0, encode({"x": 1}, index=0, instance=0, params={}, images=Images()))
    writer.close()
    parts: Any = (ab.BlenderDataset(script="x.py"), ab.RecordedDataset(tmp_path))
    return {
        "live": lambda **options: ab.BlenderDataset(script="x.py", length=10, **options),
        "recorded": lambda **options: ab.RecordedDataset(tmp_path, **options),
        "mixed": lambda **options: ab.MixedDataset(*parts, length=10, **options),
    }


def test_the_keywords_are_the_options_fields() -> None:
    """A type checker sees for the datasets' keywords what ItemOptions and StreamConfig check at run time."""
    assert get_type_hints(ItemKeywords) == get_type_hints(ItemOptions)
    clips = {"clip": int | None, "clip_stride": int}
    assert get_type_hints(_Options) == {**get_type_hints(StreamOptions), **get_type_hints(BatchKeywords), **clips}
    assert not get_type_hints(StreamOptions).keys() & get_type_hints(ItemKeywords).keys()


def test_a_config_a_transform_and_a_size_go_by_position() -> None:
    """A BlenderDataset takes them in this order."""
    config = ab.StreamConfig(script="x.py", length=10)
    assert len(ab.BlenderDataset(config, lambda item: item, 4)) == 3


def test_a_stream_is_not_indexed() -> None:
    """The error names what can be."""
    dataset = ab.BlenderDataset(script="scene.py")
    with pytest.raises(
        ab.ConfigError, match=r"iterated, not indexed; got \[0\]\. .*render\(index\).*BlenderMapDataset"
    ):
        dataset[0]


def test_an_unknown_option_is_refused(makers: dict[str, Callable[..., Any]]) -> None:
    """Each dataset raises a ConfigError that names the option."""
    for make in makers.values():
        for wrong in ("batchsize", "transforms", "colour"):
            with pytest.raises(ab.ConfigError, match=f"no option '{wrong}'"):
                make(**{wrong: 1})
    for wrong, right in (("batchsize", "batch_size"), ("batch", "batch_size"), ("transforms", "transform")):
        for make in makers.values():
            with pytest.raises(ab.ConfigError, match=f"Dataset has no option '{wrong}'; did you mean '{right}'"):
                make(**{wrong: 3})
    for kind, wrong, right in (("live", "instance", "instances"), ("recorded", "shufle", "shuffle")):
        with pytest.raises(ab.ConfigError, match=f"Dataset has no option '{wrong}'; did you mean '{right}'"):
            makers[kind](**{wrong: 3})


def test_a_wrong_option_is_named(makers: dict[str, Callable[..., Any]]) -> None:
    """Each dataset checks the options likewise, before anything is started."""
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"transform": 3}, "transform must be callable; got 3"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1; got 0"),
        ({"batch_size": 2.5}, r"batch_size must be a whole number, at least 1; got 2\.5"),
        ({"batch_size": True}, "batch_size must be .*got True"),
        ({"drop_last": True}, "drop_last goes with batch_size"),
        ({"pin_memory": True}, "pin_memory goes with batch_size"),
        ({"device": "cpu"}, "device goes with batch_size"),
        ({"batch_size": 2, "device": "nonsense"}, "device must be one of torch's, .*; got 'nonsense'"),
        ({"batch_size": 2, "device": 1.5}, r"device must be one of torch's, .*; got 1\.5"),
        ({"batch_size": 2, "drop_last": "no"}, "drop_last must be True or False; got 'no'"),
        ({"batch_size": 2, "pin_memory": 1}, "pin_memory must be True or False; got 1"),
        ({"batch_size": 2, "ragged": 5}, "ragged must be names, .*; got 5"),
    ]
    for make in makers.values():
        for options, message in wrongs:
            with pytest.raises(ab.ConfigError, match=message):
                make(**options)


def test_right_options_count(makers: dict[str, Callable[..., Any]]) -> None:
    """`len` follows batch_size and drop_last in each dataset; the options travel with a pickled copy."""
    for name, make in makers.items():
        samples = 1 if name == "recorded" else 10
        for options, wanted in (
            ({}, samples),
            ({"batch_size": 4}, -(-samples // 4)),
            ({"batch_size": 4, "drop_last": True}, samples // 4),
        ):
            dataset = make(**options)
            assert len(dataset) == len(pickle.loads(pickle.dumps(dataset))) == wanted
