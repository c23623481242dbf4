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
if "samples" in told.about:
    cube_scene.prepare_for_gpu(told.about["samples"])
if told.about["gpu"] is not None:
    told.asyncblend_too()
    from asyncblend.blender.serving.devices import render_on

    render_on(None, gpu=True)
rng = np.random.default_rng()


def one(scene: Any) -> None:
    cube_scene.choose(*scene)
    cube_scene.turn(rng)
    bpy.ops.render.render(write_still=False)


told.loop(one)
