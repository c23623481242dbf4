"""The wire format: what travels arrives, what cannot is named, and nothing that comes in does harm."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import json
import os
import pathlib
import pickle
import sys
import tracemalloc
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncblend.errors import ProtocolError
from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
ABOUT = {"lease": 7, "index": 3}
TOKEN = "5ca1ab1e"
WHO = {"token": TOKEN, "version": protocol.VERSION, "instance": 2, "epoch": 1}

check = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def travelled(parts: Sequence[Any]) -> list[bytes]:
    """Parts as a socket gives them to the other side."""
    return [part if isinstance(part, bytes) else part.tobytes() for part in parts]


def round_trip(values: Mapping[str, Any]) -> dict[str, Any]:
    parts = protocol.encode(protocol.FRAME, ABOUT, payload.encode_values(values))
    message = protocol.decode(travelled(parts))
    assert message.kind == protocol.FRAME
    assert message.fields == ABOUT
    assert message.values is not None
    return message.values


def arrived(value: Any) -> Any:
    """What the other side is promised for this value."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("<"), order="C")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [arrived(item) for item in value]
    if isinstance(value, dict):
        return {name: arrived(item) for name, item in value.items()}
    if isinstance(value, str):  # JSON's escapes cannot tell a pair of surrogates from the character that it stands for
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return value


