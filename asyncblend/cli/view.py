"""`asyncblend view`: look at frames with their labels while they come, in rerun's viewer."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..aio import run
from ..checks import check_whole
from ..errors import ConfigError
from ..ports import PAGE, VIEW
from .config_file import load_config
from .live import LiveLine, Waiting
from .needs import is_missing, require
from .options import (
    BlenderOption,
    InstancesOption,
    LengthOption,
    SceneOption,
    SeedOption,
    check_source,
    refuse_rendering,
)
from .outputs import check_file
from .terminal import STDERR

if TYPE_CHECKING:
    from ..viewer.showing import Where


def view(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|DIR",
            help="A script.py, a TOML file with StreamConfig's fields, or a folder that `asyncblend record` wrote. With "
            "--attach, the training's port, or HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    attach: Annotated[
        bool,
        typer.Option(
            "--attach/--no-attach",
            help=f"Look at a running training whose dataset.view() was called: {VIEW} is its port.",
        ),
    ] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it to this .rrd file, which rerun opens.")
    ] = None,
    web: Annotated[bool, typer.Option("--web/--no-web", help="Serve it as a web page on this machine alone.")] = False,
    port: Annotated[int, typer.Option(metavar="N", help="The port of that page.")] = PAGE,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open that page in the browser.")] = False,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Show a recording's samples in a random order.")
    ] = False,
    scene: SceneOption = None,
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
) -> None:
    """Look at frames while they come.

    Images with boxes, keypoints and masks, depth, normals and flow, the scene in 3D with its camera, how fast frames
    come, what each Blender does, and the log. The window of rerun opens; with --web it is a web page, and with --save
    alone it is a file.

    A stream with a length, or with --save, has every frame shown. An endless one, or a training, is never slowed: at
    most ten frames a second are shown, always the newest; the others are counted.

    rerun needs numpy 2, which no bpy module takes before Blender 5.1. So install asyncblend[view] where no such module
    is: a Blender that is an executable, or the Python of another environment, renders for it.

    Examples:

        asyncblend view scene.py --blender ~/bpy/bin/python
        asyncblend view scene.py --length 100 --save run.rrd
        asyncblend view recording --shuffle --web
        asyncblend view --attach
        asyncblend view --attach 9871 --web
    """
    _check_rerun()
    if port != PAGE and not web:
        raise ConfigError("--port is that of the web page; add --web")
    if browser and not web:
        raise ConfigError("--browser opens the web page; add --web")
    if save is not None:
        if save.suffix != ".rrd":
            raise ConfigError(f"--save {str(save)!r} is no name of rerun's file; take one that ends with .rrd")
        check_file("--save", save)
    from ..viewer.showing import Where

    where = Where(file=save, web=web, port=port, browser=browser)
    options = {"scene": scene, "instances": instances, "blender": blender}
    if attach:
        refuse_rendering(Path("--attach"), {**options, "length": length, "seed": seed}, context.args)
        _training(source, where)
        return
    if source is None:
        raise typer.BadParameter("give a script.py, a TOML file or a recording, or --attach", param_hint="CONFIG|DIR")
    path = Path(source)
    check_source(path)
    if path.is_dir():
        refuse_rendering(path, options, context.args)
        _recording(path, where, shuffle=shuffle, length=length, seed=seed or 0)
        return
    if shuffle:
        raise ConfigError("--shuffle is for a recording; a stream's samples come as they are rendered")
    _stream(path, where, {**options, "length": length, "seed": seed, "script_args": context.args})


def _check_rerun() -> None:
    """Raise if rerun is not here, and say where it can be: not where it would replace the numpy that bpy needs."""
    if is_missing("rerun") and not is_missing("bpy") and sys.version_info < (3, 13):
        python = shlex.quote(sys.executable)
        raise ConfigError(
            "rerun is not installed here. It needs numpy 2, which the bpy module that is installed here excludes, so it "
            f"goes into an environment of its own. Type: {python} -m venv view && view/bin/pip install "
            f"'.[view]' (in the checkout, which is the dot); and then view/bin/asyncblend view CONFIG --blender {python}"
        )
    require("rerun")
    os.environ.setdefault("RUST_LOG", "off")  # what fails in rerun is raised, and would be told twice


def _stream(path: Path, where: Where, options: dict[str, object]) -> None:
    from ..stream.stream import BlenderStream
    from ..viewer.showing import show
    from ..viewer.sources import of_stream

    config = load_config(path, **options)
    stream = BlenderStream(config).sync()
    every = config.length is not None or where.file is not None
    stream.consumer = "the view" if every else None
    line = LiveLine(config, stream.stats)
    moments = functools.partial(
        of_stream, stream, config, seen=lambda frame: line.frame_came(whole=frame.step == 0 and frame.last), every=every
    )
    try:
        with line:
            run(show(moments, where, line.print, live=True))
    finally:
        line.summary()


def _recording(path: Path, where: Where, *, shuffle: bool, length: int | None, seed: int) -> None:
    from ..recording import Recording, is_recording
    from ..viewer.showing import show
    from ..viewer.sources import of_recording

    if not is_recording(path):
        raise ConfigError(
            f"{path} is a folder, but no recording; view takes a script, a TOML file, or a folder that `asyncblend "
            f"record` wrote"
        )
    if length is not None:
        check_whole("--length", length, 1)
    check_whole("--seed", seed, 0)
    recording = Recording(path)
    moments = functools.partial(of_recording, recording, shuffled=shuffle, seed=seed, length=length)
    with Waiting(f"showing {len(recording) if length is None else min(length, len(recording))} samples") as line:
        run(show(moments, where, line.print, live=False))


def _training(address: str | None, where: Where) -> None:
    from ..viewer.showing import show
    from ..viewer.sources import of_training

    at = str(VIEW) if address is None else address
    with Waiting(f"looking at the training at {at}") as line:
        activity = run(show(functools.partial(of_training, at), where, line.print, live=True))
    STDERR.print(f"The training has ended: {activity.shown} frames shown, {activity.not_shown} not", style="dim")
