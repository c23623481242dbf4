"""`asyncblend stream`: run a config and watch it, without a training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from .config_file import load_config
from .live import watch
from .options import BlenderOption, ConfigArgument, InstancesOption, LengthOption, SeedOption

if TYPE_CHECKING:
    from ..stream.frame import Frame


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
    shown: list[int] = []

    def show_first(frame: Frame) -> None:
        if not shown:
            console.print(repr(frame), markup=False)
            shown.append(frame.index)

    watch(chosen, console, show_first, summary=True)
