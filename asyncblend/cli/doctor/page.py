"""Prints what the doctor finds, for people at a terminal or in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table

from ..terminal import Terminal, styled

_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "bad": ("✗", "red"), "": (" ", "dim")}
"""For each mark of a row, a sign and a style for panels. Plain lines have the mark as a word."""
_ORIGINS = {"own": "its own", "host": "this Python's", "cache": "from asyncblend's packages"}

_Row = tuple[str, str, str]
"""Its mark, "ok", "note", "bad" or "" for mere information; its label; its text."""


class Page:
    """Prints panels with coloured marks in a terminal, and plain lines elsewhere.

    Commands stand outside the panels and are never broken into lines, so that they can be copied. Each method prints
    the part of the report of `examine` that it is named after.
    """

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._in_panels = console.is_terminal and console.encoding.startswith("utf")

    def host(self, host: dict[str, Any], version: str) -> None:
        self._line((f"asyncblend {version}", "bold"))
        packages = dict(host["packages"])
        loop = f"uvloop {found}" if (found := packages.pop("uvloop")) else "asyncio's own; uvloop is not installed"
        rows = [("ok", "Python", f"{host['python']}  {host['executable']}")]
        rows += [("ok" if found else "bad", name, found or "not installed") for name, found in packages.items()]
        rows += [("ok", "event loop", loop)]
        rows += [("", "cache", f"{host['cache']}  for what Blenders lack, and the embedded one")]
        if host["no_module"]:
            rows.append(("", "bpy module", host["no_module"]))
        self._section("This machine", rows, "bad" if host["commands"] else "ok")

    def fixed(self, fixed: dict[str, Any], *, is_new: bool) -> None:
        title, label = ("Fixed", "installed") if is_new else ("Nothing to install", "bpy module")
        self._section(title, [("ok", label, f"{fixed['what']}: {fixed['path']}")], "ok", fixed["commands"])

    def offers(self, offers: Sequence[dict[str, str]]) -> None:
        for offer in offers:
            what = f"Blender {offer['release']} can be had as a module of {offer['python']}: type "
            self._line()
            self._line((what, "dim"), (offer["command"], "cyan"))

    def problem(self, problem: dict[str, Any]) -> None:
        self._section(problem["title"], _trouble("bad", problem), "bad", problem["commands"])

    def blender(self, one: dict[str, Any]) -> None:
        module, path = one["kind"] == "module", f"{one['path']}  (import bpy)"
        if not module:
            path = one["path"] if one["found"].startswith("blender=") else f"{one['path']}  from {one['found']}"
        kind = "embedded bpy module" if one["embedded"] else "bpy module" if module else "executable"
        if module and not one["embedded"] and one["path"] != sys.executable:
            kind = "bpy module of another Python"
        mark = "ok" if one["works"] else "bad" if one["needed"] else "note"
        rows = _facts(one) if one["works"] else _trouble(mark, one)
        default = ", taken by default" if one["default"] else ""
        title = f"Blender {one['version'] or ''}".strip() + f" ({kind}{default})"
        self._section(title, [("", "path", path), *rows], mark, one["commands"])

    def verdict(self, report: dict[str, Any]) -> None:
        if report["instead"] is not None:
            name, command = report["instead"]
            self._line((f"To take {name} instead, type ", "dim"), (command, "cyan"))
        text, style = ("Ready: type ", "bold green") if report["ready"] else ("Not ready. Type: ", "bold red")
        self._line()
        self._line((text, style), (" && ".join(report["commands"]), "bold cyan"))

    def _section(self, title: str, rows: Sequence[_Row], mark: str, commands: Sequence[str] = ()) -> None:
        if self._in_panels:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(width=1)
            grid.add_column(no_wrap=True, min_width=11)
            grid.add_column(overflow="fold")
            for own, label, text in rows:
                sign, style = _MARKS[own]
                grid.add_row(
                    styled((sign, style)), styled((label, "dim")), styled((text, "" if own or label else "dim"))
                )
            sign, style = _MARKS[mark]
            heading = styled((sign, style), " ", (title, "bold"))
            self._console.print(Panel(grid, title=heading, title_align="left", border_style=style))
        else:
            self._line((f"\n{title}", ""))
            for own, label, text in rows:
                indented = text.replace("\n", "\n" + " " * 21)
                self._line((f"  {'FAILED' if own == 'bad' else own:6} {label:11} {indented}".rstrip(), ""))
        for number, command in enumerate(commands):
            self._line(("    or  " if number else "  type  ", "dim"), (command, "cyan"))

    def _line(self, *parts: tuple[str, str]) -> None:
        self._console.print(styled(*parts))


def _trouble(mark: str, one: dict[str, Any]) -> list[_Row]:
    return [(mark, "why", one["why"]), *([("", "", one["details"])] if one["details"] else [])]


def _facts(one: dict[str, Any]) -> list[_Row]:
    facts = one["facts"]
    pyzmq = f"pyzmq {facts['pyzmq']} ({_ORIGINS[facts['pyzmq_origin']]})"
    rows = [("ok", "Python", f"{facts['python']}, numpy {facts['numpy']}, {pyzmq}")]
    if one["installed"]:
        rows.append(("ok", "installed", f"{' and '.join(one['installed'])} for its Python, just now"))
    seconds, start = facts["frame_seconds"], f"ready {facts['start_seconds']:.1f} s after its start"
    took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    rows.append(("ok", "engines", ", ".join(facts["engines"])))
    rows.append(("ok", "frame", f"{facts['width']}x{facts['height']} with Cycles in {took}, {start}"))
    if facts["denoiser"]:
        rows.append(("ok", "denoiser", "OpenImageDenoise"))
    notes = [note.partition(": ") for note in one["notes"]]
    return rows + [("note", label, text) for label, _, text in notes]
