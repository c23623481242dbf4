"""What `cartpole.py` and `cartpole_physics.py` show: a cart on a rail, with a pole. It is no script for a stream."""

import math
from collections.abc import Callable

import bpy
import numpy as np
from mathutils import Matrix

from asyncblend import blender as bl


def make_scene(width: int, height: int, samples: int, edge: float, length: float) -> Callable:
    """Make the scene, with a rail from -edge to edge and a pole of that length.

    Returns:
        A function draw(place, angle), which renders the cart at that place, with the pole leaning by that angle in
        radians, to the right if it is positive. It returns the image: height x width x 3, uint8.
    """
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x, scene.render.resolution_y = width, height
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.max_bounces = samples, False, 2
    scene.view_settings.view_transform = "Standard"
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.1, 0.13, 0.18, 1)

    bpy.data.objects.remove(bpy.data.objects["Cube"])
    bpy.ops.mesh.primitive_plane_add(size=80, location=(0, 0, -1.0))
    painted("Floor", (0.2, 0.24, 0.3), 1.0)
    bpy.ops.mesh.primitive_cylinder_add(radius=0.03, depth=2 * edge + 0.6, rotation=(0, math.pi / 2, 0))
    painted("Rail", (0.3, 0.32, 0.36))
    for side in (-1, 1):
        bpy.ops.mesh.primitive_cube_add(size=1, location=(side * (edge + 0.3), 0, -0.45), scale=(0.08, 0.3, 1.1))
        painted("Post", (0.08, 0.09, 0.1))
    bpy.ops.mesh.primitive_cube_add(size=1, scale=(0.5, 0.32, 0.24))
    cart = painted("Cart", (0.03, 0.2, 0.6))
    bpy.ops.mesh.primitive_cylinder_add(radius=0.035, depth=length)
    pole = painted("Pole", (0.85, 0.3, 0.05))
    pole.data.transform(Matrix.Translation((0, 0, length / 2)))  # it turns about its lower end
    pole.parent, pole.location = cart, (0, -0.19, 0)

    light = bpy.data.objects["Light"]
    light.data.type, light.data.energy, light.rotation_euler = "SUN", 3.0, (0.7, -0.35, 0)
    scene.camera.location, scene.camera.data.lens = (0, -7.4, 2.2), 45
    bl.Camera().look_at((0, 0, 0.1))

    def draw(place: float, angle: float) -> np.ndarray:
        cart.location.x, pole.rotation_euler.y = place, angle
        return bl.render()["image"]

    return draw


def painted(name: str, colour: tuple, roughness: float = 0.5) -> "bpy.types.Object":
    """Name and paint the object that was made last, and return it."""
    made = bpy.context.object
    made.name = name
    paint = bpy.data.materials.new(name)
    if paint.node_tree is None:  # from Blender 5.0 on, it is there from the beginning
        paint.use_nodes = True
    shader = paint.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = (*colour, 1)
    shader.inputs["Roughness"].default_value = roughness
    made.data.materials.append(paint)
    return made
