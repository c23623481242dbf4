"""The wire format: its bytes are pinned, every message is checked, and only a known life of an instance is heard."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest

from asyncblend.errors import ProtocolError
from asyncblend.wire import payload, protocol
from asyncblend.wire.launch import Life
from asyncblend.wire.request import Request, encode_leases
from tests.wire.samples import (
    ABOUT,
    FAILED,
    HELLO,
    LEASE,
    REVOKE,
    STOP,
    TOKEN,
    WELCOME,
    WHO,
    frame_of,
    frame_with,
    header,
    refused,
    travelled,
)


def test_the_format_changes_only_with_its_version() -> None:
    """The bytes of a FRAME are pinned: whoever changes them raises VERSION, because old copies must refuse new ones."""
    values = {
        "image": np.array([[1, 2], [3, 4]], np.uint8),
        "xy": np.array([1.5, -2.0], ">f4"),
        "scalar": np.array(True),
        "$own": {"list": (None, True, -1, 0.5, float("nan"), float("-inf"), "grüß")},
    }
    assert protocol.VERSION == 7
    assert travelled(protocol.encode("frame", ABOUT, payload.encode_values(values))) == [
        (
            b'{"kind":"frame","pass":4,"lease":7,"index":3,"tree":{"arrays":[["uint8",[2,2]],["float32",[2]],["bool",[]]],'
            b'"values":{"image":{"$":0},"xy":{"$":1},"scalar":{"$":2},'
            b'"$$own":{"list":[null,true,-1,0.5,{"$float":"nan"},{"$float":"-inf"},"gr\\u00fc\\u00df"]}}}}'
        ),
        b"\x01\x02\x03\x04",
        b"\x00\x00\xc0\x3f\x00\x00\x00\xc0",
        b"\x01",
    ]


def test_what_a_frame_took_travels_in_microseconds() -> None:
    """Whole ones, in fields that are left out where there is nothing to say."""
    spent = protocol.Spent(1.5, 1.25, 0.0000004)
    assert spent.fields() == {"sample": 1_500_000, "render": 1_250_000, "capture": 0}
    assert protocol.Spent(0.25).fields() == {"sample": 250_000}
    for one in (spent, protocol.Spent(0.25), protocol.Spent()):
        parts = travelled(protocol.encode(protocol.FRAME, {**ABOUT, **one.fields()}, payload.encode_values({})))
        step = protocol.Step.of(protocol.decode(parts).fields)
        assert step.spent == pytest.approx(one, abs=1e-6)
        assert (step.number, step.last) == (0, True)
    assert protocol.Step.of(ABOUT) == protocol.WHOLE
    assert protocol.Step.of(ABOUT | {"step": 2, "last": False, "sample": 7}).spent == protocol.Spent(7e-6)


@pytest.mark.parametrize("name", ["sample", "render", "capture"])
@pytest.mark.parametrize("time", [-1, 0.5, 1e300, True, "3", None, [1], 10**12 + 1, 10**4000])
def test_a_time_that_none_is_is_refused(name: str, time: Any) -> None:
    """Times are whole numbers from 0 on, and no longer than days."""
    parts = travelled(protocol.encode(protocol.FRAME, {**ABOUT, "sample": 1, name: time}, payload.encode_values({})))
    with pytest.raises(ProtocolError):
        protocol.Step.of(protocol.decode(parts).fields)


def test_a_tree_apart_has_its_format() -> None:
    """The header says that the tree is a part of its own, which has the same text as in a header."""
    tree, *_ = values = payload.encode_values({"text": "y" * protocol.MAX_HEADER, "x": np.zeros(1, np.int8)})
    parts = travelled(protocol.encode("frame", ABOUT, values))
    assert parts == [b'{"kind":"frame","pass":4,"lease":7,"index":3,"apart":true}', tree, b"\0"]


def test_control_messages_round_trip(case: Any) -> None:
    """A message without values is one part."""
    messages: list[tuple[str, dict[str, Any]]] = [
        (protocol.HELLO, {}),
        (protocol.HELLO, HELLO),
        (protocol.READY, {}),
        (protocol.FAILED, FAILED),
        (protocol.BEAT, WHO),
        (protocol.BYE, {}),
        (protocol.WELCOME, WELCOME | {"seed": 2**70}),
        (protocol.REVOKE, REVOKE),
        (protocol.STOP, STOP),
    ]
    for kind, fields in messages:
        with case((kind, fields)):
            parts = protocol.encode(kind, fields)
            assert len(parts) == 1
            assert protocol.decode(parts) == (kind, fields, None)


# -- what comes in -----------------------------------------------------------------------------------------------


def test_a_bad_header_is_refused(case: Any) -> None:
    """Anything but a JSON object of a known kind is refused."""
    heads = [
        *(b"", b"\0", b"{", b"[]", b"3", b"null", b'"frame"', b"{}", b"{'kind': 'ready'}"),
        b'{"kind":"ready"} trailing',
        b'{"kind":"ready","x":' + b"9" * 5000 + b"}",
        b"\xff\xfe\xfd",
        b'{"kind":"\xff"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        header(kind="ready").decode().encode("utf-16")[:-1],
        *(header(kind=kind) for kind in (None, 3, ["ready"], {"ready": 1}, "READY", "\ud800", "")),
        header(king="ready"),
    ]
    for head in heads:
        with case(head[:20]):
            refused([head])


def test_a_header_has_a_limit() -> None:
    """A header may have 64 KiB, and not a byte more, whatever it says."""
    short = header(kind="ready", x="")
    fits = header(kind="ready", x="y" * (protocol.MAX_HEADER - len(short)))
    assert protocol.decode([fits]).kind == protocol.READY
    assert "65537 bytes" in refused([fits.replace(b"y", b"yy", 1)])


def test_the_number_of_parts_has_a_limit() -> None:
    """No parts at all are refused, and so are too many."""
    for count in (0, payload.MAX_PARTS + 1):
        assert f"{count} parts" in refused([header(kind="ready")] * count)


def lease(serial: int, *, number: int = 4, urgent: bool = False, **more: Any) -> Request:
    """Return a lease with these params, if there are any."""
    params = payload.encode_values(more.pop("params", {}))
    return Request((number, serial), 100 + serial, params, urgent=urgent, **more)


def leased(requests: list[Request]) -> list[list[protocol.Message]]:
    """Return the leases of each message that these are sent in, as the other side decodes them."""
    found = []
    for parts in encode_leases(requests):
        assert len(parts[0]) <= protocol.MAX_HEADER
        message = protocol.decode(travelled(parts))
        found.append(message.fields["leases"] if message.kind == protocol.LEASES else [message])
    return found


def test_leases_travel_together_as_they_would_alone() -> None:
    """Each is the LEASE that it would be on its own, and they keep their order, whatever passes they are of."""
    requests = [lease(7), lease(0, number=5, urgent=True), lease(8, params={"a": [1, None, float("nan")]})]
    (together,) = leased(requests)
    alone = [protocol.decode(travelled(one.encode())) for one in requests]
    assert repr(together) == repr(alone)  # tells NaN from NaN
    assert leased(requests[:1]) == [alone[:1]]


def test_a_lease_of_which_more_is_to_be_said_travels_alone() -> None:
    """One whose params have arrays or are long, and an episode that is gone on with."""
    usual = [lease(serial) for serial in range(4)]
    special = [lease(10, params={"a": np.eye(2)}), lease(11, params={"a": "x" * 2000}), lease(12, first=2)]
    messages = leased([*usual[:2], *special, *usual[2:]])
    assert [[one.fields["lease"] for one in message] for message in messages] == [[0, 1], [10], [11], [12], [2, 3]]
    assert messages[3][0].fields["first"] == 2


def test_many_leases_take_several_messages() -> None:
    """No message has more than the other side takes, in number and in bytes."""
    for params in ({}, {"a": "x" * 900}):
        requests = [lease(2**62 + serial, params=params) for serial in range(1000)]
        messages = leased(requests)
        assert 1 < len(messages) < 50
        assert [one.fields["lease"] for message in messages for one in message] == [one.name[1] for one in requests]


def test_leases_are_checked_one_by_one(case: Any) -> None:
    """Each needs its four parts with their types, and a good tree if it has one; there are neither none nor too many."""
    plain: dict[str, Any] = {"arrays": [], "values": {}}
    good: list[Any] = [4, 7, 3, False, plain]
    assert protocol.decode([header(kind="leases", leases=[good, good[:4]])]).fields["leases"][0].values == {}
    bad: list[Any] = [
        None,
        1,
        [],
        {},
        good[:3],
        [*good, 1],
        [*good[:4], None],
        [*good[:4], {"arrays": [["uint8", [1]]]}],
    ]
    for i in range(4):
        values_of_any_type: list[Any] = [None, 1.0, "1", -1, [], True if i < 3 else 1]
        bad += [[*good[:i], value, *good[i + 1 :]] for value in values_of_any_type]
    for one in bad:
        with case(one):
            refused([header(kind="leases", leases=[good, one])])
    refused([header(kind="leases", leases=[])])
    refused([header(kind="leases", leases=[good[:4]] * (protocol.MAX_LEASES + 1))])
    refused([header(kind="leases", leases=[good]), b"x"])
    refused([header(kind="leases", leases=[good], tree=plain)])
    refused([header(kind="leases", leases=[good], apart=True), b'{"arrays":[],"values":{}}'])


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (protocol.FRAME, ABOUT),
        (protocol.FAILED, FAILED),
        (protocol.BEAT, WHO),
        (protocol.WELCOME, WELCOME),
        (protocol.LEASE, LEASE),
        (protocol.REVOKE, REVOKE),
        (protocol.STOP, STOP),
    ],
)
def test_each_field_is_needed_with_its_type(kind: str, good: dict[str, Any], case: Any) -> None:
    """A missing field, one of another type, and a negative number are named."""
    values: dict[str, Any] = {"tree": {"arrays": [], "values": {}}} if kind in (protocol.FRAME, protocol.LEASE) else {}
    assert protocol.decode([header(kind=kind, **good, **values)]).fields == good
    for name, right in good.items():
        rest = {key: value for key, value in good.items() if key != name}
        assert repr(name) in refused([header(kind=kind, **rest, **values)])
        values_of_any_type: list[Any] = [None, [], ["x"], {}, True, 1.0, 3, "1", -1]
        for value in values_of_any_type:
            if type(value) is type(right) and value != -1:
                continue
            with case((name, value)):
                assert repr(name) in refused([header(kind=kind, **{**good, name: value}, **values)])


def test_parts_and_tree_must_describe_each_other(case: Any) -> None:
    """A message whose parts, arrays and values do not fit together is refused."""
    apart = header(kind="frame", apart=True, **ABOUT)
    one = {"arrays": [["uint8", [1]]]}
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    no_trees: list[Any] = [None, [], {}, False]
    marks: list[Any] = [{"$": 1}, {"$": -1}, {"$": "0"}, {"$": 0.0}, {"$": True}, {"$": None}, {"$": 0, "a": 1}]
    messages: dict[str, list[bytes]] = {
        "a control message with a part": [header(kind="ready"), b"x"],
        "a control message with a tree apart": [header(kind="ready", apart=True)],
        "a frame without a tree": [header(kind="frame", **ABOUT)],
        "a lease without a tree": [header(kind="lease", **LEASE)],
        **{f"the tree {tree!r}": [frame_with(tree)] for tree in no_trees},
        "no values": [frame_with({"arrays": []})],
        "no arrays": [frame_with({"values": {}})],
        "arrays as a dict": [frame_with({"arrays": {}, "values": {}})],
        "values as a list": [frame_with({"arrays": [], "values": []})],
        "a part too many": [frame_with({"arrays": [], "values": {}}), b""],
        "a part too few": [frame_of("uint8", [1])],
        "the tree apart is missing": [apart],
        "the tree apart is a list": [apart, b"[]"],
        "the tree apart is no JSON": [apart, b"{"],
        "the tree apart is empty": [apart, b""],
        "apart is no bool": [header(kind="frame", apart=1, **ABOUT), b'{"arrays":[],"values":{}}'],
        **{f"the mark {mark}": [frame_with({**one, "values": {"x": mark}}), b"x"] for mark in marks},
        "too deep": [frame_with({"arrays": [], "values": {"x": deep}})],
    }
    for name, parts in messages.items():
        with case(name):
            refused(parts)


def test_a_tree_apart_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that is too large is refused before it is parsed."""
    monkeypatch.setattr(payload, "MAX_TREE", 100)
    head = header(kind="frame", apart=True, **ABOUT)
    tree = b'{"arrays":[],"values":{}}'
    assert protocol.decode([head, tree.ljust(100)]).values == {}
    assert "too large" in refused([head, tree.ljust(101)])


