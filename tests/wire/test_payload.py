"""Values on the wire: what travels arrives, and what cannot travel is named."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import itertools
import pathlib
import sys
import types
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st

from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life
from tests.wire.samples import ABOUT, DTYPES, LEASE, arrived, check_same, round_trip, travelled

# -- what travels ------------------------------------------------------------------------------------------------


def laid_out(array: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    """Return the same values with another layout in memory."""
    if layout == "fortran":
        return np.asfortranarray(array) if array.ndim else array
    if layout == "transposed":
        return array.T
    if layout == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    if layout == "reversed":
        return array[::-1] if array.ndim else array
    if layout == "read-only":
        array.flags.writeable = False
    return array


ORDERS: list[Literal["<", ">"]] = ["<", ">"]
LAYOUTS = ["plain", "fortran", "transposed", "strided", "reversed", "read-only"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Draw an array of any dtype, byte order, small shape and layout."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES))).newbyteorder(draw(st.sampled_from(ORDERS)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    return laid_out(draw(hnp.arrays(dtype, shape)), draw(st.sampled_from(LAYOUTS)))


def numpy_scalars() -> st.SearchStrategy[Any]:
    """Draw a scalar of any real dtype."""
    real = [name for name in DTYPES if not name.startswith("complex")]
    return st.sampled_from(real).flatmap(lambda name: hnp.from_dtype(np.dtype(name)))


keys = st.one_of(st.text(max_size=4), st.sampled_from(["$", "$$", "$0", "$x", "kind", "tree", "values"]))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**3000), max_value=2**3000),
    st.floats(),
    st.text(st.characters(codec=None, exclude_categories=()), max_size=6),
    numpy_scalars(),
    arrays(),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(keys, trees, max_size=4))
def test_all_values_round_trip(values: dict[str, Any]) -> None:
    """Any nesting of what travels arrives as it was, but for tuples as lists and numpy scalars as Python's."""
    check_same(round_trip(values), arrived(values))


def test_arrays_of_each_dtype_and_layout_arrive() -> None:
    """Arrays of any byte order, strides and rank arrive little-endian, C-ordered and read-only."""
    shapes: list[tuple[int, ...]] = [(), (0,), (2, 0, 3), (1,), (3, 4), (2, 3, 1), (1, 2, 1, 2, 1, 2, 1, 2)]
    for dtype, layout, order, shape in itertools.product(DTYPES, LAYOUTS, ORDERS, shapes):
        array = np.arange(int(np.prod(shape))).reshape(shape).astype(np.dtype(dtype).newbyteorder(order))
        array = laid_out(array, layout)
        check_same(round_trip({"x": array})["x"], arrived(array))


def test_arrays_pass_through_a_socket() -> None:
    """ZeroMQ takes the encoded parts of any dtype and shape as they are, and `decode` takes ZeroMQ's buffers."""
    shapes: list[tuple[int, ...]] = [(), (0,), (2, 0), (3,), (200, 300)]
    values = {f"{name}{shape}": np.ones(shape, name) for name in DTYPES for shape in shapes}
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://wire")
        other.connect("inproc://wire")
        other.rcvtimeo = 60_000
        one.send_multipart(protocol.encode(protocol.FRAME, ABOUT, payload.encode_values(values)))
        message = protocol.decode([part.buffer for part in other.recv_multipart(copy=False)])
        assert message.values is not None
        check_same(dict(message.values), arrived(values))
        del message


def test_encoded_values_decode_without_a_socket() -> None:
    """`decode_values` takes the parts from `encode_values`, arrays included, and `decode` those from `encode`."""
    shapes: list[tuple[int, ...]] = [(), (0,), (2, 0), (3,), (2, 3)]
    for dtype, shape in itertools.product(["bool", "float16", "float64", "complex64"], shapes):
        array = np.ones(shape, dtype)
        parts = payload.encode_values({"x": array})
        check_same(payload.decode_values(parts)["x"], array.copy())
        message = protocol.decode(protocol.encode(protocol.LEASE, LEASE, parts))
        assert message.values is not None
        check_same(message.values["x"], array.copy())


