"""The terminal: how the commands print, so that the text of users is never anything but text.

Names of classes and files, the values of options, a script's errors and Blender's log are in all that a command prints.
None of it is rich's markup here, and none of it moves the cursor, sets a title or hides what stands beside it: every
character that is not printable is shown as Python would write it, such as `\\x1b`. Colours come from `styled`.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

_LEVELS = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}


def printable(text: str) -> str:
    """Return text with each character escaped that would not be seen as itself. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else _escaped(one) for one in text)


def typed(path: str | os.PathLike[str]) -> str:
    """Return a path as it is typed into a shell, where no command takes it for an option."""
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return a text made of others, each as it is or with a style."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((printable(text), style) for text, style in pairs))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class Terminal(Console):
    """A console for text as it is. Long lines are not broken, so that paths and commands can be copied."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as rich prints it. Escaped before anything is measured, so that tables stay straight."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is printed, which is how a `Text` object's text comes by."""
        for segment in super().render(renderable, options):
            if segment.control or printable(segment.text) == segment.text:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """End the command if nobody reads its output. If nobody reads its log, go on without a word."""
        if not self.stderr:
            super().on_broken_pipe()
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.file.fileno())
        os.close(null)


class Fitting:
    """The first of several texts that fits where it is printed, or else the beginning of the last one."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return how narrow and how wide it may be."""
        return Measurement(1, self._texts[0].cell_len)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the text."""
        text = next((one for one in self._texts if one.cell_len <= options.max_width), self._texts[-1]).copy()
        text.truncate(options.max_width, overflow="ellipsis")
        yield text


STDERR = Terminal(stderr=True)
"""Where the log, the progress and the errors go, so that the output of a command can be kept in a file."""


class LogHandler(logging.Handler):
    """Prints the log on `STDERR`, above the line that shows how far a stream is."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the level and the message."""
        try:
            level = f"{record.levelname:8} ", _LEVELS.get(record.levelname, "dim")
            STDERR.print(styled(level, self.format(record)))
        except Exception:
            self.handleError(record)  # as every handler of the standard library does
