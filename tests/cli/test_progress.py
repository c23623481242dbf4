"""What a command says while it runs: a live line in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncblend.cli.live import LiveLine, Waiting, doing
from asyncblend.config import StreamConfig
from asyncblend.stream.stats import StreamStats
from asyncblend.testing import fake_blender

# The lines come so often that a fast fake is seen at work, and its script goes on when it was seen.
OFTEN = "import asyncblend.cli as cli, asyncblend.cli.live as live; live._EVERY = 0.01; live._LATE = {late}; cli.main()"
SCRIPT = """
import pathlib, time
from asyncblend import blender as bl
def sample(task):
    while not pathlib.Path(f"go{task.index}").exists():
        time.sleep(0.01)
    return {"value": task.index}
bl.serve(sample)
"""

COUNTS = ("delivered", "rendering", "queued", "skipped", "restarts", "recycled", "duplicates", "stale")
NONE: dict[str, Any] = dict.fromkeys((*COUNTS, "bad_messages", "refused"), 0)


class Clock:
    """Stands for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a fake Blender, and a script that makes sample i when there is a file named go and i."""
    (tmp_path / "scene.py").write_text(SCRIPT)
    fake_blender(tmp_path / "fake")
    return tmp_path


def started(folder: Path, *args: str, late: float = 1000.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", OFTEN.format(late=late), *args]
    environment = {**os.environ, "ASYNCBLEND_BLENDER": str(folder / "fake" / "blender")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the first line of standard error with the pattern."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        if re.search(pattern, line):
            return line
        seen += line
    raise AssertionError(f"no line has {pattern!r}: {seen[-2000:]}")


EPISODES = """
import pathlib, time
from asyncblend import blender as bl
def sample(task):
    for step in range(8):
        if step == 2:
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
        yield {"step": step}
bl.serve(sample)
"""


@pytest.mark.parametrize(("command", "frames"), [("stream", 16), ("inspect", 3)])
@pytest.mark.exhaustive
def test_how_many_frames_episodes_have_is_not_known(command: str, frames: int, folder: Path) -> None:
    """The number of samples is no total of frames; a sheet has as many frames as samples were asked for."""
    (folder / "scene.py").write_text(EPISODES)
    many = ("--length", "2") if command == "stream" else ("--samples", "3")
    with started(folder, command, "scene.py", *many, "--instances", "1") as process:
        read_until(process, r"^1 frames  \d")  # the script is one frame ahead of what it sends
        (folder / "go").touch()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(rf"^frames +{frames} *$" if command == "stream" else "^3 frames in sheet.png", out, re.MULTILINE)


@pytest.mark.exhaustive
def test_the_frames_of_an_episode_are_no_wait(folder: Path) -> None:
    """A recording counts samples. While the first one is being made, its frames so far are shown."""
    (folder / "scene.py").write_text(EPISODES)
    with started(folder, "record", "scene.py", "--length", "2", "--out", "out", "--instances", "1") as process:
        read_until(process, r"^0 of 2 samples  1 frame of the first samples so far: Blenders: 1 rendering$")
        (folder / "go").touch()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "2 samples are in out: 2 new ones" in out


@pytest.mark.parametrize(
    "command",
    [
        ("stream", "scene.py", "--length", "2"),
        ("record", "scene.py", "--length", "2", "--out", "recording"),
        ("inspect", "scene.py", "--samples", "2"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.exhaustive
def test_without_a_terminal_lines_say_what_is_waited_for(command: tuple[str, ...], folder: Path) -> None:
    """Before the first frame, and for each later one. The standard output has none of it."""
    one, by = ("sample", "frames by instance") if command[0] == "record" else ("frame", "by instance")
    with started(folder, *command, "--instances", "1") as process:
        read_until(process, rf"^0 of 2 {one}s  waiting for the first {one}, \d+ s: Blenders: 1 starting$")
        read_until(process, rf"^0 of 2 {one}s  waiting for the first {one}, \d+ s: Blenders: 1 rendering$")
        (folder / "go0").touch()
        line = read_until(process, rf"^1 of 2 {one}s  \d")
        assert re.fullmatch(
            rf"1 of 2 {one}s  0\.0/s  queue \d/16, 1 rendering  {by} 1(  (rendering|balanced|recording).*)?\n", line
        )
        (folder / "go1").touch()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "waiting" not in out


def test_a_frame_that_does_not_come_is_waited_for(folder: Path) -> None:
    """Also when there were some before."""
    (folder / "go0").touch()
    with started(folder, "stream", "scene.py", "--length", "2", "--instances", "1", late=0.0) as process:
        read_until(process, r"^1 of 2 frames  waiting for the next frame, \d+ s: Blenders: 1 rendering  queue")
        (folder / "go1").touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.exhaustive
def test_bench_says_what_it_measures(folder: Path) -> None:
    """Whose turn it is, with the present figure of each fleet; before, that Blenders are started."""
    (folder / "scene.py").write_text(SCRIPT.replace("go{task.index}", "go"))
    settings = ("--instances", "1", "--threads", "1", "--seconds", "1.5")
    with started(folder, "bench", "scene.py", *settings) as process:
        read_until(process, r"^starting Blenders, 1 has not rendered yet, \d+ s$")
        (folder / "go").touch()
        read_until(process, r"^round [2-5], \d+ s: 1 x 1 thread  frames/s: \S+ by 1 x 1 thread$")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_in_a_terminal_it_is_one_line(folder: Path) -> None:
    """Which is drawn again and again, and gone in the end. What is printed meanwhile stands above it."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "ASYNCBLEND_BLENDER": str(folder / "fake" / "blender"), "TERM": "xterm"}
    command = [sys.executable, "-m", "asyncblend", "stream", "scene.py", "--length", "2", "--instances", "1"]
    with subprocess.Popen(
        command, cwd=folder, env={**environment, "COLUMNS": "120"}, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        for number, awaited in enumerate((b"Blenders: 1 rendering", b"1/2")):
            while awaited not in shown:
                shown += os.read(main, 4096)
            (folder / f"go{number}").touch()
        try:
            while more := os.read(main, 4096):
                shown += more
        except OSError:  # the terminal's other end is closed
            pass
        process.wait(timeout=60)
    os.close(main)
    assert process.returncode == 0, shown
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"[\r\n]<Frame 0 from instance 0: value=0>\r\n", text)
    assert text.rstrip().endswith("frames by instance       0: 2")


