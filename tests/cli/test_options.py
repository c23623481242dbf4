"""The options that the commands share: the scene, the script's own arguments, help, the version and flags."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pycocotools.coco import COCO
from typer.testing import CliRunner

from asyncblend import __version__
from asyncblend.cli import app
from asyncblend.cli.config_file import load_config
from asyncblend.errors import ConfigError
from asyncblend.recording import Recording
from asyncblend.scripts import script
from asyncblend.testing import fake_blender

NAMES = sorted(command.callback.__name__ for command in app.registered_commands if command.callback is not None)
FLEET = ("fleet list", "fleet start", "fleet stop")
RENDERING = ("bench", "export", "fleet start", "inspect", "record", "stream", "view")
SCRIPT = """
import runpy, sys
from asyncblend import blender as bl
draw = runpy.run_path({conftest!r})["draw"]
def sample(task):
    values = dict(draw(task.index, 64, 48, 3, seed=task.seed))  # a copy: a sample may be made twice
    del values["index"]
    return {{**values, "arguments": "|".join(sys.argv[1:])}}
bl.serve(sample)
"""


def asyncblend(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASYNCBLEND_BLENDER": str(cwd / "fake" / "blender"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "asyncblend", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=cwd, env=environment, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a script that gives all labels and its own arguments, and a fake Blender that runs it."""
    fake_blender(tmp_path / "fake")
    conftest = Path(__file__).parents[1] / "pictures" / "conftest.py"
    (tmp_path / "scene.py").write_text(SCRIPT.format(conftest=str(conftest)))
    return tmp_path


@pytest.mark.parametrize("command", [None, *NAMES, *FLEET])
@pytest.mark.exhaustive
def test_help_teaches(command: str | None, tmp_path: Path) -> None:
    """-h and --help are the same. Each command has an example, whose options are real, and flags can be turned off."""
    own = () if command is None else command.split()
    short, long = (asyncblend(*own, option, cwd=tmp_path) for option in ("-h", "--help"))
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout
    if command is None:
        for name in (*NAMES, "fleet"):
            assert re.search(rf"^  {name} +\w.*\.$", short.stdout, re.MULTILINE)  # no sentence is cut off
        return
    examples = re.findall(rf"^      asyncblend ({command}.*)$", short.stdout, re.MULTILINE)
    assert examples
    _, _, options = short.stdout.partition("\nOptions:\n")
    for word in " ".join(examples).split(" -- ")[0].split():
        assert not word.startswith("--") or f" {word} " in options, word
    for flag in re.findall(r"^  (--\S+)  ", options, re.MULTILINE):
        assert flag == "--version", f"{flag} has no other side"
    assert ("[-- ARGUMENTS]" in short.stdout) == (command in RENDERING)
    assert ("--scene FILE" in short.stdout) == (command in RENDERING)


