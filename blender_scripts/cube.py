"""A cube of a random colour, turned at random, and where its eight corners are in the image."""

import argparse
import colorsys

import bpy

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=640)
parser.add_argument("--height", type=int, default=480)
parser.add_argument("--samples", type=int, default=2)
args, _ = parser.parse_known_args()

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = args.width, args.height
scene.cycles.samples, scene.cycles.use_denoising = args.samples, False
scene.view_settings.view_transform = "Standard"
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.5, 0.55, 0.6, 1)

cube = bpy.data.objects["Cube"]
cube.rotation_mode = "QUATERNION"
paint = cube.active_material.node_tree.nodes["Principled BSDF"].inputs["Base Color"]
camera = bl.Camera()


def sample(task: bl.Task) -> dict:
    quaternion = task.rng.normal(size=4)  # normalised, it is uniform over all rotations
    cube.rotation_quaternion = quaternion / (quaternion @ quaternion) ** 0.5
    paint.default_value = (*colorsys.hsv_to_rgb(task.rng.random(), 0.9, 0.7), 1)

    corners = [vertex.co for vertex in cube.data.vertices]
    return {"image": bl.render()["image"], "xy": camera.project(corners, cube)}


bl.serve(sample)
