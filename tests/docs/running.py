"""How the tests of the pages run what the pages show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import block


def run(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_block(folder: Path, word: str, environment: dict[str, str] | None = None) -> str:
    """Run the Python block with this word as a program, and return what it printed."""
    (folder / "block.py").write_text(block(word))
    return run(sys.executable, "block.py", environment=environment)
