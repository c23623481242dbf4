"""`python -m benchmarks fuzz`: fuzzes what reads bytes that others have written."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .targets import TARGETS, Target

__all__ = ["fuzz"]

_ROOT = Path(__file__).parents[2]
_SECONDS_EACH = 20  # that one input may take
_MEMORY = 1024  # MiB that a process may take; it has some 200 without any input
_LARGEST = 1 << 16  # bytes of an input
_console = Console()


@dataclass(frozen=True)
class _Fuzzed:
    """What the fuzzing of one target came to."""

    target: str
    seconds: float
    runs: int
    edges: int
    """Edges of the bytecode that were reached."""
    inputs: int
    """Inputs, each of which reaches something that no other one does."""
    findings: list[Path]
    """Inputs that raised, took too long or too much memory."""
    log: Path


def fuzz(
    minutes: Annotated[float, typer.Option(help="How long each target is fuzzed.", min=0.01)] = 1.0,
    target: Annotated[
        list[str] | None, typer.Option(help=f"What to fuzz: {', '.join(TARGETS)}. By default all of them.")
    ] = None,
    input_: Annotated[
        Path | None,
        typer.Option("--input", help="Only run this input again, of one target.", dir_okay=False, exists=True),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for inputs and logs, to go on with. By default a temporary one.", file_okay=False
        ),
    ] = None,
) -> None:
    """Fuzz the decoder of messages, the reader of recordings and that of config files, guided by coverage.

    Each input must be read, or raise the error that is promised for it, within 20 seconds and a GiB of memory. The exit
    status is 1 if one does not.
    """
    names = target or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(TARGETS)}", param_hint="--target")
    if input_ is not None:
        if len(names) != 1:
            raise typer.BadParameter("it needs one --target", param_hint="--input")
        _run_again(TARGETS[names[0]], input_)
        return
    if importlib.util.find_spec("atheris") is None:
        _console.print('Fuzzing needs atheris: pip install -e ".[fuzz]"', markup=False, style="red")
        raise typer.Exit(2)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")) if out is None else out
    found = []
    for name in names:
        with _console.status(f"{name}: {minutes:g} minutes"):
            found.append(_fuzzed(name, TARGETS[name], folder.resolve() / name, round(60 * minutes) or 1))
    _console.print(_table(found))
    _console.print(f"inputs and logs: {folder}", markup=False, soft_wrap=True, highlight=False)
    for one in found:
        for path in one.findings:
            _console.print(f"\n{one.target}: {path}", markup=False, style="red", soft_wrap=True, highlight=False)
            _console.print(_what_was_raised(one.log), markup=False, soft_wrap=True, highlight=False)
            again = f"again: python -m benchmarks fuzz --target {one.target} --input {path}"
            _console.print(again, markup=False, soft_wrap=True, highlight=False)
    if any(one.findings for one in found):
        raise typer.Exit(1)


def _run_again(target: Target, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target.run(path.read_bytes(), Path(folder))
    _console.print("It raised nothing that it must not.", style="green")


def _fuzzed(name: str, target: Target, folder: Path, seconds: int) -> _Fuzzed:
    """Fuzz one target in a process of its own, which ends at its first finding."""
    corpus, findings = folder / "corpus", folder / "findings"
    for each in (corpus, findings):
        each.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number:02d}").write_bytes(seed)
    words = folder / "words"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words), encoding="ascii")
    arguments = {
        "max_total_time": seconds,
        "timeout": _SECONDS_EACH,
        "rss_limit_mb": _MEMORY,
        "max_len": _LARGEST,
        "dict": words,
        "artifact_prefix": f"{findings}/",
    }
    log, began = folder / "log", time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fuzz.child", name, *(f"-{k}={v}" for k, v in arguments.items()), corpus],
            cwd=_ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=seconds + 300,
            check=False,
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    kept = [path for path in sorted(findings.iterdir()) if not path.name.startswith("slow-unit-")]
    if done.returncode and not kept:
        _console.print(text[-2000:], markup=False, highlight=False)
        raise RuntimeError(f"the fuzzer of {name} ended with status {done.returncode}; its log is {log}")
    return _Fuzzed(
        name,
        time.monotonic() - began,
        _last(r"^#(\d+)", text),
        _last(r"cov: (\d+)", text),
        _last(r"corp: (\d+)", text),
        kept,
        log,
    )


def _quoted(word: str) -> str:
    """Return a word as it stands in a dictionary of libFuzzer."""
    return "".join(c if c.isalnum() else f"\\x{ord(c):02x}" for c in word)


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


def _what_was_raised(log: Path) -> str:
    """Return the traceback in a log, or its last lines."""
    text = log.read_text(encoding="utf-8", errors="replace")
    start = text.rfind("=== Uncaught Python exception")
    lines = text[start:].split("\n==")[0] if start >= 0 else text[-2000:]
    return lines[:4000].rstrip()


def _table(found: list[_Fuzzed]) -> Table:
    table = Table(title="Fuzzing", title_justify="left")
    for heading in ("target", "minutes", "runs", "runs/s", "edges", "inputs kept", "findings"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for one in found:
        cells = [f"{one.seconds / 60:.1f}", f"{one.runs:,}", f"{one.runs / one.seconds:,.0f}", f"{one.edges:,}"]
        style = "bold red" if one.findings else "green"
        table.add_row(escape(one.target), *cells, f"{one.inputs:,}", f"[{style}]{len(one.findings)}[/]")
    return table
