"""The Tab key completes commands and options, in the shell itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

NAMED_BY_HAND = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
"""Makes typer take the shell that is named. Otherwise it is the one that the program was started from."""
BASH = shutil.which("bash")
TYPED = """
eval "$(asyncblend --show-completion bash)"
COMP_WORDS=({line}) COMP_CWORD={place}
$(complete -p asyncblend | sed 's/.*-F \\([^ ]*\\).*/\\1/') asyncblend
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("asyncblend st", ["stream"]),
        ("asyncblend fleet st", ["start", "stop"]),
        ("asyncblend record scene.py --se", ["--seed"]),
        ("asyncblend record scene.py --image-format p", ["png"]),
        ("asyncblend export scene.py --format p", ["parquet"]),
        ("asyncblend export scene.py --task s", ["segment"]),
    ],
    ids=str,
)
@pytest.mark.exhaustive
def test_bash_completes(line: str, words: list[str], tmp_path: Path) -> None:
    """What the shell would offer after a Tab is what the command has."""
    assert BASH is not None
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), **NAMED_BY_HAND}
    typed = TYPED.format(line=line, place=len(line.split()) - 1)
    done = subprocess.run([BASH, "-c", typed], env=environment, capture_output=True, text=True, timeout=100, check=True)
    assert sorted(done.stdout.split()) == words, done.stderr


def test_a_shell_is_set_up(tmp_path: Path) -> None:
    """`--install-completion` writes into the home folder, and says so."""
    environment = {**os.environ, "HOME": str(tmp_path), **NAMED_BY_HAND}
    program = Path(sysconfig.get_path("scripts"), "asyncblend")
    done = subprocess.run(
        [program, "--install-completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "bash completion installed in" in done.stdout
    assert "asyncblend" in (tmp_path / ".bashrc").read_text()
