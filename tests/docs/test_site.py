"""The pages build into a site, strictly, and the site needs nothing from elsewhere."""

from __future__ import annotations

import importlib
import re
import sys
import zlib
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.running import run

PUBLIC = (
    "asyncblend",
    "asyncblend.blender",
    "asyncblend.blendtorch",
    "asyncblend.gym",
    "asyncblend.metrics",
    "asyncblend.ray",
    "asyncblend.testing",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `make docs` builds it. A warning is an error."""
    pytest.importorskip("mkdocs", reason='pip install ".[docs]"')
    pytest.importorskip("mkdocstrings", reason='pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), cwd=ROOT)
    return folder


@pytest.mark.exhaustive
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No page loads a script, style, font or picture from another host."""
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert len(pages) > 30
    for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", "".join(pages)):
        assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), tag
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", path.read_text()), path


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_is_complete(site: Path, module: str) -> None:
    """Each public name has its entry."""
    for needed in {"asyncblend.gym": "gymnasium", "asyncblend.ray": "ray.data"}.get(module, "").split():
        pytest.importorskip(needed)
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]).decode()
    entries = {line.split()[0] for line in inventory.splitlines()}
    missing = [name for name in importlib.import_module(module).__all__ if f"{module}.{name}" not in entries]
    assert missing == []


def test_what_pages_link_to_is_in_the_site(site: Path) -> None:
    """Files outside of `docs/` are there as pages, and the commands have theirs."""
    assert 'class="highlight"' in (site / "repository/examples/curriculum.py.html").read_text()
    assert (site / "repository/SECURITY.html").is_file()
    assert (site / "repository/benchmarks/pictures/demo.png").is_file()
    commands = (site / "reference/commands.html").read_text()
    assert "asyncblend fleet start" in commands
    assert "--shard-size" in commands
