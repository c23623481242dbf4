"""The launch: what a Blender is told at its start, and what it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncblend.errors import ConfigError
from asyncblend.wire.launch import Launch, Lifeline, Report

TOLD: dict[str, Any] = {
    "endpoint": "ipc:///run/hub",
    "token": "secret",
    "instance": 3,
    "epoch": 1,
    "beat": 0.5,
    "kind": "module",
    "script": "x.py",
    "script_args": ["--a", "1"],
    "scene": None,
    "factory_startup": True,
    "autoexec": True,
    "threads": 2,
    "gpu": False,
    "show": False,
    "lifeline": Lifeline(7, 13, 4711),
    "ring": None,
    "line": 9,
    "packages": "/cache",
    "report": "/run/report.json",
}


def test_it_travels_in_the_environment_and_is_taken_out_of_it() -> None:
    """The launch travels in the environment, and is removed from it so that the script's own children see no token."""
    environment = {"HOME": "/home"}
    Launch(**TOLD).put(environment)
    assert Launch.take(environment) == Launch(**TOLD)
    assert environment == {"HOME": "/home"}


@pytest.mark.parametrize(
    "endpoint", ["ipc:///tmp/x/hub", "tcp://127.0.0.1:5555", "tcp://127.8.8.8:1", "tcp://[::1]:1", "tcp://localhost:9"]
)
def test_endpoints_of_this_machine(endpoint: str) -> None:
    """An endpoint that only this machine can reach is accepted."""
    assert Launch(**{**TOLD, "endpoint": endpoint}).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://192.168.1.4:5555", "tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://example.org:1", "tcp://[2001:db8::1]:1",
     "udp://127.0.0.1:1", "pgm://127.0.0.1:1", "tcp://127.0.0.1.example.org:1", ""],
)  # fmt: skip
def test_endpoints_that_others_can_reach_are_refused(endpoint: str) -> None:
    """An endpoint that others can reach is refused; the error shows it and says what to use instead."""
    with pytest.raises(ConfigError, match="not encrypted; use ipc://") as caught:
        Launch(**{**TOLD, "endpoint": endpoint})
    assert repr(endpoint) in str(caught.value)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The host reads a life's report from its file as it was written."""
    file = tmp_path / "report.json"
    report = Report(packages=["numpy"], python="3.10", folder="/cache/x")
    report.write(str(file))
    assert Report.read(file) == report


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[1]", b'{"other": 1}', b"null"])
def test_a_report_that_cannot_be_read_is_none(content: bytes | None, tmp_path: Path) -> None:
    """A file that cannot be read is an empty report, because a Blender may die while it writes."""
    file = tmp_path / "report.json"
    if content is not None:
        file.write_bytes(content)
    assert Report.read(file) == Report()