def check_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(got, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()
        assert not got.flags.writeable
        assert got.flags.c_contiguous
    elif isinstance(got, list):
        assert len(got) == len(expected)
        for own, other in zip(got, expected, strict=True):
            check_same(own, other)
    elif isinstance(got, dict):
        assert list(got) == list(expected)
        for name in got:
            check_same(got[name], expected[name])
    else:
        assert repr(got) == repr(expected)  # tells NaN, -0.0 and 1 from True, as == does not


# -- what travels ------------------------------------------------------------------------------------------------


def laid_out(array: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    """The same values, otherwise in memory."""
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
    dtype = np.dtype(draw(st.sampled_from(DTYPES))).newbyteorder(draw(st.sampled_from(ORDERS)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    return laid_out(draw(hnp.arrays(dtype, shape)), draw(st.sampled_from(LAYOUTS)))


def numpy_scalars() -> st.SearchStrategy[Any]:
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
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


@check
@given(st.dictionaries(keys, trees, max_size=4))
def test_all_values_round_trip(values: dict[str, Any]) -> None:
    """Whatever nesting of what travels arrives as it was; tuples as lists, numpy scalars as Python's."""
    check_same(round_trip(values), arrived(values))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_each_dtype_and_layout_arrive(dtype: str, layout: str) -> None:
    """Either byte order, any strides, 0-d to 8-d, empty: little-endian, C-ordered and read-only on arrival."""
    for order in ORDERS:
        for shape in ((), (0,), (2, 0, 3), (1,), (3, 4), (2, 3, 1), (1, 2, 1, 2, 1, 2, 1, 2)):
            size = int(np.prod(shape))
            array = np.arange(size).reshape(shape).astype(np.dtype(dtype).newbyteorder(order))
            array = laid_out(array, layout)
            check_same(round_trip({"x": array})["x"], arrived(array))


def test_arrays_pass_through_a_socket() -> None:
    """ZeroMQ takes the encoded parts as they are, whatever the dtype and shape, and decode takes its buffers."""
    shapes: list[tuple[int, ...]] = [(), (0,), (2, 0), (3,), (200, 300)]
    values = {f"{name}{shape}": np.ones(shape, name) for name in DTYPES for shape in shapes}
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://wire")
        other.connect("inproc://wire")
        other.rcvtimeo = 10_000
        one.send_multipart(protocol.encode(protocol.FRAME, ABOUT, payload.encode_values(values)))
        message = protocol.decode([part.buffer for part in other.recv_multipart(copy=False)])
        assert message.values is not None
        check_same(dict(message.values), arrived(values))
        del message


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["bool", "float16", "float64", "complex64"])
def test_encoded_values_decode_without_a_socket(dtype: str, shape: tuple[int, ...]) -> None:
    """`decode_values` takes the parts from `encode_values`, arrays included, and `decode` those of `encode`."""
    array = np.ones(shape, dtype)
    parts = payload.encode_values({"x": array})
    check_same(payload.decode_values(parts)["x"], array.copy())
    message = protocol.decode(protocol.encode(protocol.LEASE, {**ABOUT, "since": 0}, parts))
    assert message.values is not None
    check_same(message.values["x"], array.copy())


@pytest.mark.parametrize("cast", [bytes, bytearray, memoryview], ids=lambda cast: cast.__name__)
def test_arrays_are_read_only_views(cast: Callable[[bytes], Any]) -> None:
    """No copy is made of a received buffer, and none can be written through, also where the buffer could be."""
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


@pytest.mark.parametrize("text", ["grüß", "\U0001f600", "\0", "\ud800", "x\udfff", "\udc00\ud800", "\u2028", '"\\'])
def test_all_text_arrives(text: str) -> None:
    """Also lone surrogates, as in undecodable file names: both as a value and as a key."""
    assert round_trip({text: text}) == {text: text}


def test_subclasses_arrive_as_their_plain_type() -> None:
    """Enumerations, named tuples and read-only views are their plain values."""

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


class Numbers:
    """Numbers by the sequence protocol, as mathutils has them; a real class of theirs says that it is of builtins."""

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


@pytest.mark.parametrize("name", ["Vector", "Quaternion", "Euler", "Color"])
def test_mathutils_travel_as_arrays(mathutils: Any, name: str) -> None:
    """Values of Blender's math module are arrays of their own precision on arrival, at any depth."""
    value = getattr(mathutils, name)(1.0, 2.0, 0.1)
    got = round_trip({"co": value, "deep": [{"co": value}]})
    expected = np.array([1.0, 2.0, 0.1], np.float32)
    check_same(got, {"co": expected, "deep": [{"co": expected}]})


def test_a_matrix_travels_as_its_rows(mathutils: Any) -> None:
    """An array of rank 2."""
    rows = [mathutils.Vector(1.0, 2.0), mathutils.Vector(3.0, 4.0)]
    check_same(round_trip({"m": mathutils.Matrix(*rows)})["m"], np.array([[1, 2], [3, 4]], np.float32))


def test_what_only_looks_like_mathutils_does_not_travel(mathutils: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where mathutils is not loaded."""
    with pytest.raises(payload.Unsendable, match="'x' is a"):
        payload.encode_values({"x": Numbers(1.0)})
    monkeypatch.delitem(sys.modules, "mathutils")
    with pytest.raises(payload.Unsendable, match="'x' is a"):
        payload.encode_values({"x": mathutils.Vector(1.0)})


def test_values_beyond_the_header_travel_apart() -> None:
    """Up to the header's limit the tree is in the header; one byte more, and it is one more part. Both arrive."""
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
    """`core` in so many lists and dicts."""
    return functools.reduce(lambda value, i: {"k": value} if i % 2 else [value], range(depth), core)


@pytest.mark.parametrize("core", [1, np.ones(2)], ids=["number", "array"])
def test_nesting_is_limited_on_both_sides(core: Any) -> None:
    """What encodes decodes, up to the limit; beyond it the sender is told."""
    deepest = {"x": nested(payload.MAX_DEPTH - 1, core)}
    check_same(round_trip(deepest), arrived(deepest))
    with pytest.raises(payload.Unsendable, match=r"value 'x[k.\[0\]]+' is nested more than 32 deep"):
        payload.encode_values({"x": nested(payload.MAX_DEPTH, core)})


def test_array_count_is_limited_on_both_sides() -> None:
    """As many arrays as parts allow arrive, also when the tree is a part of its own; one more is refused."""
    most = payload.MAX_PARTS - 2
    text = "y" * protocol.MAX_HEADER
    got = round_trip({"x": [np.array(i) for i in range(most)], "text": text})
    assert [int(a) for a in got["x"]] == list(range(most))
    with pytest.raises(payload.Unsendable, match=f"{most + 1} arrays in one sample"):
        payload.encode_values({"x": [np.array(0)] * (most + 1)})


def test_encoded_values_can_be_sent_again() -> None:
    """Params are encoded once, and sent with each lease of their index."""
    parts = payload.encode_values({"x": np.arange(3), "n": 1})
    before = travelled(parts)
    first = travelled(protocol.encode(protocol.LEASE, {"lease": 1, "index": 0, "since": 0}, parts))
    again = travelled(protocol.encode(protocol.LEASE, {"lease": 2, "index": 0, "since": 0}, parts))
    assert travelled(parts) == before
    check_same(protocol.decode(first).values, protocol.decode(again).values)
    assert protocol.decode(again).fields["lease"] == 2


def test_the_format_changes_only_with_its_version() -> None:
    """The bytes of a FRAME. If this fails on purpose, raise VERSION, for old copies must refuse new ones."""
    values = {
        "image": np.array([[1, 2], [3, 4]], np.uint8),
        "xy": np.array([1.5, -2.0], ">f4"),
        "scalar": np.array(True),
        "$own": {"list": (None, True, -1, 0.5, float("nan"), float("-inf"), "grüß")},
    }
    assert protocol.VERSION == 3
    assert travelled(protocol.encode("frame", {"lease": 7, "index": 3}, payload.encode_values(values))) == [
        (
            b'{"kind":"frame","lease":7,"index":3,"tree":{"arrays":[["uint8",[2,2]],["float32",[2]],["bool",[]]],'
            b'"values":{"image":{"$":0},"xy":{"$":1},"scalar":{"$":2},'
            b'"$$own":{"list":[null,true,-1,0.5,{"$float":"nan"},{"$float":"-inf"},"gr\\u00fc\\u00df"]}}}}'
        ),
        b"\x01\x02\x03\x04",
        b"\x00\x00\xc0\x3f\x00\x00\x00\xc0",
        b"\x01",
    ]


def test_a_tree_apart_has_its_format() -> None:
    """The header says that the tree is apart, and the tree is the same text as in a header."""
    tree, *_ = values = payload.encode_values({"text": "y" * protocol.MAX_HEADER, "x": np.zeros(1, np.int8)})
    parts = travelled(protocol.encode("frame", {"lease": 7, "index": 3}, values))
    assert parts == [b'{"kind":"frame","lease":7,"index":3,"apart":true}', tree, b"\0"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (protocol.HELLO, {}),
        (protocol.HELLO, {**WHO, "ready": True, "holding": [4, 5]}),
        (protocol.READY, {}),
        (protocol.FAILED, {**ABOUT, "error": "KeyError: 'x'", "traceback": "..."}),
        (protocol.BEAT, WHO),
        (protocol.BYE, {}),
        (protocol.WELCOME, {"version": 1, "seed": 2**70}),
        (protocol.STOP, {"reason": ""}),
    ],
)
def test_control_messages_round_trip(kind: str, fields: dict[str, Any]) -> None:
    """A message without values is one part."""
    parts = protocol.encode(kind, fields)
    assert len(parts) == 1
    assert protocol.decode(parts) == (kind, fields, None)


# -- what cannot travel ------------------------------------------------------------------------------------------


class Custom:
    """Something of the user's own."""


UNSENDABLE = [
    pytest.param(b"raw", "builtins.bytes", id="bytes"),
    pytest.param(bytearray(3), "bytearray", id="bytearray"),
    pytest.param({1, 2}, "set", id="set"),
    pytest.param(frozenset(), "frozenset", id="frozenset"),
    pytest.param(range(3), "range", id="range"),
    pytest.param(fractions.Fraction(1, 2), "Fraction", id="fraction"),
    pytest.param(np.longdouble(1), "longdouble|float128", id="longdouble"),
    pytest.param(np.datetime64("2024-01-01"), "datetime64", id="datetime64"),
    pytest.param(datetime.date(2024, 1, 1), "datetime.date", id="date"),
    pytest.param(decimal.Decimal(1), "decimal.Decimal", id="decimal"),
    pytest.param(pathlib.PurePosixPath("a"), "pathlib", id="path"),
    pytest.param(Custom(), "Custom", id="custom"),
    pytest.param(Custom, "builtins.type", id="class"),
    pytest.param(len, "builtin_function", id="function"),
    pytest.param(iter([1]), "iterator", id="iterator"),
    pytest.param(np.array([object()]), "dtype object", id="object-array"),
    pytest.param(np.array(["a"]), "dtype <U1", id="str-array"),
    pytest.param(np.array([b"a"]), r"dtype \|S1", id="bytes-array"),
    pytest.param(np.array(["2024-01-01"], "M8[D]"), "datetime64", id="datetime-array"),
    pytest.param(np.zeros(2, "m8[s]"), "timedelta64", id="timedelta-array"),
    pytest.param(np.zeros(2, [("a", "i4")]), "dtype", id="structured-array"),
    pytest.param(np.zeros(2, np.longdouble), "float128|float64|float96", id="longdouble-array"),
    pytest.param(np.zeros((1,) * 9), "rank 9", id="rank-9"),
    pytest.param(np.broadcast_to(np.uint8(0), (1 << 30) + 1), "1073741825 bytes", id="huge-array"),
    pytest.param(10**5000, "too long", id="long-number"),
]


@pytest.mark.parametrize(("value", "reason"), UNSENDABLE)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: {"mask": value}, "'mask'"),
        (lambda value: {"a": {"b c": [0, {"$d": (1, value)}]}}, r"'a\.b c\[1\]\.\$d\[1\]'"),
    ],
    ids=["top", "deep"],
)
def test_what_cannot_travel_is_named(value: Any, reason: str, wrap: Callable[[Any], Any], path: str) -> None:
    """The error has the path to the value, and what it is."""
    with pytest.raises(payload.Unsendable, match=f"(?s){path}.*({reason})"):
        payload.encode_values(wrap(value))


