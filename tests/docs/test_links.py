"""The links of the pages work where they are read: in the repository, as here, and in the package's own description.

Those of the built site are checked by its strict build.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, README, ROOT

LINK = re.compile(r"\]\(([^)\s]*)\)")
LINKING = [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/RESULTS.md"]
OUTSIDE = ("https://", "http://")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings: lower case, without punctuation, with - for each space."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("source", LINKING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(source: Path) -> None:
    """Each link within the repository leads to a file, and to a heading of it; pictures are PNG files."""
    for link in LINK.findall(source.read_text()):
        if link.startswith(OUTSIDE):
            continue
        name, _, anchor = link.partition("#")
        target = (source.parent / name).resolve() if name else source
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text()), link
        if target.suffix == ".png":
            assert target.read_bytes().startswith(b"\x89PNG"), link


def test_every_page_is_found_from_the_readme() -> None:
    """A reader who follows links from the README comes to every page."""
    todo, found = [ROOT / "README.md"], set[Path]()
    while todo:
        path = todo.pop()
        if path in PAGES and path not in found:
            found.add(path)
            names = (link.partition("#")[0] for link in LINK.findall(PAGES[path]) if not link.startswith(OUTSIDE))
            todo += [(path.parent / name).resolve() for name in names]
    assert [path.name for path in PAGES if path not in found] == []


def test_the_packages_description_has_no_dead_link() -> None:
    """A package index shows the README without the repository, so links into it become plain text there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    text = README
    for substitution in settings["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    links = LINK.findall(text)
    assert links
    assert [link for link in links if not link.startswith(OUTSIDE)] == []
    assert "[" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("[Blender](", "").replace('".[bpy]"', "")
