"""Page: what `asyncblend doctor` prints, for a terminal or for a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

__all__ = ["Page", "Row"]

_STYLES = {"ok": "green", "note": "yellow", "bad": "red", "": "dim"}
_MARKS = {"ok": "✓", "note": "!", "bad": "✗", "": " "}
_WORDS = {"ok": "ok", "note": "note", "bad": "FAILED", "": ""}


class Row(NamedTuple):
    mark: str
    """"ok", "note", "bad", or "" for mere information."""
    label: str
    text: str


class Page:
    """Panels with coloured marks in a terminal, else plain lines that are never broken.

    Commands stand outside the panels and unbroken, to be copied.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._fancy = console.is_terminal and console.encoding.startswith("utf")

    def title(self, text: str) -> None:
        self._line(Text(text, "bold"))

    def working(self, text: str) -> Any:
        """Context manager: a spinner while something takes long, gone afterwards."""
        return self._console.status(Text(text))

    def section(self, title: str, rows: Iterable[Row], mark: str, commands: Sequence[str] = ()) -> None:
        """Rows under a title, then what to type about them."""
        if self._fancy:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(width=1)
            grid.add_column(no_wrap=True, min_width=11)
            grid.add_column(overflow="fold")
            for row in rows:
                style = _STYLES[row.mark]
                plain = "dim" if not (row.mark or row.label) else ""
                grid.add_row(Text(_MARKS[row.mark], style), Text(row.label, "dim"), Text(row.text, plain))
            heading = Text.assemble((_MARKS[mark], _STYLES[mark]), " ", (title, "bold"))
            self._console.print(Panel(grid, title=heading, title_align="left", border_style=_STYLES[mark]))
        else:
            self._line(Text(f"\n{title}"))
            for row in rows:
                text = row.text.replace("\n", "\n" + " " * 21)
                self._line(Text(f"  {_WORDS[row.mark]:6} {row.label:11} {text}".rstrip()))
        for number, command in enumerate(commands):
            self._line(Text.assemble(("  type  " if number == 0 else "    or  ", "dim"), (command, "cyan")))

    def command(self, text: str, command: str) -> None:
        self._line(Text.assemble((text, "dim"), (command, "cyan")))

    def last(self, mark: str, text: str, command: str) -> None:
        self._line(Text(""))
        self._line(Text.assemble((text, f"bold {_STYLES[mark]}"), (command, "bold cyan")))

    def _line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)
