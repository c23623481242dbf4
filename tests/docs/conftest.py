"""Where the blocks of code of the pages are run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, SCRIPTS, block


@pytest.fixture
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Width and height of the scenes' pictures: only with `--all` as large as in the pages, else a hundredth."""
    return (640, 480) if request.config.getoption("all") else (64, 48)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> Path:
    """An empty folder, as the working directory, with the scripts of the pages; the commands are on the PATH."""
    monkeypatch.setenv("ASYNCBLEND_BLENDER", "bpy")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name, word in SCRIPTS.items():
        assert any(f"`{name}`" in text for text in PAGES.values())
        assert "= 640, 480\n" in block(word) or name not in ("scene.py", "labelled.py")
        (tmp_path / name).write_text(block(word).replace("= 640, 480\n", f"= {size[0]}, {size[1]}\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
