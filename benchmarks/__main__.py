"""Benchmarks of asyncblend. Each command answers one question, and shows beside its figures what cannot be beaten."""

from __future__ import annotations

import typer

from benchmarks.cluster import cluster
from benchmarks.dataloader import dataloader
from benchmarks.environment import environment
from benchmarks.fuzz.command import fuzz
from benchmarks.labels import labels
from benchmarks.latency import latency
from benchmarks.memory import memory
from benchmarks.origin import origin
from benchmarks.passes import passes
from benchmarks.ray import ray
from benchmarks.record import record
from benchmarks.render import render
from benchmarks.replay import replay
from benchmarks.results import everything
from benchmarks.soak.command import soak
from benchmarks.startup import startup
from benchmarks.transport import transport
from benchmarks.tune import tune
from benchmarks.warm import warm

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
for _command in (
    transport,
    latency,
    render,
    passes,
    environment,
    ray,
    cluster,
    labels,
    origin,
    dataloader,
    record,
    replay,
    startup,
    warm,
    memory,
    tune,
    soak,
    fuzz,
):
    app.command()(_command)
app.command("all")(everything)


if __name__ == "__main__":
    app()
