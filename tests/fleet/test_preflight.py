"""What a run needs of its process and its machine: too little of it is a clear error, before anything starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncblend.testing import fake_blender

ROOT = Path(__file__).parents[2]
LIMIT = 60  # seconds; no program may take longer

# The error's class and message are printed, as are the frames where there is none.
PROGRAM = """
import asyncio, os, resource, sys, tempfile
import asyncblend as ab

def taken(): return len(os.listdir("/proc/self/fd"))
def limits(): return resource.getrlimit(resource.RLIMIT_NOFILE)
def limit(soft, hard=limits()[1]): resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

async def main(instances=1):
    options = dict(script=sys.argv[1], blender=sys.argv[2], instances=instances, length=40)
    try:
        async with ab.BlenderStream(**options) as stream:
            print(sorted([frame.index async for frame in stream]) == list(range(40)))
            while "starting" in stream.stats().state.values():
                await asyncio.sleep(0.01)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def outcome(write_script: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a program, which must leave nothing in TMPDIR, and returns what it printed."""
    script, blender = write_script("def sample(task): return {'x': np.zeros(100_000)}"), fake_blender(tmp_path / "fake")

    def run(code: str, *, inside: Sequence[str] = (), **variables: Any) -> str:
        program = tmp_path / "program.py"
        program.write_text(PROGRAM + code)
        done = subprocess.run(
            [*inside, sys.executable, str(program), str(script), str(blender)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (done.stderr, done.returncode) == ("", 0)
        assert not list(Path(variables.get("TMPDIR", tempfile.gettempdir())).glob("asyncblend*"))
        return done.stdout.strip()

    return run


# -- descriptors -------------------------------------------------------------------------------------------------

counted = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted as Linux lists them")


@counted
def test_too_few_descriptors_are_an_error_and_no_abort(outcome: Callable[..., str]) -> None:
    """ZeroMQ aborts the process when it has none left for the connection of a Blender that was launched."""
    said = outcome("limit(taken() + 110, taken() + 110); asyncio.run(main(32))")
    assert said.startswith("ConfigError instances=32 needs about ")
    assert "`ulimit -n " in said


@counted
def test_the_error_says_how_many_instances_fit(outcome: Callable[..., str]) -> None:
    """And so many do."""
    said = outcome("limit(110, 110); asyncio.run(main(16))")
    fits = said.rpartition("or set instances=")[2]
    assert outcome(f"limit(110, 110); asyncio.run(main({fits}))") == "True"


@counted
def test_the_soft_limit_is_raised_only_if_needed(outcome: Callable[..., str]) -> None:
    """Up to the hard limit at most, which stays as it is."""
    assert (
        outcome("limit(40, 400); asyncio.run(main()); print(40 < limits()[0] <= 400, limits()[1])") == "True\nTrue 400"
    )
    assert outcome("limit(300, 400); asyncio.run(main()); print(limits())") == "True\n(300, 400)"


WORKSPACE = """
import errno
from pathlib import Path
from asyncblend.fleet.workspace import Workspace

def fill(free=0):
    files = []
    try:
        while True: files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        for _ in range(free): os.close(files.pop())
    return files
def close(files):
    for file in files: os.close(file)

Workspace().__exit__()
limit(taken() + 20)
before = taken()
"""


@counted
def test_no_descriptors_for_a_workspace(outcome: Callable[..., str]) -> None:
    """At whichever step they run out, it leaves neither a folder nor a descriptor."""
    said = outcome(f"""{WORKSPACE}
for free in range(20):
    files = fill(free)
    try:
        Workspace().__exit__()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        failed = free
    close(files)
    assert taken() == before, free
    assert not list(Path(tempfile.gettempdir()).glob("asyncblend*")), free
print(0 < failed < 19)
""")
    assert said == "True"


@counted
def test_no_descriptors_when_a_workspace_ends(outcome: Callable[..., str]) -> None:
    """Its folder goes all the same, with the folders in it."""
    said = outcome(f"""{WORKSPACE}
with Workspace() as workspace:
    (workspace.life_folder(0, 0) / "a" / "b").mkdir(parents=True)
    files = fill()
close(files)
print(workspace.folder.exists(), taken() == before)
""")
    assert said == "False True"


# -- folders and addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["relative.py", ""])
def test_a_working_directory_that_is_gone(script: str, outcome: Callable[..., str], tmp_path: Path) -> None:
    """Blenders would start in it, and relative paths begin there."""
    (tmp_path / "gone").mkdir()
    said = outcome(f"""
sys.argv[1] = {script!r} or sys.argv[1]
os.chdir({str(tmp_path / "gone")!r})
os.rmdir(os.getcwd())
asyncio.run(main())
""")
    assert said.startswith("ConfigError the working directory of this program is gone ")


@pytest.mark.skipif(sys.platform != "linux", reason="paths are UTF-8 elsewhere")
def test_a_temporary_folder_that_is_not_utf8(outcome: Callable[..., str], tmp_path: Path) -> None:
    """ZeroMQ takes no such path for a socket."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    said = outcome("asyncio.run(main())", TMPDIR=folder)
    assert said.startswith("ConfigError the path of the temporary folder, b'")
    assert "set $TMPDIR to another one" in said


def long(folder: Path) -> str:
    """Make a folder whose path is too long for a Unix socket."""
    path = folder / ("x" * 90)
    path.mkdir()
    return str(path)


def test_a_long_temporary_folder_needs_the_loopback_interface(outcome: Callable[..., str], tmp_path: Path) -> None:
    """Then the socket is on that."""
    assert outcome("asyncio.run(main())", TMPDIR=long(tmp_path)) == "True"


def _without_network() -> list[str]:
    """Return the beginning of a command line that has no network, or skip the test."""
    command = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot run a program without a network")
    return command


def test_a_long_temporary_folder_without_the_loopback_interface(outcome: Callable[..., str], tmp_path: Path) -> None:
    """It is an error at once, and no Blender that cannot connect for minutes."""
    said = outcome("asyncio.run(main())", inside=_without_network(), TMPDIR=long(tmp_path))
    assert said.startswith(
        "ConfigError the path of the temporary folder is too long for a Unix socket, and the loopback"
    )
    assert "set $TMPDIR" in said