LIES: list[tuple[Any, int]] = [
    *((["uint8", shape], 8) for shape in ([9], [7], [2, 3], [], [8, 0], [0], [-8], [-2, -4], [8, -1], [-1])),
    *((["uint8", shape], 8) for shape in ([8.0], ["8"], [True] * 8, [None], "8", 8, None, {"0": 8}, [[8]])),
    *(([dtype, [1]], 8) for dtype in ("object", "O", "U2", "S8", "V8", "M8[s]", "float128", ">f8", "<f8", "int")),
    *(([dtype, [1]], 8) for dtype in ("", "str", "void", "datetime64", "f8", None, 8, ["float64"], "\ud800")),
    *((spec, 8) for spec in ("float64", None, [], ["float64"], ["float64", [1], 0], {"dtype": "float64"}, 8)),
    (["uint8", [1] * 9], 1),
    (["uint8", [1] * 99], 1),
    (["uint8", [0] * 99], 0),
    (["uint8", [2**62]], 8),
    (["uint8", [2**32, 2**32]], 0),  # 2**64, which is 0 in a machine's arithmetic
    (["uint8", [2**32, 2**32, 8]], 8),
    (["float64", [2**61]], 0),
    (["float64", [2**61 + 1]], 8),
    (["uint8", [2**63, 2]], 0),
    (["complex128", [2**60, 2**60, 2**8]], 16),
    (["uint8", [0, 2**70]], 0),
    (["uint8", [2**70, 0]], 0),
    (["uint8", [10**4000, 10**4000]], 8),
]
"""Descriptions of one array that its buffer, of so many bytes, does not fit."""