@pytest.mark.parametrize("key", [1, None, b"x", ("a", "b"), 1.5, np.int64(3)], ids=repr)
def test_keys_must_be_strings(key: Any) -> None:
    """A dict with another key is named by its path, and the key is shown."""
    with pytest.raises(payload.Unsendable) as caught:
        payload.encode_values({"labels": [{key: 1}]})
    assert "'labels[0]'" in str(caught.value)
    assert repr(key) in str(caught.value)
    with pytest.raises(payload.Unsendable, match="the returned value has the key"):
        payload.encode_values({key: 1})


@pytest.mark.parametrize("values", [None, [1], "x", np.zeros(2), 3])
def test_a_sample_must_be_a_mapping(values: Any) -> None:
    """What `sample` returned is named by its type."""
    with pytest.raises(payload.Unsendable, match=f"expected a dict of values, got {type(values).__name__}"):
        payload.encode_values(values)


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


# -- what comes in -----------------------------------------------------------------------------------------------


def refused(parts: Sequence[Any]) -> str:
    """The message of the one error that may come of it."""
    with pytest.raises(ProtocolError) as caught:
        protocol.decode(parts)
    return str(caught.value)


def header(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def frame_with(tree: Any, **fields: Any) -> bytes:
    return header(kind="frame", lease=7, index=3, tree=tree, **fields)


def frame_of(dtype: Any, shape: Any) -> bytes:
    return frame_with({"arrays": [[dtype, shape]], "values": {"x": {"$": 0}}})


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"frame"',
        b"{}",
        b"{'kind': 'ready'}",
        b'{"kind":"ready"} trailing',
        b'{"kind":"ready","x":' + b"9" * 5000 + b"}",
        b"\xff\xfe\xfd",
        b'{"kind":"\xff"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        header(kind="ready").decode().encode("utf-16")[:-1],
        header(kind=None),
        header(kind=3),
        header(kind=["ready"]),
        header(kind={"ready": 1}),
        header(kind="READY"),
        header(kind="\ud800"),
        header(kind=""),
        header(king="ready"),
    ],
    ids=lambda head: repr(head[:20]),
)
def test_a_bad_header_is_refused(head: bytes) -> None:
    """Anything but a JSON object of a known kind."""
    refused([head])


