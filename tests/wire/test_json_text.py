"""JSON as messages carry it: what the standard library writes and reads, and nothing that JSON has not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asyncblend.errors import ProtocolError
from asyncblend.wire import json_text
from asyncblend.wire.json_text import dumps, parse_json


@pytest.mark.parametrize("in_c", [True, False])
def test_json_is_written_as_the_standard_library_does(in_c: bool, monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    """With the encoder in C that is made once, and where this Python has none."""
    if not in_c:
        monkeypatch.setattr(json_text, "_in_c", None)
    values: list[Any] = [{}, [], "", '"\\\n\0grüß\ud800', None, -0.0, 2**70, True, {"a": [1, {"b": (0.1, [])}]}, {1: 2}]
    for value in values:
        with case(value):
            assert dumps(value) == json.dumps(value, separators=(",", ":"))
    for bad, error in ((float("nan"), ValueError), ([float("-inf")], ValueError), ({"a": {1}}, TypeError)):
        with case(bad), pytest.raises(error):
            dumps(bad)


def test_json_is_read_as_the_standard_library_does(case: Any) -> None:
    """Also with spaces around it. What is behind it, or is no JSON, is refused."""
    for text in ("{}", ' {"a":[1]}', '{"a":{"b":null}}\n\t ', '{"a":1,"a":2}', '{"\\ud800":1e400}'):
        with case(text):
            assert parse_json(memoryview(text.encode()), "header") == json.loads(text)
    for bad in ("", " ", "{}{}", "{},", "{} x", "\ufeff{}", "{", '{"a":NaN}', '{"a":-Infinity}', "{'a':1}", '{"a":01}'):
        with case(bad), pytest.raises(ProtocolError, match="no JSON"):
            parse_json(memoryview(bad.encode()), "header")
