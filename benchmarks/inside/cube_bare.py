"""Renders the cube, and neither reads nor sends the image."""

import os
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import told  # type: ignore[import-not-found]

told.packages()
import bpy
import cube_scene  # type: ignore[import-not-found]
import numpy as np

cube_scene.prepare()
rng = np.random.default_rng()


def one(scene: Any) -> None:
    cube_scene.choose(*scene)
    cube_scene.turn(rng)
    bpy.ops.render.render(write_still=False)


told.loop(one)
