"""The command `asyncblend record`, as a user types it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from asyncblend.cli import app
from asyncblend.cli.terminal import typed
from asyncblend.recording import Recording
from asyncblend.stream.stream import BlenderStream
from asyncblend.testing import fake_blender

VALUES = {"image": ("uint8", (48, 64, 3)), "xy": ("float32", (8, 2))}


def command(cwd: Path, *args: str, **faults: object) -> list[str]:
    """Return `asyncblend record scene.py --out cubes` with a fake Blender, for a folder."""
    (cwd / "scene.py").touch()
    fake = str(fake_blender(cwd / "fake", values=VALUES, **faults))
    program = [sys.executable, "-m", "asyncblend", "record"]
    return [*program, "scene.py", "--out", "cubes", "--blender", fake, "--instances", "2", *args]


def record(cwd: Path, *args: str, **faults: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(cwd, *args, **faults), cwd=cwd, capture_output=True, text=True, timeout=90, check=False
    )


def test_it_records_and_says_what_to_type_next(tmp_path: Path) -> None:
    """The summary has the samples, the rate and the bytes. The same command again continues, and adds samples."""
    done = record(tmp_path, "--length", "20", "--shard-size", "8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"20 samples are in cubes: 20 new ones (in [\d.]+ s, [\d.]+/s|at once), \d+\.\d kB", done.stdout)
    assert done.stdout.rstrip().endswith("asyncblend inspect cubes")
    assert len(list((tmp_path / "cubes").glob("*.tar"))) == 3
    again = record(tmp_path, "--length", "30")
    assert again.returncode == 0, again.stderr
    assert "20 of 30 samples are there already" in again.stdout
    assert "30 samples are in cubes: 10 new ones" in again.stdout
    assert Recording(tmp_path / "cubes").indices.tolist() == list(range(30))
    nothing = record(tmp_path, "--length", "30")
    assert nothing.returncode == 0, nothing.stderr
    assert "30 samples are in cubes\n" in nothing.stdout


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_made(tmp_path: Path) -> None:
    """The shard that is being written becomes whole, the Blenders end, and the command says how to go on."""
    with subprocess.Popen(
        command(tmp_path, "--length", "100000", "--shard-size", "50"), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while len(list((tmp_path / "cubes").glob("*.tar"))) < 2 and process.poll() is None:
            threading.Event().wait(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "Stopped."
    recorded = Recording(tmp_path / "cubes")
    assert f"{len(recorded)} samples are in cubes" in out
    assert "The same command goes on after them." in out
    assert "Traceback" not in err
    assert not list((tmp_path / "cubes").glob("*.partial"))
    assert recorded.indices.tolist() == sorted(set(recorded.indices.tolist()))


@pytest.mark.exhaustive
def test_jpeg_and_toml(tmp_path: Path) -> None:
    """Options of the images work, and so do fields from a TOML file."""
    (tmp_path / "job.toml").write_text('script = "scene.py"\nlength = 3\nseed = 9\n[params]\nlevel = 2\n')
    line = command(tmp_path, "--image-format", "jpeg", "--quality", "80", "--shard-size", "1MB")
    line[line.index("scene.py")] = "job.toml"
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    recording = Recording(tmp_path / "cubes")
    assert (recording.about["seed"], recording.about["quality"]) == (9, 80)
    assert recording[0].params == {"level": 2}
    assert "image.jpg" in recording[0].files


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ((), 2, "how many samples? Such as --length 1000"),
        (("--length", "5", "--shard-size", "many"), 1, "ConfigError shard_size must be a number of samples"),
        (("--length", "5", "--shard-size", "9" * 5000), 1, "ConfigError shard_size must be a number of samples"),
        (("--length", "5", "--image-format", "gif"), 1, "ConfigError image_format must be 'png' or 'jpeg'"),
        (("--length", "5", "--out", "scene.py"), 1, "RecordingError cannot record into scene.py: File exists"),
    ],
)
def test_wrong_use_ends_with_the_reason(args: tuple[str, ...], status: int, message: str, tmp_path: Path) -> None:
    """The message says what is wrong, without a Python traceback of ours."""
    done = record(tmp_path, *args)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_before_the_first_line_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised as it is."""

    def progress(*columns: object, **options: object) -> None:
        raise LookupError("no such terminal")

    monkeypatch.setattr("asyncblend.cli.live.Progress", progress)
    (tmp_path / "scene.py").touch()
    fake = fake_blender(tmp_path / "fake", values=VALUES)
    line = ["record", str(tmp_path / "scene.py"), "--out", str(tmp_path / "cubes"), "--length", "3"]
    result = CliRunner().invoke(app, [*line, "--blender", str(fake)])
    assert isinstance(result.exception, LookupError)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_another_stream_is_refused(tmp_path: Path) -> None:
    """A stream with another seed cannot continue a recording, in which a crash of Blender lost nothing."""
    done = record(tmp_path, "--length", "40", "--instances", "1", crash_after=5, lives=2)
    assert done.returncode == 0, done.stderr
    again = record(tmp_path, "--length", "40", "--seed", "1")
    assert again.returncode == 1
    assert "seed is 0 there, 1 here" in " ".join(again.stderr.split())
    assert len(Recording(tmp_path / "cubes")) == 40


def test_only_bad_samples_are_told_of(tmp_path: Path) -> None:
    """Nothing is in the folder, and the command says why."""
    line = command(tmp_path, "--length", "3", crash_after=0, crash_status=1)
    (tmp_path / "fake" / "synthetic.py").write_text(
        "from asyncblend import blender as bl\n\ndef sample(task):\n    raise ValueError('bad')\n\nbl.serve(sample)\n"
    )
    fake_blender(tmp_path / "other")
    (tmp_path / "scene.py").write_text((tmp_path / "fake" / "synthetic.py").read_text())
    (tmp_path / "job.toml").write_text('script = "scene.py"\non_bad_sample = "skip"\n')
    line[line.index("scene.py")] = "job.toml"
    line[line.index("--blender") + 1] = str(tmp_path / "other" / "blender")
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "0 samples are in cubes\n3 samples were skipped, because they failed; recording again tries them again\n"
    )


def test_the_command_to_type_next_can_be_typed() -> None:
    """Also where a folder has the name of an option."""
    assert typed(Path("-out")) == "./-out"
    assert typed(Path("my -out")) == "'my -out'"
    assert typed(Path("cubes")) == "cubes"


def test_the_rate_is_without_the_end_of_the_blenders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are slow to end took no sample's time."""
    clock = iter(range(10_000))
    monkeypatch.setattr("asyncblend.cli.live.time", SimpleNamespace(perf_counter=lambda: next(clock) / 10))
    (tmp_path / "scene.py").touch()
    fake = fake_blender(tmp_path / "fake", values=VALUES)
    real = BlenderStream.aclose

    async def aclose(self: BlenderStream) -> None:
        await real(self)
        for _ in range(1000):
            next(clock)

    monkeypatch.setattr(BlenderStream, "aclose", aclose)
    line = ["record", str(tmp_path / "scene.py"), "--length", "5", "--out", str(tmp_path / "cubes")]
    done = CliRunner().invoke(app, [*line, "--blender", str(fake), "--instances", "1"])
    assert done.exit_code == 0, done.output
    seconds = re.search(r"5 new ones in ([\d.]+) s, [\d.]+/s", done.stdout)
    assert seconds is not None, done.stdout
    assert float(seconds[1]) < 50