def test_the_version(tmp_path: Path) -> None:
    """It is printed alone."""
    done = asyncblend("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"asyncblend {__version__}\n")


@pytest.mark.exhaustive
def test_a_flag_can_be_turned_off(folder: Path) -> None:
    """As the help says, also after it was turned on, as an alias may do."""
    record = asyncblend("record", "scene.py", "--length", "1", "--instances", "1", "--out", "run", cwd=folder)
    assert record.returncode == 0, record.stderr
    for flags, status in (((), 0), (("--overwrite", "--no-overwrite"), 1), (("--overwrite",), 0)):
        done = asyncblend("export", "run", "--out", "coco", *flags, cwd=folder)
        assert done.returncode == status, done.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
def test_arguments_after_the_dashes_are_the_scripts(folder: Path) -> None:
    """All of them, also those that look like options of ours, and a second pair of dashes."""
    given = ("--", "--level", "3", "--length", "-h", "--", "two words")
    done = asyncblend("record", "scene.py", "--length", "1", "--instances", "1", "--out", "run", *given, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Recording(folder / "run")[0].returned["arguments"] == "--level|3|--length|-h|--|two words"
    shown = asyncblend("stream", "scene.py", "--length", "1", "--instances", "1", "--", "here", cwd=folder)
    assert "arguments='here'" in shown.stdout
    picture = asyncblend("inspect", "scene.py", "--samples", "1", "--", "here", cwd=folder)
    assert picture.returncode == 0, picture.stderr
    bench = ("bench", "scene.py", "--instances", "1", "--threads", "1", "--seconds", "0.05", "--", "here")
    assert asyncblend(*bench, cwd=folder).returncode == 0


@pytest.mark.exhaustive
def test_script_args_are_the_words_up_to_the_next_option(folder: Path) -> None:
    """They may stand anywhere, come before those after the dashes, and leave our own options alone."""
    for given, expected in (
        (("--script-args", "a.glb", "b.glb", "--length", "1"), "a.glb|b.glb"),
        (
            ("--length", "1", "--script-args=a.glb", "--script-args", "b.glb", "--", "--level", "3"),
            "a.glb|b.glb|--level|3",
        ),
        (("--length", "1", "--", "--script-args", "a.glb"), "--script-args|a.glb"),
    ):
        done = asyncblend("stream", "scene.py", "--instances", "1", *given, cwd=folder)
        assert f"arguments='{expected}'" in done.stdout, done.stderr


@pytest.mark.exhaustive
def test_the_help_of_a_script(folder: Path) -> None:
    """It is what `-- --help` prints, to the standard output, and no error. Other ends before serving stay errors.

    It is there as a whole, also where it is longer than the last lines that an error shows.
    """
    (folder / "helpful.py").write_text(
        "import argparse\n"
        "parser = argparse.ArgumentParser('helpful.py')\n"
        "parser.add_argument('--level', type=int, help='how hard it is')\n"
        "for number in range(60): parser.add_argument(f'--option-{number}', help='one of many')\n"
        "parser.parse_args()\n"
    )
    done = asyncblend("inspect", "helpful.py", "--", "--help", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: helpful.py")
    assert "how hard it is" in done.stdout
    assert "--option-59" in done.stdout
    assert not (folder / "sheet.png").exists()
    wrong = asyncblend("inspect", "helpful.py", "--", "--level", "x", cwd=folder)
    assert wrong.returncode == 1
    assert "invalid int value: 'x'" in wrong.stderr


@pytest.mark.exhaustive
def test_the_help_of_model_py(real: Any, tmp_path: Path) -> None:
    """It begins with its usage."""
    arguments = ("--blender", real.blender, "--", "--help")
    done = asyncblend("stream", "model.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: model.py" in done.stdout


def test_scripts_that_come_with_asyncblend_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names, in any folder; but a file that is there is the user's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.py", "blender_scripts/model.py"):
        assert load_config(Path(name)).script == script("model.py")
    for name in ("nowhere.py", "other/model.py"):
        assert load_config(Path(name)).script == Path(name)  # that it does not exist is told later
    (tmp_path / "model.py").touch()
    assert load_config(Path("model.py")).script == Path("model.py")


@pytest.mark.exhaustive
def test_a_toml_files_arguments_are_overridden(folder: Path) -> None:
    """By those after the dashes, if there are any."""
    (folder / "job.toml").write_text('script = "scene.py"\nscript_args = ["file"]\nlength = 1\ninstances = 1\n')
    for given, expected in (((), "file"), (("--",), "file"), (("--", "line"), "line")):
        done = asyncblend("stream", "job.toml", *given, cwd=folder)
        assert f"arguments='{expected}'" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("stream", "scene.py", "other.py"), 2, "unexpected extra argument"),
        (("stream", "--", "scene.py"), 2, "Missing argument"),
        (("demo", "--", "x"), 2, "unexpected extra argument"),
        (("inspect", "empty", "--", "x"), 1, "nothing is rendered: leave out -- and what follows"),
        (("inspect", "empty", "--scene", "x.blend"), 1, "nothing is rendered: leave out --scene"),
        (("export", "empty", "--out", "o", "--scene", "x.blend"), 1, "nothing is rendered: leave out --scene"),
        (("export", "empty", "--out", "o", "--", "x"), 1, "nothing is rendered: leave out -- and what follows"),
        (("export", "scene.py", "--out", "o"), 2, "how many samples? Such as --length 1000"),
        (("export", "nowhere.py", "--out", "o", "--length", "1"), 1, "script 'nowhere.py' does not exist"),
        (("stream", "scene.py", "--scene", "nowhere.blend"), 1, "scene 'nowhere.blend' does not exist"),
        (("stream", "/dev/null"), 1, "script '/dev/null' is no regular file"),
    ],
)
@pytest.mark.exhaustive
def test_wrong_use(args: tuple[str, ...], status: int, message: str, folder: Path) -> None:
    """Says what is wrong, without a traceback."""
    (folder / "empty").mkdir()
    done = asyncblend(*args, cwd=folder)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_export_renders(folder: Path) -> None:
    """A script's samples become the same annotations as those of its recording."""
    options = ("--length", "3", "--instances", "2", "--seed", "5")
    rendered = asyncblend("export", "scene.py", "--out", "rendered", *options, cwd=folder)
    assert rendered.returncode == 0, rendered.stderr
    assert asyncblend("record", "scene.py", "--out", "run", *options, cwd=folder).returncode == 0
    recorded = asyncblend("export", "run", "--out", "recorded", cwd=folder)
    assert recorded.returncode == 0, recorded.stderr
    one, other = (COCO(str(folder / name / "annotations.json")).dataset for name in ("rendered", "recorded"))
    assert one["annotations"] == other["annotations"]
    assert [image["id"] for image in one["images"]] == [0, 1, 2]
    assert "scene.py, seed 5" in one["info"]["description"]


@pytest.mark.blender
@pytest.mark.exhaustive
def test_the_scene_is_opened(real: Any, tmp_path: Path) -> None:
    """The objects of a .blend file are there when the script runs."""
    script = tmp_path / "scene.py"
    script.write_text(
        "import bpy, sys\nfrom asyncblend import blender as bl\n"
        "if 'save' in sys.argv:\n    bpy.data.objects['Cube'].name = 'Bread'\n"
        "    bpy.ops.wm.save_as_mainfile(filepath=sys.argv[2])\n"
        "bl.serve(lambda task: {'objects': ' '.join(sorted(bpy.data.objects.keys()))})\n"
    )
    common = ("stream", str(script), "--length", "1", "--instances", "1", "--blender", real.blender)
    saved = asyncblend(*common, "--", "save", str(tmp_path / "room.blend"), cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    opened = asyncblend(*common, "--scene", "room.blend", cwd=tmp_path)
    assert "objects='Bread Camera Light'" in opened.stdout, opened.stderr


def test_paths_in_a_toml_file(tmp_path: Path) -> None:
    """All of them are relative to the file, and one without a home is an error of the file's."""
    path = tmp_path / "job.toml"
    path.write_text('script = "a.py"\nlogs = "logs"\nscene = "b.blend"\nblender = "bpy"\n')
    config = load_config(path, scene=Path("c.blend"), script_args=[])
    assert (config.script, config.logs, config.blender) == (tmp_path / "a.py", tmp_path / "logs", "bpy")
    assert (config.scene, config.script_args) == (Path("c.blend"), ())
    path.write_text('script = "~no-such-user/a.py"\n')
    with pytest.raises(ConfigError, match=r"script '~no-such-user/a.py' cannot be expanded"):
        load_config(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "seed = " + "9" * 5000, "a = 2024-99-99"])
def test_a_toml_file_that_python_cannot_read(text: str, tmp_path: Path) -> None:
    """Is a ConfigError, whatever the parser raises."""
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "job.toml")