def test_a_header_has_a_limit() -> None:
    """64 KiB, and not a byte more, whatever it says."""
    short = header(kind="ready", x="")
    fits = header(kind="ready", x="y" * (protocol.MAX_HEADER - len(short)))
    assert protocol.decode([fits]).kind == protocol.READY
    assert "65537 bytes" in refused([fits.replace(b"y", b"yy", 1)])


@pytest.mark.parametrize("count", [0, payload.MAX_PARTS + 1])
def test_the_number_of_parts_has_a_limit(count: int) -> None:
    """No parts at all, or too many."""
    assert f"{count} parts" in refused([header(kind="ready")] * count)


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (protocol.FRAME, ABOUT),
        (protocol.FAILED, {**ABOUT, "error": "e", "traceback": "t"}),
        (protocol.BEAT, WHO),
        (protocol.WELCOME, {"version": 1, "seed": 0}),
        (protocol.LEASE, {**ABOUT, "since": 0}),
        (protocol.STOP, {"reason": ""}),
    ],
)
def test_each_field_is_needed_with_its_type(kind: str, good: dict[str, Any]) -> None:
    """A missing field, one of another type, or a negative number is named."""
    values: dict[str, Any] = {"tree": {"arrays": [], "values": {}}} if kind in (protocol.FRAME, protocol.LEASE) else {}
    assert protocol.decode([header(kind=kind, **good, **values)]).fields == good
    for name, right in good.items():
        rest = {key: value for key, value in good.items() if key != name}
        assert repr(name) in refused([header(kind=kind, **rest, **values)])
        wrong: list[Any] = [None, [], {}, True, 1.0]
        wrong += ["1", -1] if isinstance(right, int) else [3, ["x"]]
        for value in wrong:
            assert repr(name) in refused([header(kind=kind, **{**good, name: value}, **values)])


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([header(kind="ready"), b"x"], id="part-of-control"),
        pytest.param([header(kind="frame", **ABOUT)], id="no-tree"),
        pytest.param([header(kind="frame", tree=None, **ABOUT)], id="null-tree"),
        pytest.param([header(kind="lease", since=0, **ABOUT)], id="lease-without-tree"),
        pytest.param([frame_with([])], id="tree-list"),
        pytest.param([frame_with({})], id="tree-empty"),
        pytest.param([frame_with(False)], id="tree-false"),
        pytest.param([frame_with({"arrays": []})], id="no-values"),
        pytest.param([frame_with({"values": {}})], id="no-arrays"),
        pytest.param([frame_with({"arrays": {}, "values": {}})], id="arrays-dict"),
        pytest.param([frame_with({"arrays": [], "values": []})], id="values-list"),
        pytest.param([frame_with({"arrays": [], "values": {}}), b""], id="part-too-many"),
        pytest.param([frame_of("uint8", [1])], id="part-missing"),
        pytest.param([header(kind="frame", apart=True, **ABOUT)], id="apart-missing"),
        pytest.param([header(kind="frame", apart=True, **ABOUT), b"[]"], id="apart-list"),
        pytest.param([header(kind="frame", apart=True, **ABOUT), b"{"], id="apart-no-json"),
        pytest.param([header(kind="frame", apart=True, **ABOUT), b""], id="apart-empty"),
        pytest.param([header(kind="frame", apart=1, **ABOUT), b'{"arrays":[],"values":{}}'], id="apart-one"),
        pytest.param([header(kind="ready", apart=True)], id="apart-control"),
        *(
            pytest.param([frame_with({"arrays": [["uint8", [1]]], "values": {"x": mark}}), b"x"], id=f"mark-{mark}")
            for mark in (
                {"$": 1},
                {"$": -1},
                {"$": "0"},
                {"$": 0.0},
                {"$": True},
                {"$": None},
                {"$": 0, "a": 1},
            )
        ),
        pytest.param([frame_with({"arrays": [], "values": {"x": nested(40, 1)}})], id="too-deep"),
    ],
)
def test_a_bad_message_is_refused(parts: list[bytes]) -> None:
    """Parts and tree must describe each other."""
    refused(parts)


