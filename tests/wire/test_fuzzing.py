"""Fuzzing: whatever comes in is a message or one ProtocolError, and never does harm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asyncblend.errors import ProtocolError
from asyncblend.wire import payload, protocol
from tests.wire.samples import (
    ABOUT,
    DTYPES,
    FAILED,
    HELLO,
    LEASE,
    LEASES,
    REVOKE,
    STOP,
    TOKEN,
    WELCOME,
    WHO,
    header,
    refused,
    travelled,
)


def leaves_of(value: Any) -> Iterator[Any]:
    """Yield what is neither a dict nor a list, at any depth."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(item)
    else:
        yield value


def check_harmless(parts: Sequence[bytes]) -> None:
    """Decode as the hub does: anything but a good message or a ProtocolError fails the test."""
    try:
        message = protocol.decode(parts)
        if message.kind in (protocol.HELLO, protocol.BEAT):
            protocol.life_of(message.fields, TOKEN)
        elif message.kind == protocol.WELCOME:
            protocol.check_version(message.fields, "the host")
    except ProtocolError:
        return
    leases = message.fields["leases"] if message.kind == protocol.LEASES else []
    assert all(lease.kind == protocol.LEASE for lease in leases)
    for leaf in leaves_of([message.values, *(lease.values for lease in leases)]):
        if isinstance(leaf, np.ndarray):
            assert leaf.dtype.name in DTYPES
            assert not leaf.flags.writeable
        else:
            assert leaf is None or isinstance(leaf, bool | int | float | str)


VALUES = payload.encode_values(
    {"image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "xy": np.ones((2, 2)), "n": [1, "a", {"$": None}]}
)
BIG = payload.encode_values({"text": "y" * 66_000, "image": np.arange(6)})
VALID: list[list[bytes]] = [
    travelled(parts)
    for parts in (
        protocol.encode(protocol.FRAME, ABOUT, VALUES),
        protocol.encode(protocol.LEASE, LEASE, VALUES),
        protocol.encode(protocol.FRAME, ABOUT, BIG),
        protocol.encode(protocol.HELLO, HELLO),
        protocol.encode(protocol.BEAT, WHO),
        protocol.encode(protocol.FAILED, FAILED),
        protocol.encode(protocol.WELCOME, WELCOME),
        protocol.encode(protocol.LEASES, LEASES),
        protocol.encode(protocol.REVOKE, REVOKE),
        protocol.encode(protocol.STOP, STOP),
    )
]


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """Draw a good message that is damaged in one to four ways."""
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


@given(mutated())
def test_damaged_messages_are_harmless(parts: list[bytes]) -> None:
    """Flipped bytes and dropped, doubled, swapped or cut parts give a message or a ProtocolError, nothing else."""
    check_harmless(parts)


@given(st.lists(st.binary(max_size=64), max_size=5))
def test_random_bytes_are_harmless(parts: list[bytes]) -> None:
    """Random bytes are a ProtocolError."""
    refused(parts)


FIELDS = sorted({name for parts in VALID for name in json.loads(parts[0])} - {"kind", "tree", "apart"})
NAMES = [*FIELDS, "kind", "tree", "apart", "arrays", "values", "$", "$$", "x"]
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
        **dict.fromkeys(FIELDS, st.one_of(numbers, any_text, any_json)),
        "version": st.one_of(st.just(protocol.VERSION), any_json),
        "tree": st.one_of(likely_trees, any_json),
        "apart": st.one_of(st.booleans(), any_json),
    },
)


@given(headers, st.lists(st.one_of(st.binary(max_size=16), likely_trees.map(lambda t: header(**t))), max_size=3))
def test_random_headers_are_harmless(fields: dict[str, Any], body: list[bytes]) -> None:
    """JSON with the right words in the wrong places gives a message or a ProtocolError, nothing else."""
    check_harmless([header(**fields), *body])
