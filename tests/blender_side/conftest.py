"""Runs a script in a real Blender: the bpy module, and the executable where there is one."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncblend.cli.link import prepare
from asyncblend.fleet.discovery import find_blender

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PRELUDE = """\
import json, pathlib, sys
sys.path.insert(0, {root!r})
sys.path.append({packages!r})
import bpy, numpy as np
OUT = pathlib.Path(__file__).parent
"""
EPILOGUE = """
sys.exit(0)  # else Blender exits with 1 when its last render failed, however well the script ended
"""


@pytest.fixture(scope="module", params=["bpy", "executable"])
def in_blender(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """run(script) -> folder: runs the script in a fresh Blender; it leaves its results in the folder `OUT`."""
    executable = shutil.which("blender")
    if request.param == "executable" and executable is None:
        pytest.skip("no blender executable on PATH")

    packages = ""
    if request.param == "executable":
        packages = asyncio.run(prepare(find_blender(executable))).packages

    def run(script: str) -> Path:
        out = tmp_path_factory.mktemp(request.param)
        path = out / "script.py"
        path.write_text(PRELUDE.format(root=str(ROOT), packages=packages) + script + EPILOGUE)
        if request.param == "bpy":
            command = [sys.executable, str(path)]
        else:
            command = [
                str(executable),
                "-b",
                "--factory-startup",
                "--python-exit-code",
                "1",
                "--python",
                str(path),
            ]
        done = subprocess.run(
            command,
            cwd=out,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, "\n".join(
            line for line in done.stdout.splitlines() if not line.startswith("Fra:")
        )
        return out

    return run
