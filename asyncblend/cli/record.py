"""`asyncblend record`: render samples into a folder, to train on them without Blender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from ..aio import run
from .config_file import load_config
from .live import MEASURABLE, LiveLine
from .needs import require
from .on_ray import record_on_ray, skipped
from .options import BlenderOption, ConfigArgument, InstancesOption, LengthOption, RayOption, SceneOption, SeedOption
from .terminal import Terminal, typed

if TYPE_CHECKING:
    from ..config import StreamConfig


def record(
    context: typer.Context,
    config: ConfigArgument,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder to record into. A recording that is there is continued.")
    ],
    scene: SceneOption = None,
    length: LengthOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
    image_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="`png`, or `jpeg` for what is named image.", autocompletion=lambda: ["png", "jpeg"]
        ),
    ] = "png",
    quality: Annotated[
        int | None, typer.Option(metavar="N", help="The quality of JPEG images, 1 to 100. 95 by default.")
    ] = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The samples in a shard, or its bytes, such as 500MB.")
    ] = "100",
    ray: RayOption = None,
    num_cpus: Annotated[float | None, typer.Option(metavar="N", help="With --ray: the CPUs of each Blender.")] = None,
    num_gpus: Annotated[float | None, typer.Option(metavar="N", help="With --ray: the GPUs of each Blender.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="With --ray: what else the script reads. May be given again."),
    ] = None,
) -> None:
    """Render samples into a folder.

    The folder has WebDataset shards, to train on them without Blender. Type the same command again to continue a
    recording that was interrupted. A larger length adds samples. Ctrl-C ends a recording early: all samples that were
    counted are on the disk. Those that were being rendered, or waited to be written, are rendered again next time.

    Examples:

        asyncblend record scene.py --length 1000 --out cubes
        asyncblend record scene.py --scene room.blend --length 1000 --out rooms -- --level 3
        asyncblend record scene.py --length 1000000 --out /shared/cubes --ray
    """
    require("webdataset")  # the recorder would miss it only when Blenders run already
    options = {"length": length, "instances": instances, "blender": blender, "seed": seed}
    chosen = load_config(config, scene=scene, script_args=context.args, **options)
    if chosen.length is None:
        raise typer.BadParameter("how many samples? Such as --length 1000", param_hint="--length")
    size = int(shard_size) if shard_size.isdecimal() and len(shard_size) < 20 else shard_size
    how = {"image_format": image_format, "quality": quality, "shard_size": size}
    given = {"num_cpus": num_cpus, "num_gpus": num_gpus, "files": file}
    on_ray = {name: value for name, value in given.items() if value is not None}
    if ray is not None:
        record_on_ray(ray or None, chosen, out, actors=instances, **how, **on_ray)
    elif on_ray:
        raise typer.BadParameter("it goes with --ray", param_hint="--num-cpus, --num-gpus or --file")
    else:
        run(_record(chosen, out, how))


async def _record(config: StreamConfig, out: Path, how: dict[str, Any]) -> None:
    from ..stream.stream import BlenderStream
    from ..stream.verdict import verdict

    console, stream = Terminal(), BlenderStream(config)
    recorder = stream.record(out, **how)
    line = LiveLine(config, stream.stats, unit="samples", verdict=lambda stats: verdict(stats, "recording"))
    then = "The same command goes on after them."
    try:
        with line:
            async with recorder:
                async for _ in recorder:
                    if line.first is None and recorder.before:
                        line.print(f"{recorder.before} of {config.length} samples are there already")
                    line.frame_came(recorder.before)
        then = f"Look at them: asyncblend inspect {typed(out)}"
    finally:
        stats = stream.stats()
        left_out = 0 if stats is None else stats.skipped
        if recorder.recorded or left_out:  # else an error says why there is none
            text = f"{recorder.recorded} samples are in {out}"
            if line.first is not None and line.frames > 1:
                seconds = line.last - line.first
                new = recorder.recorded - recorder.before
                often = (line.frames - 1) / max(seconds, MEASURABLE)
                rate = f"in {seconds:.1f} s, {often:.1f}/s" if seconds >= MEASURABLE else "at once"
                text += f": {new} new ones {rate}, {decimal(recorder.written)}"
            console.print(text)
            if left_out:
                console.print(skipped(left_out))
            if recorder.recorded:
                console.print(then)