@pytest.mark.parametrize(("width", "parts"), [(150, 3), (80, 2), (55, 1), (36, 0)])
def test_a_narrow_terminal_shows_the_count(width: int, parts: int) -> None:
    """What the instances did goes first, then the queue, then the rate: never the count and the time that remains."""
    stats = StreamStats(**NONE, frames=dict.fromkeys(range(8), 1234), state=dict.fromkeys(range(8), "ready"))
    line = LiveLine(StreamConfig(script="x.py", instances=8, length=100_000), lambda: stats)
    for _ in range(33):
        line.frame_came()
    terminal = Console(width=width, file=io.StringIO(), color_system=None)
    with terminal.capture() as shown:
        terminal.print(line._progress)
    assert re.fullmatch(r".* 33/100000 .* (\d|-)+:\d\d:\d\d\n", shown.get())
    texts = ("/s", "  queue 0/16, 0 rendering", "  by instance" + 8 * " 1234")
    assert [text in shown.get() for text in texts] == [place < parts for place in range(3)]


def test_a_wide_terminal_shows_the_verdict() -> None:
    """What to do about it goes first, then who is the bottleneck. Before the first frame there is none."""
    stats = StreamStats(**NONE, frames={0: 9}, state={0: "ready"}, window=7.0)
    config = StreamConfig(script="x.py", length=99)
    line = LiveLine(config, lambda: stats, verdict=lambda stats: f"slow: after {stats.window} s")
    assert "slow" not in line._now()[0].plain
    line.frame_came()
    ends = [text.plain.partition("  by instance 9")[2] for text in line._now()]
    assert ends[:4] == ["  slow: after 7.0 s", "  slow", "", ""]
    stats = StreamStats(**NONE, frames={0: 9}, state={0: "ready"})
    assert line._now()[0].plain.endswith("  by instance 9")


def test_the_verdict_is_of_the_time_before_blenders_quit(capsys: pytest.CaptureFixture[str]) -> None:
    """Statistics go on until the fleet has stopped, and while it stops every Blender is idle."""
    windows = iter((7.0, 99.0, 99.0))

    def stats() -> StreamStats:
        return StreamStats(**NONE, frames={0: 1}, state={0: "stopped"}, window=next(windows))

    config = StreamConfig(script=__file__)
    line = LiveLine(config, stats, verdict=lambda stats: f"after {stats.window} s")
    line.frame_came()
    line.frame_came()
    line.judge()
    line.summary()
    assert "after 7.0 s" in capsys.readouterr().out


def test_counts_of_a_summary_add_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames that had come when the stream was stopped are told apart, and no rate comes from a moment."""
    counts = {**NONE, "delivered": 3}
    stats = StreamStats(**counts, frames={0: 3, 1: 2}, state=dict.fromkeys(range(2), "stopped"))
    line = LiveLine(StreamConfig(script="x.py", instances=2), lambda: stats)
    monkeypatch.setattr("asyncblend.cli.live.time", (clock := Clock()))
    for clock.now in (1.0, 1.01, 1.02):
        line.frame_came()
    line.summary()
    said = re.sub(" +", " ", capsys.readouterr().out)
    assert "frames 3 of 5 that were rendered" in said
    assert "then 2 frames in less than 0.1 s" in said
    assert "frames by instance 0: 3 1: 2" in said
    clock.now = 5.0
    line.frame_came()
    line.summary()
    assert "then 0.8 frames/s over 4.0 s" in re.sub(" +", " ", capsys.readouterr().out)


def test_what_blenders_do() -> None:
    """Each state is counted in words, in a stable order; a state that is unknown is named."""
    assert doing(None) == "no Blender was started yet"
    states = ("ready", "starting", "ready", "backoff", "asleep")
    stats = StreamStats(**NONE, frames={}, state=dict(enumerate(states)))
    assert doing(stats) == "Blenders: 2 rendering, 1 starting, 1 down after a crash, 1 asleep"


def test_an_error_ends_the_lines() -> None:
    """It comes through, and no thread is left."""
    with pytest.raises(LookupError), Waiting("anything"):
        raise LookupError
