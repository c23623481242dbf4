"""What users name, return or print is shown as text: no markup, and no command for the terminal."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from asyncblend.cli.bench.judging import Trial, Turn
from asyncblend.cli.bench.search import Found
from asyncblend.cli.bench.settings import Setting
from asyncblend.cli.bench.shown import draw
from asyncblend.cli.live import Waiting, facts_table
from asyncblend.cli.terminal import STDERR, LogHandler, Terminal, printable, styled
from asyncblend.recording import Recording
from asyncblend.testing import fake_blender

CLI = Path(__file__).parents[2] / "asyncblend" / "cli"
HOSTILE = "[/][red]x[/1] :smile: \x1b[2J\x1b]0;title\x07\r\x9b31m\u202eback"
SHOWN = r"[/][red]x[/1] :smile: \x1b[2J\x1b]0;title\x07\r\x9b31m\u202eback"
NAME = "x[_][red]\x1b[31m\x07"  # in a file's name
SHOWN_NAME = r"x[_][red]\x1b[31m\x07"
COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SCRIPT = f"""
import os, sys
from asyncblend import blender as bl
def sample(task):
    if "raise" in sys.argv:
        raise ValueError({HOSTILE!r})
    return {{"text": {HOSTILE!r}}}
print({HOSTILE!r})
if "exit" in sys.argv:
    sys.exit(3)
