"""`asyncblend stream`: run a config and watch it, without a training loop."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import WindowClosed
from .config_file import load_config
from .live import watch
from .needs import require
from .options import BlenderOption, ConfigArgument, InstancesOption, LengthOption, SceneOption, SeedOption
from .terminal import STDERR


def stream(
    context: typer.Context,
    config: ConfigArgument,
    scene: SceneOption = None,
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
    show: Annotated[
        bool | None,
        typer.Option(
            "--show/--no-show", help="Open the window of one Blender, which needs an executable and a screen."
        ),
    ] = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Serve metrics for Prometheus on this port of 127.0.0.1. 0: on a free one, which is printed. Needs `asyncblend[metrics]`.",
        ),
    ] = None,
) -> None:
    """Render frames and drop them.

    This shows what a script returns and how fast it is. The first frame is printed, and a summary at the end. Without
    a length the stream is endless: end it with Ctrl-C.

    With --show one Blender renders, in its own window. There the scene can be watched and edited while it streams: each
    sample renders it as it is then. Closing the window ends the stream. So does Ctrl-C here, without asking: save in
    the window first what is to be kept.

    Examples:

        asyncblend stream scene.py --length 16
        asyncblend stream scene.py --show
        asyncblend stream scene.py --scene room.blend -- --level 3
        asyncblend stream scene.py --metrics 9100
        asyncblend stream model.py -- mug.glb --physics

    For everything else there is a TOML file with the fields of StreamConfig, and tables for `timeouts`, `restart`,
    `params` and `cluster`. Its paths are relative to itself:

        script = "scene.py"
        instances = 2

        [timeouts]
        frame = 60
    """
    if show and instances is None:
        instances = 1
    if metrics is not None:
        require("prometheus_client")
    options = {"length": length, "instances": instances, "blender": blender, "seed": seed, "show": show}
    chosen = load_config(config, scene=scene, script_args=context.args, **options)
    try:
        watch(chosen, metrics=metrics)
    except WindowClosed:
        STDERR.print("The window was closed.", style="dim")
