"""`asyncblend doctor`: what is here, what is missing, and the command that mends it; for people, or as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ... import __version__
from ...aio import loop_factory
from .examining import examine
from .findings import Finding, Fixed, Host, Problem, Verdict
from .page import Page, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .findings import Part

__all__ = ["doctor"]

_ORIGINS = {"own": "its own", "host": "this Python's", "cache": "from asyncblend's packages"}


def doctor(
    blender: Annotated[
        str | None,
        typer.Option(help='Look at this one only: an executable, its folder, or "bpy". Default: all that are found.'),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Install what is missing into your cache folder: pyzmq for Blender's Python, and, if there is no bpy "
            "module, Blender itself as one, in an environment of its own.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with all that was found, and nothing else.")
    ] = False,
) -> None:
    """Look at each Blender here: versions, engines, one small frame; what is missing, and the command that mends it.

    Exits with 0 if the Blender that would be used renders and torch is installed, else with 1.
    """
    out = Console(highlight=False)
    aside = Console(stderr=True, highlight=False) if as_json else out
    if aside.is_terminal:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, RichHandler):
                handler.console = aside  # a log line goes above the spinner
    report = _Report(Page(out), f"asyncblend {__version__}")

    @contextlib.contextmanager
    def working(text: str) -> Iterator[None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=aside, transient=True, disable=not aside.is_terminal) as progress:
            progress.add_task(text, total=None)
            yield

    show = (lambda part: None) if as_json else report.show
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        findings = runner.run(examine(blender, fix=fix, show=show, working=working))
    if as_json:
        typer.echo(json.dumps(findings.as_json(), indent=2))
    if not findings.verdict.ready:
        raise typer.Exit(1)


class _Report:
    """What was found, on a page."""

    def __init__(self, page: Page, title: str) -> None:
        self._page, self._title = page, title

    def show(self, part: Part) -> None:
        """Print the next part. The first is the host."""
        if isinstance(part, Host):
            self._page.title(self._title)
            self._host(part)
        elif isinstance(part, Problem):
            rows = [Row("bad", "why", part.why)]
            if part.details:
                rows.append(Row("", "", part.details))
            self._page.section(part.title, rows, "bad", part.commands)
        elif isinstance(part, Fixed):
            self._page.section("Fixed", [Row("ok", "installed", f"{part.what}: {part.path}")], "ok")
        elif isinstance(part, Finding):
            self._blender(part)
        else:
            self._verdict(part)

    def _host(self, host: Host) -> None:
        rows = [Row("ok", "Python", f"{host.python}  {host.executable}")]
        for package, version in host.packages.items():
            if package != "uvloop":
                rows.append(Row("ok" if version else "bad", package, version or "not installed"))
        uvloop = host.packages["uvloop"]
        loop = f"uvloop {uvloop}" if uvloop else "asyncio's own; uvloop is not installed"
        rows += [
            Row("ok", "event loop", loop),
            Row("", "cache", f"{host.cache}  for what Blenders lack, and the embedded one"),
        ]
        if host.no_module:
            rows.append(Row("", "bpy module", host.no_module))
        self._page.section("This machine", rows, "bad" if host.commands else "ok")

    def _blender(self, finding: Finding) -> None:
        blender = finding.blender
        kind = "embedded bpy module" if finding.embedded else "bpy module" if blender.kind == "module" else "executable"
        remark = ", taken by default" if finding.default else ""
        title = f"Blender {finding.version}".strip() + f" ({kind}{remark})"
        found = "" if blender.found.startswith("blender=") else f"  from {blender.found}"
        rows = [Row("", "path", blender.path + (found if blender.kind == "executable" else "  (import bpy)"))]
        if finding.why:
            mark = "bad" if finding.needed else "note"
            rows.append(Row(mark, "why", finding.why))
            if finding.details:
                rows.append(Row("", "", finding.details))
        else:
            mark = "ok"
            rows += _facts(finding)
        self._page.section(title, rows, mark, finding.commands)

    def _verdict(self, verdict: Verdict) -> None:
        if verdict.instead is not None:
            name, command = verdict.instead
            self._page.command(f"To take {name} instead, type ", command)
        mark, text = ("ok", "Ready: type ") if verdict.ready else ("bad", "Not ready. Type: ")
        self._page.last(mark, text, " && ".join(verdict.commands))


def _facts(finding: Finding) -> Iterator[Row]:
    facts = finding.facts
    origin = _ORIGINS[facts["pyzmq_origin"]]
    yield Row("ok", "Python", f"{facts['python']}, numpy {facts['numpy']}, pyzmq {facts['pyzmq']} ({origin})")
    if finding.installed:
        yield Row("ok", "installed", f"{' and '.join(finding.installed)} for its Python, just now")
    yield Row("ok", "engines", ", ".join(facts["engines"]))
    frame = f"{facts['width']}x{facts['height']} with Cycles in {_seconds(facts['frame_seconds'])}"
    yield Row("ok", "frame", f"{frame}, ready {facts['start_seconds']:.1f} s after its start")
    if facts["denoiser"]:
        yield Row("ok", "denoiser", "OpenImageDenoise")
    for label, text in finding.notes:
        yield Row("note", label, text)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