def test_every_command_is_registered_in_order() -> None:
    """The list of the help is sorted."""
    commands: Any = typer.main.get_command(app)
    assert commands.list_commands(None) == sorted([*NAMES, "fleet"])


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("scene.py --out out --length 8 --ray", None),
        ("--ray scene.py --out out --length 8", None),
        ("scene.py --ray --out out --length 8 -- --ray head:1", None),
        ("scene.py --out out --ray 10.0.0.5:6379 --length 8", "10.0.0.5:6379"),
        ("scene.py --out out --ray=10.0.0.5:6379 --length 8", "10.0.0.5:6379"),
    ],
)
def test_the_address_of_a_cluster_may_be_left_out(
    line: str, address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows `--ray` is an address if it has a port, and otherwise what it would be without `--ray`."""
    given: list[Any] = []
    command = sys.modules["asyncblend.cli.record"]
    monkeypatch.setattr(command, "record_on_ray", lambda *args, **options: given.append((*args, options)))
    monkeypatch.chdir(tmp_path)
    Path("scene.py").touch()
    result = CliRunner().invoke(app, ["record", *line.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    ((found, config, out, options),) = given
    assert (found, config.length, str(config.script), str(out)) == (address, 8, "scene.py", "out")
    assert (options["actors"], options["shard_size"]) == (None, 100)
    result = CliRunner().invoke(app, ["record", "scene.py", "--out", "out", "--length", "8", "--num-cpus", "2"])
    assert (result.exit_code, given[1:]) == (2, [])
    assert "it goes with --ray" in result.output


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (["--ray", "scene.py"], ""),
        (["scene.py", "--ray"], ""),
        (["--ray", "auto", "scene.py"], "auto"),
        (["--ray", "10.0.0.5:6379", "scene.py"], "10.0.0.5:6379"),
    ],
)
def test_auto_is_an_address_of_a_cluster(given: list[str], address: str) -> None:
    """Also before the script, whose name is none."""
    record = typer.main.get_command(app).commands["record"]  # type: ignore[attr-defined]
    context = record.make_context("record", [*given, "--out", "cubes"])
    assert context.params["ray"] == address
    assert context.params["config"] == Path("scene.py")


def test_the_address_of_a_warm_fleet() -> None:
    """It is never left out."""
    start = typer.main.get_command(app).commands["fleet"].commands["start"]  # type: ignore[attr-defined]
    context = start.make_context("start", ["scene.py", "--name", "cubes", "--ray", "head"])
    assert context.params["ray"] == "head"


def test_a_scripts_help_is_text(folder: Path) -> None:
    """What it writes commands no terminal."""
    (folder / "hostile.py").write_text("import sys; print('\\x1b]0;title\\x07help'); sys.exit(0)")
    done = asyncblend("stream", "hostile.py", "--instances", "1", "--", "--help", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\x1b]0;title\\x07help\n"
