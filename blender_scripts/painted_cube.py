"""A cube with a colour of its own on each face, in any pose and any light, and where its eight corners are.

The colours are what tells the corners apart: a plain cube looks the same in 24 poses.
"""

import argparse
import colorsys

import bpy

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=640)
parser.add_argument("--height", type=int, default=480)
parser.add_argument("--samples", type=int, default=2, help="Cycles' samples a pixel")
args, _ = parser.parse_known_args()

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = args.width, args.height
scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.max_bounces = args.samples, False, 2
scene.view_settings.view_transform = "Standard"
sky = scene.world.node_tree.nodes["Background"].inputs["Color"]
light, cube = bpy.data.objects["Light"], bpy.data.objects["Cube"]
scene.camera.data.lens = (
    80  # from far away, few views show one face alone, which tells nothing of where its corners are
)
cube["class_id"], cube["class_name"] = 1, "cube"

paints = []
cube.data.materials.clear()
for face in cube.data.polygons:
    material = bpy.data.materials.new(f"Face {face.index}")
    if material.node_tree is None:  # from Blender 5.0 on, it is there from the beginning
        material.use_nodes = True
    cube.data.materials.append(material)
    face.material_index = face.index
    paints.append(material.node_tree.nodes["Principled BSDF"].inputs["Base Color"])


def sample(task: bl.Task) -> dict:
    rng = task.rng
    for face, paint in enumerate(paints):
        hue = (face + rng.uniform(-0.15, 0.15)) / len(paints)
        paint.default_value = (*colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.4, 0.9)), 1)
    sky.default_value = (*colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.2, 0.9)), 1)
    bl.randomise.pose(cube, rng, distance=(10, 16), margin=0.3)
    bl.randomise.light(light, rng, energy=(300, 1200), radius=(5, 8), target=cube)
    labels = bl.render(("instance",))
    return {**labels, **bl.annotate([cube], {cube: range(8)}, rendered=labels)}


bl.serve(sample)