@pytest.mark.parametrize("cast", [bytes, bytearray, memoryview], ids=lambda cast: cast.__name__)
def test_arrays_are_read_only_views(cast: Callable[[bytes], Any]) -> None:
    """A received buffer is neither copied nor written through, also where the buffer itself could be written."""
    sent = travelled(payload.encode_values({"x": np.arange(100.0)}))
    parts = [cast(part) for part in sent]
    got = payload.decode_values(parts)["x"]
    assert np.shares_memory(got, np.frombuffer(parts[1], np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1


def test_contiguous_arrays_are_not_copied() -> None:
    """A megapixel image goes out without a copy."""
    image = np.zeros((1000, 1000, 3), np.uint8)
    _, part = payload.encode_values({"image": image})
    assert np.shares_memory(part, image)


def test_user_keys_may_start_with_a_dollar() -> None:
    """The mark of an array is escaped in the user's keys, at each level."""
    values = {"$": 0, "$$": 1, "$0": {"$": 0, "$$": {"$": 2}}, "x": [{"$": 0}], "a": np.int8(3), "": 5}
    check_same(round_trip(values), arrived(values))


def test_all_text_arrives() -> None:
    """Any text arrives as a value and as a key, also the lone surrogates of undecodable file names."""
    for text in ["grüß", "\U0001f600", "\0", "\ud800", "x\udfff", "\udc00\ud800", "\u2028", '"\\']:
        assert round_trip({text: text}) == {text: text}


def test_subclasses_arrive_as_their_plain_type() -> None:
    """Enumerations, named tuples and read-only views arrive as their plain values."""

    class Colour(enum.IntEnum):
        RED = 3

    class Name(str, enum.Enum):  # noqa: UP042 - users write it so, and StrEnum prints differently
        RED = "red"

    class Metres(float):
        pass

    values = {
        "int": Colour.RED,
        "str": Name.RED,
        "float": Metres(1.5),
        "life": Life(1, 2),
        "view": MappingProxyType({"a": 1}),
        "numpy": np.str_("text"),
    }
    expected = {"int": 3, "str": "red", "float": 1.5, "life": [1, 2], "view": {"a": 1}, "numpy": "text"}
    check_same(round_trip(values), expected)


def test_complex_numbers_travel_as_arrays() -> None:
    """A complex scalar arrives as an array without dimensions, of its own precision, because JSON has none."""
    values = payload.decode_values(payload.encode_values({"a": 1 + 2j, "b": np.complex64(3 - 1j)}))
    assert (values["a"].shape, values["a"].dtype.name, values["a"][()]) == ((), "complex128", 1 + 2j)
    assert (values["b"].shape, values["b"].dtype.name, values["b"][()]) == ((), "complex64", 3 - 1j)


class Numbers:
    """Numbers by the sequence protocol, as mathutils has them; its classes too say that they are of builtins."""

    __module__ = "builtins"

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        return self._items[i]


@pytest.fixture
def mathutils(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Blender's math module, as far as values go."""
    module: Any = types.ModuleType("mathutils")
    for name in ("Vector", "Matrix", "Quaternion", "Euler", "Color"):
        setattr(module, name, type(name, (Numbers,), {}))
    monkeypatch.setitem(sys.modules, "mathutils", module)
    return module


def test_mathutils_travel_as_arrays(mathutils: Any) -> None:
    """Values of Blender's math module arrive as float32 arrays, at any depth, and a matrix as its rows."""
    expected = np.array([1.0, 2.0, 0.1], np.float32)
    for name in ("Vector", "Quaternion", "Euler", "Color"):
        value = getattr(mathutils, name)(1.0, 2.0, 0.1)
        check_same(round_trip({"co": value, "deep": [{"co": value}]}), {"co": expected, "deep": [{"co": expected}]})
    rows = [mathutils.Vector(1.0, 2.0), mathutils.Vector(3.0, 4.0)]
    check_same(round_trip({"m": mathutils.Matrix(*rows)})["m"], np.array([[1, 2], [3, 4]], np.float32))


def test_what_only_looks_like_mathutils_does_not_travel(mathutils: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other sequences of numbers are refused, and so is everything where mathutils is not loaded."""
    with pytest.raises(payload.Unsendable, match="'x' is a"):
        payload.encode_values({"x": Numbers(1.0)})
    monkeypatch.delitem(sys.modules, "mathutils")
    with pytest.raises(payload.Unsendable, match="'x' is a"):
        payload.encode_values({"x": mathutils.Vector(1.0)})


def test_values_beyond_the_header_travel_apart() -> None:
    """The tree is in the header up to the header's limit, and with one byte more it is a part of its own."""
    image = np.arange(6, dtype=np.uint8)

    def parts_of(text: str) -> list[Any]:
        return protocol.encode(protocol.FRAME, ABOUT, payload.encode_values({"text": text, "image": image}))

    room = protocol.MAX_HEADER - len(parts_of("")[0])
    for extra, count in ((-1, 2), (0, 2), (1, 3), (1_000_000, 3)):
        text = "y" * (room + extra)
        parts = parts_of(text)
        assert len(parts) == count
        assert len(parts[0]) <= protocol.MAX_HEADER
        check_same(round_trip({"text": text, "image": image}), {"text": text, "image": image})


def nested(depth: int, core: Any) -> Any:
    """Return `core` in so many lists and dicts."""
    return functools.reduce(lambda value, i: {"k": value} if i % 2 else [value], range(depth), core)


def test_nesting_is_limited_on_both_sides() -> None:
    """What encodes decodes, up to the limit, and beyond it the sender is told."""
    for core in (1, np.ones(2)):
        deepest = {"x": nested(payload.MAX_DEPTH - 1, core)}
        check_same(round_trip(deepest), arrived(deepest))
        with pytest.raises(payload.Unsendable, match=r"value 'x[k.\[0\]]+' is nested more than 32 deep"):
            payload.encode_values({"x": nested(payload.MAX_DEPTH, core)})


def test_array_count_is_limited_on_both_sides() -> None:
    """As many arrays as are allowed arrive, also when the tree is a part of its own, and one more is refused."""
    most = payload.MAX_ARRAYS
    text = "y" * protocol.MAX_HEADER
    got = round_trip({"x": [np.array(i) for i in range(most)], "text": text})
    assert [int(a) for a in got["x"]] == list(range(most))
    with pytest.raises(payload.Unsendable, match=f"{most + 1} arrays in one sample"):
        payload.encode_values({"x": [np.array(0)] * (most + 1)})


def test_encoded_values_can_be_sent_again() -> None:
    """Params are encoded once, and sent with each lease of their index."""
    parts = payload.encode_values({"x": np.arange(3), "n": 1})
    before = travelled(parts)
    first = travelled(protocol.encode(protocol.LEASE, LEASE | {"lease": 1}, parts))
    again = travelled(protocol.encode(protocol.LEASE, LEASE | {"lease": 2}, parts))
    assert travelled(parts) == before
    check_same(protocol.decode(first).values, protocol.decode(again).values)
    assert protocol.decode(again).fields["lease"] == 2


def test_tensors_travel_as_arrays() -> None:
    """A tensor arrives as the array that it holds, whether it has a gradient or lies transposed."""
    tensors = {
        "flat": torch.arange(3.0, requires_grad=True), "turned": torch.arange(6).reshape(2, 3).T,
        "scalar": torch.tensor(7), "half": torch.ones(2, dtype=torch.float16), "none": torch.zeros(0, 4),
    }  # fmt: skip
    got = payload.decode_values(payload.encode_values({"deep": [tensors]}))["deep"][0]
    for name, tensor in tensors.items():
        wanted = tensor.detach().numpy()
        np.testing.assert_array_equal(got[name], wanted, strict=True)


# -- what cannot travel ------------------------------------------------------------------------------------------


class Custom:
    """Something of the user's own."""


UNSENDABLE: list[tuple[Any, str]] = [
    (b"raw", "builtins.bytes"),
    (bytearray(3), "bytearray"),
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    (range(3), "range"),
    (fractions.Fraction(1, 2), "Fraction"),
    (np.longdouble(1), "longdouble|float128"),
    (np.datetime64("2024-01-01"), "datetime64"),
    (datetime.date(2024, 1, 1), "datetime.date"),
    (decimal.Decimal(1), "decimal.Decimal"),
    (pathlib.PurePosixPath("a"), "pathlib"),
    (Custom(), "Custom"),
    (Custom, "builtins.type"),
    (len, "builtin_function"),
    (iter([1]), "iterator"),
    (np.array([object()]), "dtype object"),
    (np.array(["a"]), "dtype <U1"),
    (np.array([b"a"]), r"dtype \|S1"),
    (np.array(["2024-01-01"], "M8[D]"), "datetime64"),
    (np.zeros(2, "m8[s]"), "timedelta64"),
    (np.zeros(2, [("a", "i4")]), "dtype"),
    (np.zeros(2, np.longdouble), "float128|float64|float96"),
    (np.zeros((1,) * 9), "rank 9"),
    (np.broadcast_to(np.uint8(0), (1 << 30) + 1), "1073741825 bytes"),
    (10**5000, "too long"),
    (np.ma.masked_array([1, 2], [True, False]), "masked array, whose mask would be lost; fill it"),  # type: ignore[no-untyped-call]
    (np.ma.masked, "masked array"),
    (torch.ones(2, dtype=torch.bfloat16), "bfloat16 tensor that numpy cannot hold; convert it first"),
    (torch.eye(2).to_sparse(), "float32 tensor that numpy cannot hold"),
]


def test_what_cannot_travel_is_named(case: Any) -> None:
    """The error has the path to the value, and what the value is."""
    for value, reason in UNSENDABLE:
        with case(reason), pytest.raises(payload.Unsendable, match=f"(?s)'mask'.*({reason})"):
            payload.encode_values({"mask": value})
        with case(reason), pytest.raises(payload.Unsendable, match=rf"(?s)'a\.b c\[1\]\.\$d\[1\]'.*({reason})"):
            payload.encode_values({"a": {"b c": [0, {"$d": (1, value)}]}})


def test_keys_must_be_strings(case: Any) -> None:
    """A dict with another key is named by its path, and the key is shown."""
    for key in (1, None, b"x", ("a", "b"), 1.5, np.int64(3)):
        with case(key), pytest.raises(payload.Unsendable) as caught:
            payload.encode_values({"labels": [{key: 1}]})
        assert "'labels[0]'" in str(caught.value)
        assert repr(key) in str(caught.value)
        with case(key), pytest.raises(payload.Unsendable, match="the returned value has the key"):
            payload.encode_values({key: 1})  # type: ignore[dict-item]


def test_a_sample_must_be_a_mapping(case: Any) -> None:
    """Anything else that `sample` returned is named by its type."""
    values: list[Any] = [None, [1], "x", np.zeros(2), 3]
    for value in values:
        name = type(value).__name__
        with case(name), pytest.raises(payload.Unsendable, match=f"expected a dict of values, got {name}"):
            payload.encode_values(value)


def test_a_cycle_is_too_deep() -> None:
    """A list in itself is refused, not followed for ever."""
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(payload.Unsendable, match="nested more than 32 deep"):
        payload.encode_values({"x": cycle})


def test_plain_values_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that the other side would refuse is not sent."""
    monkeypatch.setattr(payload, "MAX_TREE", 1000)
    assert len(payload.encode_values({"x": "y" * 900})[0]) < 1000
    with pytest.raises(payload.Unsendable, match="bytes of values that are not arrays, at most 1000"):
        payload.encode_values({"x": "y" * 1000})