bl.serve(sample)
"""


def asyncblend(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with hostile names, whose output may have no character that a terminal obeys."""
    environment = {**os.environ, "ASYNCBLEND_BLENDER": str(cwd / "fake" / "blender")}
    command = [sys.executable, "-m", "asyncblend", *args]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="strict", timeout=90, cwd=cwd, env=environment, check=False
    )
    assert not COMMANDS.search(done.stdout + done.stderr)
    assert "rich.errors" not in done.stderr
    assert "asyncblend/cli/" not in done.stderr, "a traceback of ours"
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a script of a hostile name, which returns, prints and raises hostile text, and a fake Blender."""
    fake_blender(tmp_path / "fake")
    (tmp_path / f"{NAME}.py").write_text(SCRIPT)
    return tmp_path


def test_printable_escapes_what_would_not_be_seen() -> None:
    """What can be seen stays, in any script; line ends and tabs stay; all else is as in Python's repr."""
    for text in ("", "plain", "grüß 日本 🙂 [bold]", "line\n\tline"):
        assert printable(text) == text
    assert printable(HOSTILE) == SHOWN
    assert printable("\udcff\u2028\x00") == r"\udcff\u2028\x00"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_terminal_takes_nothing_for_markup(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in strings nor in Text objects, tables, panels or the log; in a real terminal neither."""
    monkeypatch.setenv("COLUMNS", "300")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1" if terminal else "0")
        if not terminal:
            monkeypatch.delenv(name)
    console, table = Terminal(), Table(HOSTILE, title=Text(HOSTILE))
    table.add_row(HOSTILE)
    for shown in (HOSTILE, Text(HOSTILE), styled((HOSTILE, "red")), table, facts_table({HOSTILE: HOSTILE})):
        console.print(shown)
    console.print(Panel(styled(HOSTILE), title=styled(HOSTILE)))
    record = logging.LogRecord("asyncblend", logging.WARNING, "", 0, "%s", (HOSTILE,), None)
    LogHandler().emit(record)
    out, err = capsys.readouterr()
    assert not COMMANDS.search(re.sub(r"\x1b\[[\d;]*m", "", out + err))  # colours are ours
    assert "title" in err
    assert out.count("[/][red]x[/1] :smile:") == 10
    assert out.count(SHOWN) >= 5  # rich itself leaves out some characters of Text objects
    assert "\x1b[2J" not in out + err


def test_nothing_prints_past_the_terminal() -> None:
    """Only one file knows rich's Console, and no file makes text of markup or prints in another way."""
    for path in sorted(CLI.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not names & {"from_markup", "TextColumn", "RichHandler", "secho", "Status"}, path
        assert "print" not in called, path
        assert "Console" not in names or path.name == "terminal.py", path


@pytest.mark.exhaustive
def test_a_hostile_script(folder: Path) -> None:
    """Its name, its first frame, its error and its log are text."""
    name = f"{NAME}.py"
    good = asyncblend("stream", name, "--length", "1", "--instances", "1", cwd=folder)
    assert good.returncode == 0, good.stderr
    assert r"text='[/][red]x[/1] :smile: \x1b[2J" in good.stdout
    raised = asyncblend("stream", name, "--length", "1", "--instances", "1", "--", "raise", cwd=folder)
    assert raised.returncode == 1
    assert raised.stderr.rstrip().endswith(f"SampleError sample 0 failed in Blender 0: ValueError: {SHOWN}")
    exited = asyncblend("stream", name, "--length", "1", "--instances", "1", "--", "exit", cwd=folder)
    assert exited.returncode == 1
    assert "InstanceExited Blender 0 exited with status 3 before it was ready" in exited.stderr
    assert SHOWN.partition(r"\r")[0] in exited.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
def test_hostile_paths_and_options(folder: Path) -> None:
    """Those of options, recordings and files that do not exist."""
    name = f"{NAME}.py"
    record = ("record", name, "--length", "1", "--instances", "1", "--out", f"run{NAME}")
    recorded = asyncblend(*record, cwd=folder)
    assert recorded.returncode == 0, recorded.stderr
    assert f"1 samples are in run{SHOWN_NAME}" in recorded.stdout
    assert len(Recording(folder / f"run{NAME}")) == 1
    for command, message in (
        (("stream", f"no{NAME}.py"), f"ConfigError script 'no{SHOWN_NAME}.py' does not exist"),
        (("stream", name, "--scene", NAME), f"ConfigError scene '{SHOWN_NAME}' does not exist"),
        (("stream", name, "--blender", NAME), f"BlenderNotFound blender='{SHOWN_NAME}'"),
        (("bench", name, "--instances", NAME), f"'{SHOWN_NAME}' is no list of numbers"),
        (("export", f"run{NAME}", "--out", "coco", "--format", NAME), f"there is no format '{SHOWN_NAME}'"),
        (("inspect", f"run{NAME}", "--out", f"{NAME}.png", "--samples", "0"), "at least 1; got 0"),
        ((NAME,), "No such command"),
    ):
        failed = asyncblend(*command, cwd=folder)
        assert failed.returncode in (1, 2)
        assert message in failed.stderr, failed.stderr


@pytest.mark.exhaustive
def test_a_name_that_is_no_utf_8(folder: Path) -> None:
    """It is shown escaped, instead of ending the command while it prints."""
    command = [sys.executable, "-m", "asyncblend", "stream", os.fsdecode(os.fsencode(folder) + b"/\xff.py")]
    done = subprocess.run(command, capture_output=True, timeout=90, check=False)
    assert done.returncode == 1
    assert rb"\udcff.py' does not exist" in done.stderr


def test_waiting_says_hostile_text_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is waited for may have a user's path in it."""
    monkeypatch.setattr("asyncblend.cli.live._EVERY", 0.001)
    assert not STDERR.is_terminal
    with Waiting(HOSTILE):
        while "s\n" not in (printed := capsys.readouterr().err):
            pass
    assert printed.startswith(f"{SHOWN}, 0 s")


def test_a_scripts_name_is_no_formula(tmp_path: Path) -> None:
    """In the title of bench's plot, where matplotlib reads TeX between two dollar signs."""
    trial = Trial(Setting(1, 1), {1: Turn(1.0), 2: Turn(2.0)})
    draw(tmp_path / "bench.png", Found(trial, [], [trial]), r"$\nonsense{$ [/] \x1b[2J.py")
    assert (tmp_path / "bench.png").stat().st_size > 1000