def test_a_tree_apart_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is parsed."""
    monkeypatch.setattr(payload, "MAX_TREE", 100)
    head = header(kind="frame", apart=True, **ABOUT)
    tree = b'{"arrays":[],"values":{}}'
    assert protocol.decode([head, tree.ljust(100)]).values == {}
    assert "too large" in refused([head, tree.ljust(101)])


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        *((["uint8", shape], 8) for shape in ([9], [7], [2, 3], [], [8, 0], [0], [-8], [-2, -4], [8, -1], [-1])),
        *((["uint8", shape], 8) for shape in ([8.0], ["8"], [True] * 8, [None], "8", 8, None, {"0": 8}, [[8]])),
        *(([dtype, [1]], 8) for dtype in ("object", "O", "U2", "S8", "V8", "M8[s]", "float128", ">f8", "<f8", "int")),
        *(([dtype, [1]], 8) for dtype in ("", "str", "void", "datetime64", "f8", None, 8, ["float64"], "\ud800")),
        *((spec, 8) for spec in ("float64", None, [], ["float64"], ["float64", [1], 0], {"dtype": "float64"}, 8)),
        (["uint8", [1] * 9], 1),
        (["uint8", [1] * 99], 1),
        (["uint8", [0] * 99], 0),
        (["uint8", [2**62]], 8),
        (["uint8", [2**32, 2**32]], 0),  # 2**64: nothing, in a machine's arithmetic
        (["uint8", [2**32, 2**32, 8]], 8),
        (["float64", [2**61]], 0),
        (["float64", [2**61 + 1]], 8),
        (["uint8", [2**63, 2]], 0),
        (["complex128", [2**60, 2**60, 2**8]], 16),
        (["uint8", [0, 2**70]], 0),
        (["uint8", [2**70, 0]], 0),
        (["uint8", [10**4000, 10**4000]], 8),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_lying_description_is_refused_before_any_allocation(spec: Any, size: int) -> None:
    """dtype against the whitelist, rank, dims, and their product in Python's integers against the buffer."""
    parts = [frame_with({"arrays": [spec], "values": {"x": {"$": 0}}}), bytes(size)]
    refused(parts)  # once before, for what is allocated once
    tracemalloc.start()
    try:
        refused(parts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [0, 2**40, 2**40], [2**31, 2**31, 0]], ids=str)
