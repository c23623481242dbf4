"""Your own models, in random scenes, with all labels: what a detector, a segmenter or a pose estimator is trained with.

    asyncblend inspect model.py -- mug.glb gear.stl
    asyncblend stream model.py -- --help

Each model is a class, named as its file. A sample has

- "image", "depth" (metres along the camera's axis), "instance" and "semantic";
- the N objects' labels of `bl.annotate`, among them "class_id", "class_name", "bbox", "visible_fraction" and "pose": N x
  4 x 4, a rotation and a translation in metres, from the object's space to the camera's (x right, y down, z forward);
- "keypoints", N x K x 3, and "model_keypoints", N x K x 3: where they are in the object's own space, in metres;
- "extent", N x 3: metres along the object's own axes, whose origin is in the middle of its bounding box;
- "truncation" and "occlusion", N: estimates of which part of each object lies outside the image, and of which part of
  what is inside is hidden by others; and the camera's "K" and "world_to_camera";
- with `--bop`, the objects' whole silhouettes, and in sample 0 "models": the mesh of each class.

Distractors have an instance id, but no class: they are 0 in "semantic". A sample is a function of its index, the seed
and its params alone.
"""

import math
import sys

import bpy
import numpy as np
from model_options import Range, options_of, ranges_of
from model_scene import Scene

from asyncblend import blender as bl

TRIES = 20  # views or arrangements of which the first one is taken that keeps to the limits of truncation and occlusion

args = options_of(sys.argv[1:])
scene = Scene(args)
meshes = scene.meshes() if args.bop else None
sky = bpy.context.scene.world.node_tree.nodes["Background"].inputs["Color"]


def sample(task: bl.Task) -> dict:
    rng, ranges = task.rng, ranges_of(args, task.params)
    scene.choose(rng, drawn_count(rng, ranges["objects"]), drawn_count(rng, ranges["distractors"]))
    dress(rng)
    if args.physics:
        scene.drop(rng)
    truncation, occlusion = arrange(rng, ranges)
    light(rng)

    labels = bl.render(("depth", "instance", "semantic"))
    models = [scene.model_of[thing] for thing in scene.shown]
    keypoints = {thing: scene.model_of[thing].keypoints for thing in scene.shown}
    return {
        **labels,
        **bl.annotate(scene.shown, keypoints, rendered=labels, silhouettes=args.bop),
        **({"models": meshes} if meshes and task.index == 0 else {}),
        "model_keypoints": np.array([model.keypoints for model in models], np.float32),
        "extent": np.array([model.extent for model in models], np.float32),
        "truncation": truncation,
        "occlusion": occlusion,
        "K": scene.camera.K,
        "world_to_camera": scene.camera.world_to_camera,
    }


def drawn_count(rng: np.random.Generator, limits: Range) -> int:
    return int(rng.integers(int(limits.low), int(limits.high), endpoint=True))


def dress(rng: np.random.Generator) -> None:
    """Give everything its materials."""
    for thing in scene.things:
        own = thing in scene.model_of and (
            args.materials == "keep" or (args.materials == "mixed" and rng.random() < 0.5)
        )
        if not own:
            bl.randomise.material(thing, rng)
            continue
        for slot in thing.material_slots:
            if slot.link != "DATA":
                slot.link = "DATA"
    if scene.floor is not None:
        bl.randomise.material(scene.floor, rng, roughness=(0.4, 1))


def light(rng: np.random.Generator) -> None:
    """Light the scene by a sky or by a lamp, and show a picture behind it."""
    scene.lamp.hide_render = bool(args.hdris)
    if args.hdris:
        bl.randomise.sky(args.hdris, rng)
    else:
        sky.default_value = (*(rng.uniform(0.25, 0.8) * rng.uniform(0.8, 1, 3)), 1)
        reach = scene.size * np.array((6, 8))
        bl.randomise.light(scene.lamp, rng, energy=tuple(25 * reach**2), radius=tuple(reach), target=middle())
    if args.backgrounds:
        bl.randomise.background(args.backgrounds, rng)


def arrange(rng: np.random.Generator, ranges: dict[str, Range]) -> tuple[np.ndarray, np.ndarray]:
    """Choose a view, and where objects float, so that truncation and occlusion are as wanted. Return these.

    If none of the tries is, the one that comes nearest is taken, of those with the fewest objects within others.
    """
    seeds = rng.integers(2**63, size=TRIES)
    best = (math.inf, math.inf, 0)
    limits = np.array([ranges["truncation"], ranges["occlusion"]])[..., None]
    for attempt in (*range(TRIES), None):  # the last one goes back to the best
        crowded = place(np.random.default_rng(seeds[best[-1] if attempt is None else attempt]), ranges)
        found = np.stack(scene.coverage())
        excess = float(np.maximum(limits[:, 0] - found, found - limits[:, 1]).clip(0).sum())
        if attempt is None or crowded == excess == 0:
            break
        best = min(best, (crowded, excess, attempt))
    return found[0], found[1]


def place(rng: np.random.Generator, ranges: dict[str, Range]) -> int:
    """Put the camera, and what floats, at random places. Return how many objects may be within others."""
    near, far = ranges["distance"]
    low, high = ranges["elevation"]
    distance, elevation = (near * scene.size, far * scene.size), (math.radians(low), math.radians(high))
    bl.randomise.camera_on_shell(rng, middle(), radius=distance, elevation=elevation)
    return 0 if args.physics else scene.scatter(rng, distance)


def middle() -> tuple[float, float, float]:
    """Return the point that is looked at: the middle of what lies on the floor, or the origin."""
    if not args.physics:
        return (0, 0, 0)
    return tuple(np.mean([thing.location for thing in scene.shown], axis=0))


bl.serve(sample)
