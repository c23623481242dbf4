"""Shapes of six classes among clutter, each time in another light and from another side, with all labels.

A detector, a segmenter, a depth or a pose estimator can be trained with it. `--labels boxes` leaves out what a detector
does not need, `--labels none` renders the image alone, and `--labels bop` adds what `asyncblend export --format bop`
needs.
"""

import argparse
import math

import bpy
import numpy as np

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=640)
parser.add_argument("--height", type=int, default=480)
parser.add_argument("--samples", type=int, default=2, help="Cycles' samples a pixel")
parser.add_argument("--labels", choices=("all", "bop", "boxes", "pixels", "none"), default="all")
parser.add_argument("--view", default="Standard", help="view transform")
args, _ = parser.parse_known_args()

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.render.resolution_x, scene.render.resolution_y = args.width, args.height
scene.cycles.samples, scene.cycles.use_denoising = args.samples, False
scene.cycles.max_bounces, scene.cycles.caustics_reflective = 2, False
scene.view_settings.view_transform = args.view
sky = scene.world.node_tree.nodes["Background"].inputs["Color"]

bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.ops.mesh.primitive_plane_add(size=60)
floor = bpy.context.object
floor.name = "Floor"

MAKE = {
    "cube": ("primitive_cube_add", {"size": 1.2}),
    "ball": ("primitive_uv_sphere_add", {"radius": 0.7, "segments": 48, "ring_count": 24}),
    "cone": ("primitive_cone_add", {"radius1": 0.75, "depth": 1.6, "vertices": 64}),
    "cylinder": ("primitive_cylinder_add", {"radius": 0.55, "depth": 1.4, "vertices": 64}),
    "torus": ("primitive_torus_add", {"major_radius": 0.65, "minor_radius": 0.25}),
    "monkey": ("primitive_monkey_add", {"size": 1.6}),
}
"""By kind of shape the operator of `bpy.ops.mesh` that makes it, and its options."""
shapes, clutter = [], []
for class_id, (kind, (operator, options)) in enumerate(MAKE.items(), 1):
    for copy in (1, 2):
        getattr(bpy.ops.mesh, operator)(**options)
        shape = bpy.context.object
        shape.name, shape["class_id"], shape["class_name"] = f"{kind} {copy}", class_id, kind
        if kind in ("ball", "torus", "monkey"):
            bpy.ops.object.shade_smooth()
        shapes.append(shape)
for number in range(14):
    bpy.ops.mesh.primitive_ico_sphere_add(radius=0.16, subdivisions=1 + number % 3)
    clutter.append(bpy.context.object)
light = bpy.data.objects["Light"]
camera = bl.Camera()

# A keypoint is the index of a vertex, or a point in the object's own space.
faces = {axis: [int(np.argmin(points)), int(np.argmax(points))]
         for axis, points in enumerate(np.array([vertex.co for vertex in shapes[-1].data.vertices]).T)}  # fmt: skip
KEYPOINTS = {
    "cube": list(range(8)),
    "cone": [(0.0, 0.0, 0.8), (0.75, 0.0, -0.8), (0.0, 0.75, -0.8), (-0.75, 0.0, -0.8), (0.0, -0.75, -0.8)],
    "monkey": [*faces[0], faces[1][0], *faces[2]],  # the ears, the nose, chin and crown
}
keypoints = {shape.name: KEYPOINTS[shape["class_name"]] for shape in shapes if shape["class_name"] in KEYPOINTS}


def sample(task: bl.Task) -> dict:
    rng = task.rng
    spots = scattered(rng, [0.95] * len(shapes) + [0.25] * len(clutter), radius=4.2)
    for thing, (x, y) in zip(shapes + clutter, spots, strict=True):
        size = rng.uniform(0.7, 1.15)
        thing.scale = (size, size, size)
        thing.rotation_euler = (0, 0, rng.uniform(0, 2 * math.pi))
        lowest = min(corner[2] for corner in thing.bound_box)
        thing.location = (x, y, -size * lowest)
        bl.randomise.material(thing, rng)
    bl.randomise.material(floor, rng, roughness=(0.6, 1.0))
    sky.default_value = (*rng.uniform(0.2, 0.9, 3), 1)
    bl.randomise.light(light, rng, energy=(1500, 4000), radius=(7, 11))
    bl.randomise.camera_on_shell(rng, target=(0, 0, 0.3), radius=(10, 13), elevation=(0.35, 1.1))

    if args.labels == "none":
        return bl.render()
    if args.labels == "boxes":
        labels = bl.render(("instance",))
        return {**labels, **bl.annotate(shapes, rendered=labels)}
    labels = bl.render(("depth", "normal", "albedo", "instance", "semantic"))
    if args.labels == "pixels":
        return labels
    view = {"K": camera.K, "world_to_camera": camera.world_to_camera}
    found = bl.annotate(shapes, keypoints, rendered=labels, silhouettes=args.labels == "bop")
    return {**labels, **found, **view}


def scattered(rng: np.random.Generator, sizes: list[float], radius: float) -> list[tuple[float, float]]:
    """Return places on a disc for things of these radii. They overlap only where there is no room."""
    spots: list[tuple[float, float]] = []
    for size in sizes:
        for _ in range(60):
            spot = tuple(rng.uniform(-radius, radius, 2))
            apart = (math.dist(spot, other) > size + own for other, own in zip(spots, sizes, strict=False))
            if math.hypot(*spot) <= radius and all(apart):
                break
        spots.append(spot)
    return spots


bl.serve(sample)