def test_an_empty_array_of_absurd_shape_allocates_nothing(shape: list[int]) -> None:
    """Whether or not numpy can have such an array, it costs nothing and raises nothing else."""
    tracemalloc.start()
    try:
        try:
            values = protocol.decode([frame_of("float64", shape), b""]).values
        except ProtocolError:
            pass
        else:
            assert values is not None
            assert values["x"].nbytes == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


PLACES: list[Callable[[Any], dict[str, Any]]] = [
    lambda deep: {"kind": deep},
    lambda deep: {"kind": "stop", "reason": deep},
    lambda deep: {"kind": "hello", "token": deep},
    lambda deep: {"kind": "frame", **ABOUT, "tree": deep},
    lambda deep: {"kind": "frame", **ABOUT, "tree": {"arrays": [deep], "values": {}}},
    lambda deep: {"kind": "frame", **ABOUT, "tree": {"arrays": [["uint8", deep]], "values": {}}},
    lambda deep: {"kind": "frame", **ABOUT, "tree": {"arrays": [], "values": {"x": deep}}},
    lambda deep: {"kind": "frame", **ABOUT, "tree": {"arrays": [], "values": {"x": {"$": deep}}}},
]


@pytest.mark.parametrize("place", PLACES)
def test_nesting_never_runs_out_of_stack(place: Callable[[Any], dict[str, Any]]) -> None:
    """However deep a hostile header is, up to and beyond what the JSON parser takes, it is one ProtocolError."""
    text = json.dumps(place("DEEP"))
    for depth in [*range(1, 100, 9), *range(600, 1100), 5000, 20_000]:
        for opened, closed in (("[", "]"), ('{"a":', "}")):
            head = text.replace('"DEEP"', opened * depth + "1" + closed * depth).encode()
            parts = [head, b"x"] if "uint8" in text or "[DEEP]" in text else [head]
            try:
                message = protocol.decode(parts)
                protocol.life_of(message.fields, TOKEN)
            except ProtocolError:
                continue
            pytest.fail(f"depth {depth} was taken")  # a HELLO with such a token, or shallow values


def test_pickles_do_nothing(tmp_path: pathlib.Path) -> None:
    """A pickle in any part is bytes like any other: refused, or the data of an array."""
    proof = tmp_path / "exploded"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(proof),)

    bomb = pickle.dumps(Bomb())
    refused([bomb])
    refused([header(kind="frame", apart=True, **ABOUT), bomb])
    refused([frame_of("object", [1]), bomb])
    message = protocol.decode([frame_of("uint8", [len(bomb)]), bomb])
    assert message.values is not None
    assert message.values["x"].tobytes() == bomb
    assert not proof.exists()
    pickle.loads(bomb)
    assert proof.exists()  # it was a live one


# -- who sends it ------------------------------------------------------------------------------------------------


def test_life_of_names_the_sender() -> None:
    """The right token and version give the instance and its epoch."""
    assert protocol.life_of(WHO, TOKEN) == Life(2, 1)


@pytest.mark.parametrize("token", ["", "5ca1ab1", "5ca1ab1e ", "5CA1AB1E", "grüß", "\ud800"], ids=ascii)
def test_a_wrong_token_is_refused(token: str) -> None:
    """Whatever it is made of; and neither token is told."""
    with pytest.raises(ProtocolError, match="wrong token") as caught:
        protocol.life_of({**WHO, "token": token}, TOKEN)
    assert TOKEN not in str(caught.value)


