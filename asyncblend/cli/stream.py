"""`asyncblend stream`: run a config and watch it, without a training loop."""

from __future__ import annotations

import typer

from .config_file import load_config
from .live import watch
from .options import BlenderOption, ConfigArgument, InstancesOption, LengthOption, SceneOption, SeedOption


def stream(
    context: typer.Context,
    config: ConfigArgument,
    scene: SceneOption = None,
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
) -> None:
    """Render frames and drop them.

    This shows what a script returns and how fast it is. The first frame is printed, and a summary at the end. Without
    a length the stream is endless: end it with Ctrl-C.

    Examples:

        asyncblend stream scene.py --length 16
        asyncblend stream scene.py --scene room.blend -- --level 3

    For everything else there is a TOML file with the fields of StreamConfig, and tables for `timeouts`, `restart` and
    `params`. Its paths are relative to itself:

        script = "scene.py"
        instances = 2

        [timeouts]
        frame = 60
    """
    options = {"length": length, "instances": instances, "blender": blender, "seed": seed}
    chosen = load_config(config, scene=scene, script_args=context.args, **options)
    watch(chosen)
