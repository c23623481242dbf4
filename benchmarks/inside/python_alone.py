"""Makes samples in Python alone: what a simulation or a long randomisation takes, without any rendering."""

from __future__ import annotations

import math
from typing import Any

from asyncblend import blender as bl


def sample(task: bl.Task) -> dict[str, Any]:
    """Return where a pendulum of two joints is after a fifth of a second of simulated time, in small steps."""
    a, b = (float(angle) for angle in task.rng.uniform(-math.pi, math.pi, 2))
    speed_a = speed_b = 0.0
    for _ in range(20_000):
        pull = math.sin(a - b)
        speed_a -= 1e-5 * (9.81 * math.sin(a) + 0.5 * pull)
        speed_b -= 1e-5 * (9.81 * math.sin(b) - 0.5 * pull)
        a, b = a + 1e-5 * speed_a, b + 1e-5 * speed_b
    return {"angles": [a, b]}


bl.serve(sample)