def test_a_wrong_token_is_told_nothing_more() -> None:
    """The token is checked before anything else: a stranger does not learn our version."""
    with pytest.raises(ProtocolError, match="wrong token"):
        protocol.life_of({**WHO, "token": "x", "version": 99, "instance": None}, TOKEN)


@pytest.mark.parametrize("version", [0, 1, 2, 4, -1, 10**20, "1", None, [1], 1.5], ids=repr)
def test_another_version_is_refused_with_both_named(version: Any) -> None:
    """The message names what the other side speaks and what we speak, and says what to do."""
    other = f"version {version!r:.40}, this asyncblend speaks {protocol.VERSION}"
    with pytest.raises(ProtocolError) as caught:
        protocol.life_of({**WHO, "version": version}, TOKEN)
    assert other in str(caught.value)
    with pytest.raises(ProtocolError) as caught:
        protocol.check_version({"version": version}, "the host")
    assert f"the host speaks protocol {other}" in str(caught.value)


@pytest.mark.parametrize("name", WHO)
def test_each_part_of_an_identity_is_needed(name: str) -> None:
    """A HELLO or BEAT without it is refused."""
    with pytest.raises(ProtocolError, match=name):
        protocol.life_of({key: value for key, value in WHO.items() if key != name}, TOKEN)


@pytest.mark.parametrize("name", ["token", "instance", "epoch"])
@pytest.mark.parametrize("value", [None, -1, 1.5, [], True, {}], ids=repr)
def test_each_part_of_an_identity_has_its_type(name: str, value: Any) -> None:
    """Another type, or a negative number, is refused by name."""
    with pytest.raises(ProtocolError, match=f"field {name!r}"):
        protocol.life_of({**WHO, name: value}, TOKEN)


