"""The tables of the pages are those of the code, and their figures those of the benchmarks."""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from typing import Any

import pytest

import asyncblend as ab
import asyncblend.blender
from benchmarks.soak.faults import KINDS
from tests.docs.pages import PAGES, README, ROOT, page
from tests.docs.running import run


def test_the_table_of_options_is_complete() -> None:
    """The table has each field of StreamConfig with its default, and no other."""
    text = page("reference/options.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S.*?) \| .* \|$", text, flags=re.MULTILINE))
    defaults = {}
    for field in dataclasses.fields(ab.StreamConfig):
        if field.default is dataclasses.MISSING:
            defaults[field.name] = "required"
        elif dataclasses.is_dataclass(field.default):
            defaults[field.name] = f"`{type(field.default).__name__}()`"
        else:
            defaults[field.name] = f"`{field.default!r}`"
    assert rows == defaults
    for part in (ab.RestartPolicy(), ab.Timeouts()):
        for field in dataclasses.fields(part):
            assert f"`{field.name}={getattr(part, field.name)}`" in text


def test_the_soaks_table_has_every_fault() -> None:
    """Each kind of fault that the soak injects has its row."""
    assert re.findall(r"^\| faults: (.+?) \|", page("reliability.md"), flags=re.MULTILINE) == [*KINDS]


def test_every_extra_is_named() -> None:
    """The page of the installation tells what each extra is for."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if f"`{name}`" not in page("howto/install.md")] == []


def test_every_command_that_is_named_exists() -> None:
    """Commands that are named within sentences exist too."""
    text = "\n".join(PAGES.values())
    named = set(re.findall(r"`asyncblend ([a-z]\w*)", text))
    assert named >= {"doctor", "demo", "stream", "link"}
    for program, words in (
        ("asyncblend", named),
        ("benchmarks", set(re.findall(r"`python -m benchmarks (\w+)", text))),
    ):
        shown = run(sys.executable, "-m", program, "--help", cwd=ROOT)
        assert words <= set(re.findall(r"^\W+(\w+) {2,}", shown, flags=re.MULTILINE))


@pytest.mark.parametrize(("short", "module"), [("ab", ab), ("bl", ab.blender)], ids=["ab", "bl"])
def test_every_name_exists(short: str, module: Any) -> None:
    """What the sentences call `ab.NAME` and `bl.NAME` is public."""
    named = set(re.findall(rf"\b{short}\.([A-Za-z]\w*)", "\n".join(PAGES.values())))
    assert len(named) > 8
    assert named - {*module.__all__} == set()


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md", "docs/scaling.md"])
def test_every_figure_is_a_benchmarks(name: str) -> None:
    """Each number of the tables of speeds stands in RESULTS.md too."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    text = PAGES[ROOT / name]
    section = README.partition("## How fast")[2].partition("\n## ")[0] if name == "README.md" else text
    if name == "docs/scaling.md":  # the sections that follow reckon with round numbers
        section = text.partition("## What was measured")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    figures = re.findall(r"\*\*([\d.,]+)x?\*\*|\b([\d.,]+) (?:images|frames|round trips|ms|µs)", rows)
    numbers = [one or other for one, other in figures]
    assert len(numbers) > 6
    assert [number for number in numbers if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", results)] == []