def test_a_lying_description_is_refused_before_any_allocation(case: Any) -> None:
    """dtype, rank, dims, and their product in Python's integers are checked before memory is taken."""
    for spec, size in LIES:
        with case(repr(spec)[:80]):
            parts = [frame_with({"arrays": [spec], "values": {"x": {"$": 0}}}), bytes(size)]
            refused(parts)  # the first time also allocates what is allocated only once
            tracemalloc.start()
            try:
                refused(parts)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 1_000_000


def test_an_empty_array_of_absurd_shape_allocates_nothing(case: Any) -> None:
    """Whether or not numpy can have such an array, it costs nothing and raises nothing but ProtocolError."""
    for shape in ([0, 2**62], [2**62, 0], [0, 2**40, 2**40], [2**31, 2**31, 0]):
        tracemalloc.start()
        try:
            with case(shape):
                try:
                    values = protocol.decode([frame_of("float64", shape), b""]).values
                except ProtocolError:
                    pass
                else:
                    assert values is not None
                    assert values["x"].nbytes == 0
                assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def test_nesting_never_runs_out_of_stack() -> None:
    """A deeply nested header is one ProtocolError, up to and beyond the depth that the JSON parser takes."""
    frame = {"kind": "frame", **ABOUT}
    headers: list[dict[str, Any]] = [
        {"kind": "DEEP"},
        {"kind": "stop", "reason": "DEEP"},
        {"kind": "hello", "token": "DEEP"},
        {**frame, "tree": "DEEP"},
        {**frame, "tree": {"arrays": ["DEEP"], "values": {}}},
        {**frame, "tree": {"arrays": [["uint8", "DEEP"]], "values": {}}},
        {**frame, "tree": {"arrays": [], "values": {"x": "DEEP"}}},
        {**frame, "tree": {"arrays": [], "values": {"x": {"$": "DEEP"}}}},
    ]
    for text in map(bytes.decode, (header(**fields) for fields in headers)):
        for depth in [*range(1, 100, 9), *range(600, 1100, 7), 5000, 20_000]:
            for opened, closed in (("[", "]"), ('{"a":', "}")):
                head = text.replace('"DEEP"', opened * depth + "1" + closed * depth).encode()
                parts = [head, b"x"] if '"arrays": [[' in text or '["DEEP"]' in text else [head]
                try:
                    protocol.life_of(protocol.decode(parts).fields, TOKEN)
                except ProtocolError:
                    continue
                pytest.fail(f"depth {depth} was taken in {text}")  # a HELLO with such a token, or shallow values