@pytest.mark.parametrize(
    ("of", "good", "bad"),
    [
        (int, [0, 5, 10**30], [-1, True, 1.0, "1", None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (bool, [True, False], [1, 0, None, "true"]),
        (list, [[], [1]], [{}, "x", None]),
    ],
)
def test_field_checks_the_very_type(of: type, good: list[Any], bad: list[Any]) -> None:
    """True is no number, and 1 is no truth."""
    for value in good:
        assert protocol.field({"x": value}, "x", of) == value
    for value in bad:
        with pytest.raises(ProtocolError, match=f"field 'x' must be a {of.__name__}"):
            protocol.field({"x": value}, "x", of)
    with pytest.raises(ProtocolError, match="'x'"):
        protocol.field({}, "x", of)


# -- fuzzing -----------------------------------------------------------------------------------------------------


def leaves_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(item)
    else:
        yield value


def check_harmless(parts: Sequence[bytes]) -> None:
    """Decode as the hub does: a good message, or a ProtocolError; whatever else raises fails the test."""
    try:
        message = protocol.decode(parts)
        if message.kind in (protocol.HELLO, protocol.BEAT):
            protocol.life_of(message.fields, TOKEN)
        elif message.kind == protocol.WELCOME:
            protocol.check_version(message.fields, "the host")
    except ProtocolError:
        return
    for leaf in leaves_of(message.values):
        if isinstance(leaf, np.ndarray):
            assert leaf.dtype.name in DTYPES
            assert not leaf.flags.writeable
        else:
            assert leaf is None or isinstance(leaf, bool | int | float | str)


VALUES = payload.encode_values(
    {
        "image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "xy": np.ones((2, 2)),
        "n": [1, "a", {"$": None}],
    }
)
BIG = payload.encode_values({"text": "y" * 66_000, "image": np.arange(6)})
VALID: list[list[bytes]] = [
    travelled(parts)
    for parts in (
        protocol.encode(protocol.FRAME, ABOUT, VALUES),
        protocol.encode(protocol.LEASE, {**ABOUT, "since": 0}, VALUES),
        protocol.encode(protocol.FRAME, ABOUT, BIG),
        protocol.encode(protocol.HELLO, {**WHO, "ready": True, "holding": [1, 2]}),
        protocol.encode(protocol.BEAT, WHO),
        protocol.encode(protocol.FAILED, {**ABOUT, "error": "e", "traceback": "t"}),
        protocol.encode(protocol.WELCOME, {"version": 1, "seed": 0}),
        protocol.encode(protocol.STOP, {"reason": "over"}),
    )
]


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A good message, hurt in one to four ways."""
    parts = list(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        if not parts:
            break
        i = draw(st.integers(0, len(parts) - 1))
        part = parts[i]
        at = draw(st.integers(0, len(part)))
        match draw(st.sampled_from(["flip", "replace", "truncate", "extend", "drop", "double", "swap", "splice"])):
            case "flip" if at < len(part):
                parts[i] = part[:at] + bytes([part[at] ^ (1 << draw(st.integers(0, 7)))]) + part[at + 1 :]
            case "replace":
                new = draw(st.sampled_from([b"0", b"-1", b"9" * 30, b"null", b"[]", b"{}", b'"', b"\\ud800", b"NaN"]))
                parts[i] = part[:at] + new + part[at + draw(st.integers(0, 8)) :]
            case "truncate":
                parts[i] = part[:at]
            case "extend":
                parts[i] = part + draw(st.binary(max_size=8))
            case "drop":
                del parts[i]
            case "double":
                parts.insert(i, part)
            case "swap":
                j = draw(st.integers(0, len(parts) - 1))
                parts[i], parts[j] = parts[j], parts[i]
            case "splice":
                other = draw(st.sampled_from(VALID))
                parts[i:] = other[i:]
    return parts


@settings(check, max_examples=1500)
@given(mutated())
def test_hurt_messages_are_harmless(parts: list[bytes]) -> None:
    """Bytes flipped, parts dropped, doubled, swapped, cut: a message or a ProtocolError, nothing else."""
    check_harmless(parts)


@check
@given(st.lists(st.binary(max_size=64), max_size=5))
def test_random_bytes_are_harmless(parts: list[bytes]) -> None:
    """Noise is a ProtocolError."""
    refused(parts)


NAMES = [
    *(
        "kind",
        "lease",
        "index",
        "since",
        "error",
        "traceback",
        "token",
        "version",
        "instance",
        "epoch",
        "seed",
    ),
    *("reason", "holding", "ready", "tree", "apart", "arrays", "values", "$", "$$", "x"),
]
KINDS = [*(message[0] for message in map(protocol.decode, VALID)), "ready", "bye", "nonsense"]
any_text = st.one_of(
    st.sampled_from([*NAMES, *DTYPES, *KINDS, TOKEN]),
    st.text(st.characters(codec=None, exclude_categories=()), max_size=4),
)
numbers = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30]))
any_json = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), any_text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(any_text, inner, max_size=4)),
    max_leaves=8,
)
specs = st.tuples(st.sampled_from(DTYPES), st.lists(numbers, max_size=3)).map(list)
likely_trees = st.fixed_dictionaries(
    {
        "arrays": st.lists(st.one_of(specs, any_json), max_size=3),
        "values": st.dictionaries(any_text, st.one_of(any_json, st.builds(lambda i: {"$": i}, numbers)), max_size=3),
    }
)
headers = st.fixed_dictionaries(
    {"kind": st.one_of(st.sampled_from(KINDS), any_json)},
    optional={
        **dict.fromkeys(("lease", "index", "since", "instance", "epoch", "seed"), st.one_of(numbers, any_json)),
        **dict.fromkeys(("error", "traceback", "token", "reason"), st.one_of(any_text, any_json)),
        "version": st.one_of(st.just(protocol.VERSION), any_json),
        "tree": st.one_of(likely_trees, any_json),
        "apart": st.one_of(st.booleans(), any_json),
    },
)


@settings(check, max_examples=600)
@given(headers, st.lists(st.one_of(st.binary(max_size=16), likely_trees.map(lambda t: header(**t))), max_size=3))
def test_random_headers_are_harmless(fields: dict[str, Any], body: list[bytes]) -> None:
    """JSON of the right words in the wrong places: a message or a ProtocolError, nothing else."""
    check_harmless([header(**fields), *body])


def test_complex_numbers_travel_as_arrays() -> None:
    """JSON has none: a scalar arrives as an array without dimensions, of its own precision."""
    values = payload.decode_values(payload.encode_values({"a": 1 + 2j, "b": np.complex64(3 - 1j)}))
    assert (values["a"].shape, values["a"].dtype.name, values["a"][()]) == ((), "complex128", 1 + 2j)
    assert (values["b"].shape, values["b"].dtype.name, values["b"][()]) == ((), "complex64", 3 - 1j)
