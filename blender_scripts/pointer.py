"""A cone, turned in the image plane by a random angle: which way does it point?

The host says with `turn`, in degrees, between which angles. `examples/curriculum.py` trains a network on it. Try it
alone: `python pointer.py`.
"""

import math

import bpy
import numpy as np
from mathutils import Matrix, Vector

from asyncblend import blender as bl

scene = bpy.context.scene
scene.render.resolution_x = scene.render.resolution_y = 32
scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 4, False
scene.view_settings.view_transform = "Standard"
scene.world.node_tree.nodes["Background"].inputs["Strength"].default_value = 0  # black

bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.ops.mesh.primitive_cone_add(vertices=16, radius1=0.4, depth=1.2)
cone, camera, sun = bpy.context.object, bpy.data.objects["Camera"], bpy.data.objects["Light"]
camera.matrix_world = Matrix.Identity(4)  # it looks along -Z, and +Y is up
camera.data.angle = math.radians(40)
sun.data.type = "SUN"
upright = Matrix.Rotation(-math.pi / 2, 4, "X")


def sample(task: bl.Task) -> dict:
    rng = task.rng
    angle = math.radians(rng.uniform(*task.params.get("turn", (-180, 180))))
    distance = rng.uniform(2, 4.5)
    place = Vector((*(0.05 * distance * rng.uniform(-1, 1, 2)), -distance))
    cone.matrix_world = Matrix.Translation(place) @ Matrix.Rotation(angle, 4, "Z") @ upright
    bl.randomise.material(cone, rng)
    sun.data.energy = rng.uniform(1, 4)
    sun.rotation_euler = rng.uniform(-0.7, 0.7, 3)
    direction = np.array([-math.sin(angle), math.cos(angle)], np.float32)
    return {"image": bl.render()["image"][..., :3], "points_to": direction}


bl.serve(sample)
