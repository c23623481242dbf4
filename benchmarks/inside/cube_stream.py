"""Renders the cube for asyncblend. The size, the engine and the labels come with each lease.

`sys.argv[1]`, if it is there, is the number of samples for `python -m benchmarks gpu`.
"""

import sys
from typing import Any

import cube_scene  # type: ignore[import-not-found]

from asyncblend import blender as bl

cube_scene.prepare()
if sys.argv[1:]:
    cube_scene.prepare_for_gpu(int(sys.argv[1]))
camera = bl.Camera()


def sample(task: bl.Task) -> dict[str, Any]:
    cube_scene.choose(*task.params["scene"])
    cube_scene.turn(task.rng)
    corners = [vertex.co for vertex in cube_scene.cube.data.vertices]
    return {**bl.render(task.params.get("labels", ())), "xy": camera.project(corners, cube_scene.cube)}


bl.serve(sample)
