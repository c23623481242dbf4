"""Spaces: what a script calls a space becomes Gymnasium's, and what is outside of one is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence

from asyncblend.errors import ConfigError
from asyncblend.gym.spaces import Outside, reader, space_of
from asyncblend.wire import payload

SPACES: dict[str, tuple[Any, spaces.Space[Any]]] = {
    "discrete": ({"Discrete": {"n": 3}}, spaces.Discrete(3)),
    "from five": ({"Discrete": {"n": 3, "start": 5}}, spaces.Discrete(3, start=5)),
    "box": ({"Box": {"low": -1.0, "high": 1.0, "shape": (2, 3)}}, spaces.Box(-1.0, 1.0, (2, 3))),
    "bounds": ({"Box": {"low": [-1.0, -np.inf], "high": np.array([1, 2], np.float32)}}, spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 2], np.float32))),
    "image": ({"Box": {"low": 0, "high": 255, "shape": (4, 5, 3), "dtype": "uint8"}}, spaces.Box(0, 255, (4, 5, 3), np.uint8)),
    "number": ({"Box": {"low": 0.0, "high": 1.0, "shape": ()}}, spaces.Box(0.0, 1.0, ())),
    "several": ({"MultiDiscrete": {"nvec": [2, 3]}}, spaces.MultiDiscrete([2, 3])),
    "bits": ({"MultiBinary": {"n": 4}}, spaces.MultiBinary(4)),
    "named": (
        {"Dict": {"speed": {"Box": {"low": 0.0, "high": 1.0, "shape": (1,)}}, "gear": {"Discrete": {"n": 5}}}},
        spaces.Dict({"speed": spaces.Box(0.0, 1.0, (1,)), "gear": spaces.Discrete(5)}),
    ),
    "pair": (
        {"Tuple": [{"Discrete": {"n": 2}}, {"MultiBinary": {"n": 1}}]},
        spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(1)]),
    ),
}  # fmt: skip


def travelled(value: Any) -> Any:
    """Return what the other side of the wire sees."""
    return payload.decode_values(payload.encode_values({"value": value}))["value"]


@pytest.mark.parametrize("name", SPACES)
def test_a_space_travels(name: str) -> None:
    """A description becomes the space that it names, and elements of it go there and back."""
    description, expected = SPACES[name]
    space = space_of(travelled(description), "space")
    assert space == expected
    space.seed(1)
    read = reader(space, "value")
    for _ in range(20):
        element = space.sample()
        sent = travelled(read(element))
        assert data_equivalence(read(sent), element, exact=True)
        assert read(sent) in space


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "observation_space must be one of Box, .* got None"),
        ({"Discret": {"n": 2}}, "must be one of Box"),
        ({"Discrete": {"n": 2}, "Box": {}}, "must be one of Box"),
        ({"Discrete": 2}, "is no Discrete"),
        ({"Discrete": {"m": 2}}, "is no Discrete: .*'m'"),
        ({"Discrete": {"n": -2}}, "is no Discrete"),
        ({"Dict": {"a": {"Bx": {}}}}, r"observation_space\['a'\] must be one of"),
        ({"Tuple": [{"Discrete": {"n": 2}}, 3]}, r"observation_space\[1\] must be one of"),
    ],
)
def test_what_is_no_space_is_named(description: Any, message: str) -> None:
    """The error says which part of a description is wrong."""
    with pytest.raises(ConfigError, match=message):
        space_of(description, "observation_space")


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        ("discrete", 3, "observation must be a whole number from 0 to 2; it is 3"),
        ("from five", 4, "from 5 to 7"),
        ("discrete", 1.0, "it is 1.0"),
        ("discrete", np.array(3), "from 0 to 2; it is"),
        ("discrete", np.array(1.0), "must be a whole number"),
        ("discrete", np.array([1]), r"it is array\(\[1\]\)"),
        ("box", np.zeros((3, 2)), r"must have shape \(2, 3\); it has \(3, 2\)"),
        ("box", np.array([[0, 0, 0], [0, np.nan, 0]]), r"observation\[1, 1\] is nan, which is not from -1.0 to 1.0"),
        ("box", np.array([[0, 0, 0], [0, 0, 1.5]]), r"observation\[1, 2\] is 1.5"),
        ("bounds", np.array([0.5, 3.0]), r"observation\[1\] is 3.0, which is not from -inf to 2.0"),
        ("bounds", "text", "must have shape"),
        (
            "box",
            [[1.0], [1.0, 2.0]],
            r"must be an array of shape \(2, 3\); numpy makes none of \[\[1.0\], \[1.0, 2.0\]\]",
        ),
        ("number", 2.0, "observation is 2.0"),
        ("image", np.zeros((4, 5, 3)), "must be uint8; it is float64"),
        ("image", np.full((4, 5, 3), 256), r"observation\[0, 0, 0\] is 256"),
        ("image", np.full((4, 5, 3), -1, np.int8), r"observation\[0, 0, 0\] is -1"),
        ("several", np.array([1, 3]), r"observation\[1\] is 3, which is not from 0 to 2"),
        ("bits", np.array([0, 1, 2, 0]), r"observation\[2\] is 2"),
        ("named", {"speed": [0.5]}, r"observation must have \['gear', 'speed'\]; it is \['speed'\]"),
        ("named", {"speed": [0.5], "gear": 5}, r"observation\['gear'\] must be a whole number from 0 to 4"),
        ("pair", [0], "observation must be 2 values"),
        ("pair", [0, [2]], r"observation\[1\]\[0\] is 2"),
    ],
)
def test_an_observation_outside_is_named(space: str, value: Any, message: str) -> None:
    """The error names the part that is outside, its value, and what would be inside."""
    read = reader(SPACES[space][1], "observation")
    with pytest.raises(Outside, match=message):
        read(travelled(value))


@pytest.mark.parametrize("name", ["discrete", "from five"])
def test_an_array_without_dimensions_is_a_number(name: str) -> None:
    """As for Gymnasium, whose policies give such actions."""
    space = SPACES[name][1]
    for value in np.arange(space.start, space.start + 3):  # type: ignore[attr-defined]
        element = np.array(value)
        assert element in space
        assert data_equivalence(reader(space, "action")(travelled(element)), value, exact=True)


def test_keys_of_several_kinds_are_named() -> None:
    """They cannot be put in order as they are."""
    with pytest.raises(Outside, match=r"must have \['gear', 'speed'\]; it is \[1, 'gear'\]"):
        reader(SPACES["named"][1], "action")({1: 0, "gear": 0})


def test_an_observation_is_the_callers_own() -> None:
    """It can be written to, and shares no memory with the message."""
    value = travelled(np.zeros((4, 5, 3), np.uint8))
    assert not value.flags.writeable
    own = reader(SPACES["image"][1], "observation")(value)
    own[:] = 7
    assert not value.any()


def test_floats_at_the_bounds_fit() -> None:
    """A bound has the precision of the space, and so has what is compared with it."""
    space = spaces.Box(np.float32(0.1), np.float32(0.7), (2,))
    assert reader(space, "observation")(travelled([0.1, 0.7])) in space


def test_other_spaces_are_refused() -> None:
    """A space whose elements cannot travel is refused at once."""
    with pytest.raises(ConfigError, match=r"knows the spaces Box, .*; got Text"):
        reader(spaces.Text(5), "observation")
    with pytest.raises(ConfigError, match=r"action\['a'\]: asyncblend knows the spaces"):
        reader(spaces.Dict(a=spaces.Text(5)), "action")