def test_pickles_do_nothing(tmp_path: pathlib.Path) -> None:
    """A pickle in any part is refused, or is the data of an array, as other bytes are."""
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


def test_a_wrong_token_is_refused(case: Any) -> None:
    """Any other token is refused, and the error shows none."""
    for token in ("", "5ca1ab1", "5ca1ab1e ", "5CA1AB1E", "grüß", "\ud800"):
        with case(token), pytest.raises(ProtocolError, match="wrong token") as caught:
            protocol.life_of({**WHO, "token": token}, TOKEN)
        assert TOKEN not in str(caught.value)


def test_a_wrong_token_is_told_nothing_more() -> None:
    """The token is checked before anything else, so that a stranger does not learn our version."""
    with pytest.raises(ProtocolError, match="wrong token"):
        protocol.life_of({**WHO, "token": "x", "version": 99, "instance": None}, TOKEN)


def test_another_version_is_refused_with_both_named(case: Any) -> None:
    """The message names the version of the other side and ours, and says what to do."""
    ours = protocol.VERSION
    for version in (0, ours - 1, ours + 1, 10**20, -1, "1", None, [1], 1.5):
        other = f"version {version!r:.40}, this asyncblend speaks {ours}"
        right = type(version) is int and version >= 0
        with case(version), pytest.raises(protocol.WrongVersion if right else ProtocolError) as caught:
            protocol.life_of({**WHO, "version": version}, TOKEN)
        assert (other if right else "field 'version' must be") in str(caught.value)
        with case(version), pytest.raises(ProtocolError) as caught:
            protocol.check_version({"version": version}, "the host")
        assert f"the host speaks protocol {other}" in str(caught.value)


