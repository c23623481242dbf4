"""`asyncblend stream`: run a config and watch it, without a training loop."""

from __future__ import annotations

from rich.console import Console

from .config_file import load_config
from .live import watch
from .options import BlenderOption, ConfigArgument, InstancesOption, LengthOption, SeedOption


def stream(
    config: ConfigArgument,
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
) -> None:
    """Render frames and drop them, to see what a script returns and how fast it is.

    The first frame is printed, and a summary at the end. Without a length the stream is endless: end it with Ctrl-C.

    A TOML file has the fields of StreamConfig, with tables for `timeouts`, `restart` and `params`. Its paths are
    relative to itself:

        script = "cube.py"
        instances = 2

        [timeouts]
        frame = 60
    """
    chosen = load_config(config, length=length, instances=instances, blender=blender, seed=seed)
    console = Console()
    shown: list[str] = []  # texts, because a frame that is kept keeps its memory

    def show_first(frame: object) -> None:
        if not shown:
            shown.append(repr(frame))
            console.print(shown[0], markup=False)

    watch(chosen, console, show_first, summary=True)
