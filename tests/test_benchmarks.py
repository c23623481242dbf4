"""Each benchmark measures something, writes it down and draws it. How fast anything is, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import app
from benchmarks.measuring import Effort, Timed, in_turn
from benchmarks.report import Metric, Report, Row
from benchmarks.results import _asked, write

_ROOT = Path(__file__).parents[1]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=_ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def measured(folder: Path, *command: str) -> dict[str, Any]:
    """Return the figures of a quick run, which must all be positive. A picture must be there too."""
    file = folder / "figures.json"
    run("benchmarks", *command, "--quick", "--json", str(file), "--out", str(folder))
    assert (folder / f"{command[0]}.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine"]["CPU"]
    assert found["machine"]["date"]
    cases: dict[str, Any] = found["cases"]
    for case, ways in cases.items():
        for way, figures in ways.items():
            for name, figure in figures.items():
                value = figure if name == "ours_is_times" else figure["median"]
                # A round may be shorter than a tick of the processor's clock.
                assert value > 0 or "CPU" in name, (case, way, name)
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "ways"),
    [
        ("transport", {"asyncblend", "over the socket", "pickled", "raw multipart", "torch queue", "memcpy (limit)"}),
        ("latency", {"async for", "sync", "async for, 64x64 image", "sync, 64x64 image", "bare echo (limit)"}),
        (
            "environment",
            {
                "BlenderVectorEnv",
                "BlenderEnv",
                "episodes",
                "REQ/REP in Gymnasium",
                "REQ/REP, all at once",
                "ZeroMQ's echo",
                "sockets' echo (limit)",
            },
        ),
        ("ray", {"asyncblend.ray", "one batch after another", "one fleet (limit)"}),
        ("dataloader", {"DataLoader", "own batches", "in memory (limit)"}),
        ("record", {"not recorded", "PNG", "JPEG", "PNG alone (limit)", "Pillow alone", "JPEG alone (limit)"}),
        ("replay", {"checked", "not checked", "bytes alone (limit)"}),
        ("startup", {"asyncblend", "plain launch (limit)"}),
        ("warm", {"fleet=", "fleet=, new program", "its own Blender", "a call (limit)"}),
        ("memory", {"the host", "one Blender"}),
    ],
)
@pytest.mark.exhaustive
def test_a_command_measures_without_blender(command: str, ways: set[str], tmp_path: Path) -> None:
    """Every case has figures for all ways."""
    cases = measured(tmp_path, command)
    assert cases
    assert all(case.keys() == ways for case in cases.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "ways"),
    [
        ("render", {"asyncblend", "PNG, pickle, PUB/SUB", "bare render (limit)"}),
        ("origin", {"asyncblend", "blendtorch's method"}),
        ("passes", {"two, beside a stalled pass", "beside a stalled pass", "one pass (limit)"}),
        ("labels", {"all labels", "per pixel", "image alone (limit)"}),
        ("pixels", {"all nine labels", "depth, normal, instance", "image alone (limit)"}),
        ("tune", {"advised", "1 x 1 thread (best)"}),
    ],
)
@pytest.mark.blender
@pytest.mark.exhaustive
def test_a_command_measures_blender(command: str, ways: set[str], tmp_path: Path, bpy_kind: Any) -> None:
    """Every case has figures for all ways."""
    cases = measured(tmp_path, command, "--blender", bpy_kind.blender)
    assert cases
    assert all(case.keys() == ways for case in cases.values())


@pytest.mark.exhaustive
@pytest.mark.blender
@pytest.mark.slow
def test_the_peers_run_in_an_executable(tmp_path: Path, executable: Any) -> None:
    """Its Python may have neither numpy nor pyzmq nor Pillow."""
    assert measured(tmp_path, "render", "--blender", executable.blender)


def test_ways_have_their_turns() -> None:
    """A round runs every way once. One more round before them warms up and does not count."""
    turns = []

    def way(name: str) -> Any:
        def turn(seconds: float) -> Timed:
            turns.append(name)
            return Timed(len(turns), seconds)

        return turn

    found = in_turn({"a": way("a"), "b": way("b")}, Effort(rounds=2, seconds=1.0))
    assert turns == ["a", "b"] * 3
    assert {name: [one.done for one in rounds] for name, rounds in found.items()} == {"a": [3, 5], "b": [4, 6]}


@pytest.mark.parametrize(("less", "times"), [(False, 2.0), (True, 0.5)])
def test_ratios_say_how_many_times_as_good_ours_is(less: bool, times: float) -> None:
    """Ratios are of medians, within a case, and the other way round where less is better."""
    report = a_report(less)
    ours, other = report.rows[:2]
    assert report.ratio(ours) is None
    assert report.ratio(other) == times
    assert report.json()["cases"]["one"]["other"] == {
        "x/s": {"median": 10, "low": 1, "high": 12, "rounds": [1, 10, 12]},
        "ours_is_times": times,
    }


def test_results_have_every_report(tmp_path: Path) -> None:
    """RESULTS.md has tables and pictures, and says which machine it was."""
    write(tmp_path, [a_report(), a_report(name="again-and-again")], {"CPU": "abacus"}, tmp_path / "all.json")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| CPU | abacus |" in text
    assert "| **one** | **ours** | **20** | **19 to 21** |  |" in text
    assert "|  | other | 10 | 1 to 12 | 2.0x |" in text
    assert "`python -m benchmarks again`. How." in text
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"report.png", "again-and-again.png"}
    assert len(json.loads((tmp_path / "all.json").read_text())["reports"]) == 2


def test_all_answers_every_question() -> None:
    """RESULTS.md has a section for each command, but for those that look for faults, and for the one that needs a GPU."""
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    answered = {question.name.partition("-")[0] for question in _asked(None)}
    assert answered == commands - {"all", "soak", "fuzz", "gpu"}


def a_report(less: bool = False, name: str = "report") -> Report:
    metric = Metric("x/s", lambda timed: timed.rate, less_is_better=less)
    report = Report(name, "Title", "How.", [metric], "ours", columns=2)
    report.rows = [
        Row(case, way, {"x/s": values})
        for case in ("one", "two")
        for way, values in (("ours", [19, 20, 21]), ("other", [1, 10, 12]))
    ]
    return report