def test_each_part_of_an_identity_is_needed_with_its_type(case: Any) -> None:
    """A HELLO or BEAT without a part of it, or with one of another type, is refused by the part's name."""
    for name in WHO:
        with case(name), pytest.raises(ProtocolError, match=name):
            protocol.life_of({key: value for key, value in WHO.items() if key != name}, TOKEN)
    wrong: list[Any] = [None, -1, 1.5, [], True, {}]
    for name in ("token", "instance", "epoch"):
        for value in wrong:
            with case((name, value)), pytest.raises(ProtocolError, match=f"field {name!r}"):
                protocol.life_of({**WHO, name: value}, TOKEN)


def test_field_checks_the_very_type(case: Any) -> None:
    """True is no number, and 1 is no truth."""
    types: dict[type, tuple[list[Any], list[Any]]] = {
        int: ([0, 5, 10**30], [-1, True, 1.0, "1", None]),
        str: (["", "x"], [1, None, ["x"]]),
        bool: ([True, False], [1, 0, None, "true"]),
        list: ([[], [1]], [{}, "x", None]),
    }
    for of, (good, bad) in types.items():
        for value in good:
            assert protocol.field({"x": value}, "x", of) == value
        for value in bad:
            with case((of, value)), pytest.raises(ProtocolError, match=f"field 'x' must be a {of.__name__}"):
                protocol.field({"x": value}, "x", of)
        with case(of), pytest.raises(ProtocolError, match="'x'"):
            protocol.field({}, "x", of)


def test_a_large_array_travels_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part is larger than a piece; the array arrives whole, and missing, extra or wrong pieces are an error."""
    monkeypatch.setattr(payload, "MAX_PIECE", 1000)
    values = {"big": np.arange(1000, dtype=np.int32), "small": np.arange(3), "empty": np.empty((0, 2), np.complex64)}
    fields = {"pass": 0, "lease": 0, "index": 0}
    parts = protocol.encode(protocol.FRAME, fields, payload.encode_values(values))
    assert [memoryview(part).nbytes for part in parts[1:]] == [1000] * 4 + [24, 0]
    message = protocol.decode([bytes(part) for part in parts])
    assert message.values is not None
    for name, value in values.items():
        np.testing.assert_array_equal(message.values[name], value)
        assert not message.values[name].flags.writeable
    for wrong in (parts[:4], parts[:-1], [*parts, b""], [*parts[:4], b"x" * 999, *parts[5:]], [*parts[:2], *parts[3:]]):
        with pytest.raises(protocol.UnreadableValues) as caught:
            protocol.decode([bytes(part) for part in wrong])
        assert (caught.value.kind, caught.value.fields) == (protocol.FRAME, fields)


def test_no_tree_is_too_deep_for_a_protocol_error() -> None:
    """Neither deep references nor odd keys escape as another error; what no side writes is refused."""
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    for values in ({"a": [[[{"$": 1, "b": deep}]]]}, {"a": {"$x": 1, "x": 2}}, {"a": {"$float": "1"}}):
        header = {"kind": protocol.FRAME, "pass": 0, "lease": 0, "index": 0, "tree": {"arrays": [], "values": values}}
        with pytest.raises(protocol.UnreadableValues):
            protocol.decode([json.dumps(header).encode()])
    for constant in (b"NaN", b"-Infinity"):
        with pytest.raises(ProtocolError, match="is no JSON"):
            protocol.decode([b'{"kind":"ready","x":' + constant + b"}"])
    with pytest.raises(protocol.UnreadableValues, match="arrays in one message"):
        described = [["uint8", [0], 0]] * (payload.MAX_ARRAYS + 1)
        apart = {"kind": protocol.FRAME, "pass": 0, "lease": 0, "index": 0, "apart": True}
        tree = json.dumps({"arrays": described, "values": {}}).encode()
        protocol.decode([json.dumps(apart).encode(), tree])
