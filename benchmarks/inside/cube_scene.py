"""The cube that the Blenders of every way render. Runs inside Blender."""

import colorsys
from typing import Any

import bpy

cube = bpy.data.objects["Cube"]
scene = bpy.context.scene
_own_view = scene.view_settings.view_transform
_paint = cube.active_material.node_tree.nodes["Principled BSDF"].inputs["Base Color"]


def prepare() -> None:
    """Set the scene up as blender_scripts/cube.py does, but with one sample per pixel and Blender's own view transform."""
    scene.cycles.samples, scene.cycles.use_denoising = 1, False
    scene.display.render_aa = "OFF"
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.5, 0.55, 0.6, 1)
    cube.rotation_mode = "QUATERNION"


def prepare_for_gpu(samples: int) -> None:
    """Change what `prepare` has set to what `python -m benchmarks gpu` renders, with so many samples of Cycles."""
    scene.cycles.samples = samples
    scene.eevee.taa_render_samples = 1  # what a viewport draws at a time, and blendtorch reads viewports
    scene.render.use_persistent_data = True  # otherwise each frame loads Cycles' kernels into the GPU again


def choose(width: int, height: int, engine: str, view: str = _own_view) -> None:
    """Set the size, the engine and the view transform, if they are others than before."""
    render = scene.render
    if (render.resolution_x, render.resolution_y, render.engine) != (width, height, engine):
        render.resolution_x, render.resolution_y, render.engine = width, height, engine
        render.resolution_percentage = 100
    if scene.view_settings.view_transform != view:
        scene.view_settings.view_transform = view


def turn(rng: Any) -> None:
    """Give the cube a random rotation and colour."""
    quaternion = rng.normal(size=4)
    cube.rotation_quaternion = quaternion / (quaternion @ quaternion) ** 0.5
    cube.active_material.diffuse_color = (*colorsys.hsv_to_rgb(rng.random(), 0.9, 0.7), 1)
    _paint.default_value = cube.active_material.diffuse_color
