"""Cubes fall onto a floor: each sample is an episode whose frames have depth, object ids, optical flow and boxes.

Each sample throws the cubes anew and simulates from the first frame on, so it is a function of its index alone.
"""

import argparse
from collections.abc import Iterator

import bpy
import numpy as np

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=640)
parser.add_argument("--height", type=int, default=480)
parser.add_argument("--samples", type=int, default=4, help="Cycles' samples a pixel")
parser.add_argument("--cubes", type=int, default=10)
parser.add_argument("--frames", type=int, default=24, help="frames of an episode, 24 a second")
args, _ = parser.parse_known_args()

SIZE = 0.6  # metres along a cube's edges
APART = 1.1  # metres between the centres of two cubes that cannot touch, however they are turned

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = args.width, args.height
scene.cycles.samples, scene.cycles.use_denoising = args.samples, False
scene.view_settings.view_transform = "Standard"
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.35, 0.4, 0.5, 1)

bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.ops.rigidbody.world_add()
simulation = scene.rigidbody_world
simulation.point_cache.frame_end = args.frames + 2  # it would stop at frame 250
bpy.ops.mesh.primitive_plane_add(size=30)
floor = bpy.context.object
floor.name = "Floor"
bpy.ops.rigidbody.object_add(type="PASSIVE")
paint = bpy.data.materials.new("Floor")
if paint.node_tree is None:  # from Blender 5.0 on, it is there from the beginning
    paint.use_nodes = True
paint.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (0.2, 0.22, 0.26, 1)
floor.data.materials.append(paint)
cubes = []
for number in range(args.cubes):
    bpy.ops.mesh.primitive_cube_add(size=SIZE)
    bpy.ops.rigidbody.object_add(type="ACTIVE")
    cube = bpy.context.object
    cube.name, cube["class_id"], cube["class_name"] = f"Cube {number:02}", 1, "cube"
    cube.rigid_body.restitution, cube.rotation_mode = 0.4, "QUATERNION"
    cubes.append(cube)

camera = bl.Camera()
scene.camera.location = (7.0, -6.5, 4.5)
camera.look_at((0, 0, 1.3))


def sample(task: bl.Task) -> Iterator[dict]:
    for cube, place in zip(cubes, places(task.rng), strict=True):
        if cube.animation_data:  # of the sample before; what is only cleared stays in the file
            bpy.data.actions.remove(cube.animation_data.action)
        cube.location = place
        cube.rotation_quaternion = task.rng.normal(size=4)
        bl.randomise.material(cube, task.rng)
    first, last = 2, args.frames + 1  # between two frames on each side, which the flow needs
    fall(first - 1, last + 1)
    for number in range(first, last + 1):
        scene.frame_set(number)
        labels = bl.render(("depth", "instance", "flow_forward", "flow_backward"))
        yield {**labels, **bl.annotate(cubes, rendered=labels), "frame": number}


def places(rng: np.random.Generator) -> list[np.ndarray]:
    """Return a place for each cube: cubes that overlap at the beginning would be thrown apart."""
    found: list[np.ndarray] = []
    top = 3.4
    while len(found) < len(cubes):
        place = rng.uniform((-1.6, -1.6, 1.0), (1.6, 1.6, top))
        if all(np.linalg.norm(place - other) >= APART for other in found):
            found.append(place)
        else:
            top += 0.02  # so that there is room for any number of cubes
    return found


def fall(first: int, last: int) -> None:
    """Simulate, and then give the cubes keyframes: a render evaluates other frames too, which upsets a simulation."""
    simulation.enabled = True
    poses = {}
    for number in range(first, last + 1):  # the first frame discards the simulation of the sample before
        scene.frame_set(number)
        poses[number] = [cube.matrix_world.copy() for cube in cubes]
    simulation.enabled = False
    for number, own in poses.items():
        for cube, pose in zip(cubes, own, strict=True):
            cube.location, cube.rotation_quaternion = pose.to_translation(), pose.to_quaternion()
            cube.keyframe_insert("location", frame=number)
            cube.keyframe_insert("rotation_quaternion", frame=number)


bl.serve(sample)
