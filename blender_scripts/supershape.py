"""A supershape on a floor: one of the many forms that twelve numbers describe, each time in another colour and view.

Whatever is not given as a param is drawn at random: `shape`, two superformulas of six numbers each (m, a, b, n1, n2,
n3), round the axis and up along it; `size`, where 1 leaves the formulas' own scale; `hue`, from 0 to 1; and `view`, the
camera's azimuth and elevation in radians. So a program can steer it: `params={"hue": 0.3}`.
"""

import argparse
import colorsys
import math

import bpy
import numpy as np

from asyncblend import blender as bl

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=640)
parser.add_argument("--height", type=int, default=480)
parser.add_argument("--samples", type=int, default=4, help="Cycles' samples a pixel")
parser.add_argument("--columns", type=int, default=192, help="vertices round the axis; half as many up along it")
parser.add_argument("--labels", choices=("all", "none"), default="all")
args, _ = parser.parse_known_args()

FLOOR, DISTANCE = -1.25, 5.2

scene = bpy.context.scene
scene.render.engine, scene.render.use_persistent_data = "CYCLES", True
scene.render.resolution_x, scene.render.resolution_y = args.width, args.height
scene.cycles.samples, scene.cycles.use_denoising = args.samples, False
scene.view_settings.view_transform = "Standard"

# One sun without width, a glow where the sky would light, and nothing that is seen by bounced rays: chance is left only
# in where in its pixel a ray starts, so the picture has no noise, at one sample a pixel too.
scene.cycles.max_bounces, scene.world.cycles.sampling_method = 0, "NONE"
scene.world.cycles_visibility.diffuse = scene.world.cycles_visibility.glossy = False
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.7305, 0.738, 0.7835, 1)
sun = bpy.data.objects["Light"]
sun.data = bpy.data.lights.new("Sun", "SUN")
sun.data.energy, sun.data.color, sun.data.angle, sun.rotation_euler = 2.6, (1, 0.92, 0.8), 0, (0.8, 0.1, 0.9)


def painted(name: str, roughness: float, above: tuple, below: tuple) -> tuple:
    """Return a new material, and the socket of its colour. It glows as if the sky were `above`, the ground `below`."""
    material = bpy.data.materials.new(name)
    if material.node_tree is None:  # from Blender 5.0 on, it is there from the beginning
        material.use_nodes = True
    if hasattr(material.cycles, "emission_sampling"):
        material.cycles.emission_sampling = "NONE"
    else:  # before Blender 3.5
        material.cycles.sample_as_light = False
    nodes, link = material.node_tree.nodes, material.node_tree.links.new
    kinds = ("RGB", "NewGeometry", "SeparateXYZ", "Math", "MixRGB", "MixRGB", "Emission", "AddShader")
    colour, geometry, split, half, sky, glow, emission, both = (nodes.new(f"ShaderNode{kind}") for kind in kinds)
    surface, end = nodes["Principled BSDF"], nodes["Material Output"]
    surface.inputs["Roughness"].default_value = roughness
    half.operation, glow.blend_type, glow.inputs["Fac"].default_value = "MULTIPLY_ADD", "MULTIPLY", 1
    half.inputs[1].default_value = half.inputs[2].default_value = 0.5
    sky.inputs[1].default_value, sky.inputs[2].default_value = (*below, 1), (*above, 1)
    for output, to in (
        (geometry.outputs["Normal"], split.inputs[0]),
        (split.outputs["Z"], half.inputs[0]),
        (half.outputs[0], sky.inputs["Fac"]),
        (sky.outputs[0], glow.inputs[1]),
        (colour.outputs[0], glow.inputs[2]),
        (glow.outputs[0], emission.inputs["Color"]),
        (emission.outputs[0], both.inputs[0]),
        (colour.outputs[0], surface.inputs["Base Color"]),
        (surface.outputs[0], both.inputs[1]),
        (both.outputs[0], end.inputs["Surface"]),
    ):
        link(output, to)
    return material, colour.outputs[0]


