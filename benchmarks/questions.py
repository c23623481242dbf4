"""The questions that this package answers: the name of each, what measures it, and for how long."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from . import (
    cluster,
    dataloader,
    environment,
    labels,
    latency,
    memory,
    origin,
    passes,
    pixels,
    ray,
    record,
    render,
    replay,
    startup,
    transport,
    tune,
    view,
    warm,
)
from .measuring import Effort
from .options import command
from .report import Report

__all__ = ["QUESTIONS", "Question"]


@dataclass(frozen=True)
class Question:
    """What one command asks.

    Its `measure` takes an Effort, and `blender` if it needs a real one. Its docstring is the command's help.
    """

    name: str
    measure: Callable[..., Report]
    rounds: int = 5
    seconds: float = 0.3
    """How long each way runs in each round. 0: each round is one event, which takes as long as it takes."""
    own_command: Callable[..., None] | None = None
    """A command with options of its own."""

    @property
    def needs_blender(self) -> bool:
        """Whether it is asked of a real Blender, which the user may choose."""
        return "blender" in inspect.signature(self.measure).parameters

    @property
    def command(self) -> Callable[..., None]:
        """The function that typer makes a command of."""
        return self.own_command or command(self.measure, self.rounds, self.seconds, chooses_blender=self.needs_blender)

    def answer(self, how: Effort, blender: str | None = None) -> Report:
        """Measure it."""
        return self.measure(how, blender=blender) if self.needs_blender else self.measure(how)


QUESTIONS = (
    # Memory comes first, because other questions import torch, which takes more of it than all the rest.
    Question("memory", memory.measure, 1, 0.0, own_command=memory.memory),
    Question("transport", transport.measure),
    Question("latency", latency.measure),
    Question("origin", origin.measure, 3, 1.5),
    Question("render", render.measure, 3, 1.0),
    Question("passes", passes.measure, 5, 2.0),
    Question("environment", environment.measure),
    Question("ray", ray.measure, 3, 4.0),
    Question("cluster", cluster.measure, 3, 4.0),
    Question("labels", labels.measure, 7, 2.0),
    Question("pixels", pixels.measure, 7, 1.0),
    Question("dataloader", dataloader.measure, 5, 0.5),
    Question("view", view.measure, 5, 2.0),
    Question("record", record.measure, 5, 1.0),
    Question("replay", replay.measure),
    Question("startup", startup.measure, 3, 0.0),
    Question("warm", warm.measure, 5, 0.0),
    Question("tune", tune.measure, tune.ROUNDS, tune.SECONDS, own_command=tune.tune),
)
"""In the order of RESULTS.md."""
