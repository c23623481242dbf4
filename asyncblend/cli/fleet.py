"""`asyncblend fleet`: fleets that stay warm in a cluster of Ray, for programs that attach to them by name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .config_file import load_config
from .live import Waiting, doing
from .needs import require
from .options import BlenderOption, ConfigArgument, InstancesOption, SceneOption, SeedOption
from .terminal import Terminal, styled

if TYPE_CHECKING:
    from ..ray import FleetStatus

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Where the cluster is, such as 10.0.0.5:6379. By default as RAY_ADDRESS says, or on this machine.",
    ),
]


def start(
    context: typer.Context,
    config: ConfigArgument,
    name: Annotated[str, typer.Option(metavar="NAME", help="What programs call the fleet: `fleet=NAME`.")],
    scene: SceneOption = None,
    instances: InstancesOption = None,
    blender: BlenderOption = None,
    seed: SeedOption = None,
    num_cpus: Annotated[
        float | None, typer.Option(metavar="N", help="Ray's CPUs for the whole fleet. One for each Blender by default.")
    ] = None,
    num_gpus: Annotated[float, typer.Option(metavar="N", help="Ray's GPUs for the whole fleet.")] = 0,
    file: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="What else the script reads. May be given again.")
    ] = None,
    ray: AddressOption = None,
) -> None:
    """Start a fleet that stays warm.

    It returns when the first Blender is ready. The fleet outlives this command and all programs that attach to it, so a
    training that is started again has its first frame at once instead of after the start of Blender. It runs in a
    cluster of Ray, on one node of it; or on many, if CONFIG has a table `cluster`. A cluster of this machine alone is
    started by `ray start --head`. A program attaches by the name:

        BlenderDataset(fleet="cubes", length=1000)

    Any number of programs, ranks and DataLoader workers share the Blenders, each with its own samples, params and
    order.

    Examples:

        ray start --head
        asyncblend fleet start scene.py --name cubes --instances 8
        asyncblend fleet start scene.py --name rooms --scene room.blend -- --level 3
    """
    require("ray", "pyarrow")
    options = {"instances": instances, "blender": blender, "seed": seed}
    chosen = load_config(config, scene=scene, script_args=context.args, **options)
    from ..ray import start

    _connect(ray)
    with Waiting(f"starting fleet {name}: waiting for its first Blender"):
        status = start(chosen, name=name, files=file or (), num_cpus=num_cpus, num_gpus=num_gpus)
    console = Terminal()
    many = "1 Blender" if len(status.state) == 1 else f"{len(status.state)} Blenders"
    version = f", version {status.blender}" if status.blender else ""
    console.print(f"fleet {name} runs on node {status.node}, with {many}{version}")
    console.print(
        f"Attach to it: BlenderDataset(fleet={name!r}), BlenderStream(fleet={name!r}), or the same line in a TOML file"
    )
    console.print(f"Stop it: asyncblend fleet stop {shlex.quote(name)}")


def list_(ray: AddressOption = None) -> None:
    """List the fleets that run.

    It shows what their Blenders do, how many programs share them, and on which node they are.

    Examples:

        asyncblend fleet list
        asyncblend fleet list --ray 10.0.0.5:6379
    """
    require("ray", "pyarrow")
    from ..ray import fleets

    _connect(ray)
    console = Terminal()
    with Waiting("asking the fleets how they are"):
        found = fleets()
    if not found:
        console.print("No fleet runs in this cluster. Start one: asyncblend fleet start CONFIG --name NAME")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("name", "now", "programs", "frames", "node"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        table.add_row(one.name, _now(one), str(one.programs), str(one.frames), one.node)
    console.print(table)
    for one in found:
        if one.error is not None:
            console.print(styled((f"{one.name} ", "bold"), f"has failed: {one.error}"))
        elif not one.node:
            console.print(
                styled((f"{one.name} ", "bold"), "does not answer: perhaps Ray has no free CPUs or GPUs for it yet")
            )


def stop(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The fleet's, as `asyncblend fleet list` shows it.")],
    ray: AddressOption = None,
) -> None:
    """Stop a fleet and its Blenders.

    Programs that are attached to it get a FleetLost.

    Example:

        asyncblend fleet stop cubes
    """
    require("ray", "pyarrow")
    from ..ray import stop

    _connect(ray)
    with Waiting(f"stopping fleet {name}"):
        stop(name)
    Terminal().print(f"fleet {name} is stopped")


def _connect(address: str | None) -> None:
    if address:
        from ..ray import connect

        connect(address, quiet=True)


def _now(status: FleetStatus) -> str:
    if status.error is not None:
        return "failed"
    if not status.node:
        return "no answer"
    return doing(status) + (f"; {status.restarts} restarts" if status.restarts else "")