def sphere(columns: int, rows: int) -> bpy.types.Mesh:
    """Return a mesh of `rows` rings of `columns` vertices each, and the two poles at the end."""
    ring = np.arange(columns)
    grid = ring + columns * np.arange(rows)[:, None]
    right = np.roll(grid, -1, axis=1)
    quads = np.stack((grid[:-1], right[:-1], right[1:], grid[1:]), axis=-1).reshape(-1, 4)
    south = np.stack((np.full(columns, grid.size), right[0], grid[0]), axis=-1)
    north = np.stack((np.full(columns, grid.size + 1), grid[-1], right[-1]), axis=-1)
    mesh = bpy.data.meshes.new("Supershape")
    mesh.from_pydata(np.zeros((grid.size + 2, 3)), [], [*quads.tolist(), *south.tolist(), *north.tolist()])
    mesh.polygons.foreach_set("use_smooth", np.ones(len(mesh.polygons), dtype=bool))
    return mesh


COLUMNS, ROWS = args.columns, args.columns // 2 - 1
ROUND = np.linspace(-math.pi, math.pi, COLUMNS, endpoint=False)
UP = np.linspace(-math.pi / 2, math.pi / 2, ROWS + 2)

bpy.ops.mesh.primitive_plane_add(size=60, location=(0, 0, FLOOR))
bpy.context.object.name = "Floor"
ground, grey = painted("Floor", 1.0, (0.4, 0.42, 0.5), (0, 0, 0))
grey.default_value = (0.75, 0.78, 0.82, 1)
bpy.context.object.data.materials.append(ground)

bpy.data.objects.remove(bpy.data.objects["Cube"])
thing = bpy.data.objects.new("Supershape", sphere(COLUMNS, ROWS))
thing["class_id"], thing["class_name"] = 1, "supershape"
skin, colour = painted("Supershape", 0.35, (0.42, 0.46, 0.6), (0.1, 0.08, 0.08))
thing.data.materials.append(skin)
scene.collection.objects.link(thing)
for each in (bpy.data.objects["Floor"], thing):
    each.visible_diffuse = each.visible_glossy = False
camera = bl.Camera()


def radius(angle: np.ndarray, formula: np.ndarray) -> np.ndarray:
    """Return the superformula's distance from the centre at these angles."""
    m, a, b, n1, n2, n3 = formula
    quarter = m * angle / 4
    distance: np.ndarray = (np.abs(np.cos(quarter) / a) ** n2 + np.abs(np.sin(quarter) / b) ** n3) ** (-1 / n1)
    return distance


def points(shape: np.ndarray) -> np.ndarray:
    """Return where the vertices of the mesh are for a shape."""
    flat, high = radius(ROUND, shape[0]), radius(UP, shape[1])
    ring = np.stack((flat * np.cos(ROUND), flat * np.sin(ROUND)), axis=-1)
    x, y = np.moveaxis((high * np.cos(UP))[1:-1, None, None] * ring, -1, 0)
    z = np.broadcast_to((high * np.sin(UP))[1:-1, None], x.shape)
    poles = [(0, 0, -high[0]), (0, 0, high[-1])]
    return np.concatenate((np.stack((x, y, z), axis=-1).reshape(-1, 3), poles))


def sample(task: bl.Task) -> dict:
    rng = task.rng
    formulas = [(rng.integers(0, 11), 1, 1, *np.exp(rng.uniform(np.log(0.5), np.log(5), 3))) for _ in range(2)]
    view = (rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.9))
    # All is drawn first, so that a param which is given changes nothing else.
    drawn = {"shape": np.array(formulas), "hue": rng.random(), "view": view, **task.params}

    vertices = points(np.array(drawn["shape"], dtype=float))
    size = drawn.get("size", 1.15 / np.linalg.norm(vertices, axis=1).max())
    thing.data.vertices.foreach_set("co", (size * vertices).astype(np.float32).ravel())
    thing.data.update()
    colour.default_value = (*colorsys.hsv_to_rgb(drawn["hue"] % 1, 0.8, 0.8), 1)
    azimuth, elevation = drawn["view"]
    flat = DISTANCE * math.cos(elevation)
    scene.camera.location = (flat * math.cos(azimuth), flat * math.sin(azimuth), DISTANCE * math.sin(elevation))
    camera.look_at((0, 0, -0.1))

    if args.labels == "none":
        return bl.render()
    labels = bl.render(("depth", "normal", "instance", "semantic"))
    known = {"shape": np.array(drawn["shape"], dtype=np.float32), "size": size, "hue": drawn["hue"]}
    return {**labels, **bl.annotate([thing], rendered=labels), **known}


bl.serve(sample)
