"""The scene of `model.py`: the models, objects to show them, distractors, a floor, a lamp and a camera.

Everything is made once, at the start: a sample only moves it, and chooses what is shown. So memory does not grow.
"""

import argparse
import json
import os
from typing import Any, NamedTuple

import bpy
import numpy as np
from mathutils import Matrix, Vector

from asyncblend import blender as bl
from asyncblend.errors import ConfigError

RAYS = 128  # points on each model by which is estimated how much of it can be seen
DISTRACTORS = ("cube_add", "ico_sphere_add", "cylinder_add", "cone_add", "torus_add")
"""The operators `bpy.ops.mesh.primitive_...` that make the meshes of distractors."""
FRAMES = 72  # of a simulation, 24 a second


class Model(NamedTuple):
    """A class of objects. Points are K x 3, in metres, in the object's own space."""

    class_id: int
    name: str
    mesh: Any
    extent: np.ndarray  # 3: metres along the object's own axes
    keypoints: np.ndarray
    surface: np.ndarray


class Scene:
    """What samples are made of. `size` is the longest side of the largest model, in metres."""

    def __init__(self, args: argparse.Namespace) -> None:
        if bpy.data.filepath:
            raise ConfigError(f"model.py makes a scene of its own, so leave out the scene {bpy.data.filepath!r}")
        scene = bpy.context.scene
        _settings(scene, args)
        bpy.data.objects.remove(bpy.data.objects["Cube"])
        self.models = _models(args)
        self.size = max(float(model.extent.max()) for model in self.models)
        self.lamp, self.camera = bpy.data.objects["Light"], bl.Camera()
        self.lamp.data.shadow_soft_size = 0.5 * self.size
        scene.camera.data.clip_start, scene.camera.data.clip_end = 0.01 * self.size, 10000 * self.size
        self.floor: Any = _floor(self.size, bool(args.backgrounds)) if args.physics else None
        shapes = [_primitive(operator) for operator in DISTRACTORS]
        self.objects = [_hidden(f"Object {i}", self.models[0].mesh) for i in range(int(args.objects.high))]
        self.distractors = [_hidden(f"Distractor {i}", shapes[0]) for i in range(int(args.distractors.high))]
        self.shapes = shapes
        self._extents = {mesh: _extent(mesh) for mesh in (*(model.mesh for model in self.models), *shapes)}
        self.model_of: dict[Any, Model] = {}
        """The objects of this sample, and the model of each."""
        self._chosen: list[Any] = []
        if args.physics:
            self._add_physics()

    def choose(self, rng: np.random.Generator, objects: int, distractors: int) -> None:
        """Show so many objects, each of a random model, and so many distractors of random shapes."""
        for thing in (*self.objects, *self.distractors):
            _hide(thing)
        self._chosen = self.objects[:objects] + self.distractors[:distractors]
        self.model_of = {thing: self.models[rng.integers(len(self.models))] for thing in self.objects[:objects]}
        for thing in self._chosen:
            thing.hide_render = False
            if (model := self.model_of.get(thing)) is None:
                thing.data = self.shapes[rng.integers(len(self.shapes))]
                thing.scale = self.size * rng.uniform(0.15, 0.7, 3)
            else:
                thing.data, thing["class_id"], thing["class_name"] = model.mesh, model.class_id, model.name
                thing.scale = (1, 1, 1)

    def meshes(self) -> dict[str, dict]:
        """Return the mesh of each class by its name, as `bl.mesh_of` gives it."""
        thing, found = self.objects[0], {}
        for model in self.models:
            thing.data = model.mesh
            found[model.name] = bl.mesh_of(thing)
        return found

    @property
    def things(self) -> list[Any]:
        """All that is shown, but the floor: objects, and then distractors."""
        return [thing for thing in self._chosen if not thing.hide_render]

    @property
    def shown(self) -> list[Any]:
        """The objects that are shown, without distractors."""
        return [thing for thing in self.things if thing in self.model_of]

    def scatter(self, rng: np.random.Generator, distance: tuple[float, float]) -> int:
        """Put everything at random places of the image, turned at random, and apart from each other.

        If there is no room after some tries, a distractor is left out, and an object may be within others. Returns how
        many objects may be.
        """
        crowded = 0
        placed: list[tuple[np.ndarray, float]] = []
        for thing in self._chosen:
            thing.hide_render, radius = False, self._radius(thing)
            for _ in range(30):
                bl.randomise.pose(thing, rng, distance=distance, margin=0.05)
                place = np.array(thing.location)
                if all(np.linalg.norm(place - other) > radius + more for other, more in placed):
                    placed.append((place, radius))
                    break
            else:
                if thing in self.model_of:
                    placed.append((place, radius))
                    crowded += 1
                else:
                    _hide(thing)
        return crowded

    def drop(self, rng: np.random.Generator) -> None:
        """Drop everything onto the floor, and leave it where it lies.

        The simulation is of a world where the largest model is 1 m long, because it is made for such sizes.
        """
        scene, things = bpy.context.scene, self.things
        sizes = [thing.scale.copy() for thing in things]
        placed: list[tuple[np.ndarray, float]] = []
        top, reach = 1.5, 0.5 * len(things) ** 0.5
        for thing in things:
            thing.rigid_body.enabled = True
            thing.scale = thing.scale / self.size
            thing.rotation_euler = rng.uniform(-np.pi, np.pi, 3)
            radius = self._radius(thing)
            while True:
                place = rng.uniform((-reach, -reach, radius), (reach, reach, radius + top))
                if all(np.linalg.norm(place - other) > radius + more for other, more in placed):
                    break
                top += 0.02  # so that there is room for any number of things
            placed.append((place, radius))
            thing.location = place
        self.floor.scale = (1, 1, 1)
        scene.rigidbody_world.enabled = True
        for number in range(1, FRAMES + 1):  # the first frame discards the simulation of the sample before
            scene.frame_set(number)
        poses = [thing.matrix_world.copy() for thing in things]
        scene.rigidbody_world.enabled = False
        self.floor.scale = (self.size,) * 3
        for thing, pose, scale in zip(things, poses, sizes, strict=True):
            thing.location, thing.rotation_euler = pose.to_translation() * self.size, pose.to_euler()
            thing.scale = scale

    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Return for each object shown which part of it is outside the image, and which part of the rest is hidden.

        Both are estimated by rays from the camera to points of its surface. A ray that meets the object itself first
        sees it.
        """
        scene, depsgraph = bpy.context.scene, bpy.context.evaluated_depsgraph_get()
        eye = scene.camera.matrix_world.translation
        shown = self.shown
        outside, hidden = np.zeros(len(shown), np.float32), np.zeros(len(shown), np.float32)
        for row, thing in enumerate(shown):
            points = self.model_of[thing].surface
            xy, depth = self.camera.project(points, thing, depth=True)
            with np.errstate(invalid="ignore"):
                inside = ((xy >= 0) & (xy < (scene.render.resolution_x, scene.render.resolution_y))).all(axis=1)
            inside &= depth > scene.camera.data.clip_start
            ends = [thing.matrix_world @ Vector(point) for point in points[inside].tolist()]
            met = [scene.ray_cast(depsgraph, eye, end - eye, distance=(end - eye).length) for end in ends]
            outside[row] = 1 - inside.mean()
            hidden[row] = np.mean([hit and found.original != thing for hit, *_, found, _ in met] or [0])
        return outside, hidden

    def _radius(self, thing: Any) -> float:
        """Return the radius of the sphere around its bounding box, whose middle is its origin."""
        # Not of its `bound_box`, which stays that of another mesh until Blender evaluates the scene.
        return float(np.linalg.norm(self._extents[thing.data] * np.array(thing.scale)) / 2)

    def _add_physics(self) -> None:
        scene = bpy.context.scene
        bpy.ops.rigidbody.world_add()
        scene.rigidbody_world.point_cache.frame_end = scene.frame_end = FRAMES
        for thing in (self.floor, *self.objects, *self.distractors):
            bpy.context.view_layer.objects.active = thing
            bpy.ops.rigidbody.object_add(type="PASSIVE" if thing is self.floor else "ACTIVE")
            body = thing.rigid_body
            body.collision_shape = "CONVEX_HULL"
            body.use_margin, body.collision_margin = True, 0.001
            body.friction, body.restitution, body.linear_damping, body.angular_damping = 0.8, 0.1, 0.1, 0.8
        scene.rigidbody_world.enabled = False


def _settings(scene: Any, args: argparse.Namespace) -> None:
    if args.engine == "workbench" and (args.hdris or args.backgrounds):
        raise ConfigError(
            "Workbench draws no skies and no backgrounds: leave --hdris and --backgrounds out, or use Cycles"
        )
    if args.engine == "eevee" and args.physics and args.backgrounds:
        raise ConfigError(
            "EEVEE has no shadow catchers, so that the floor would hide the backgrounds: leave --physics or "
            "--backgrounds out, or use Cycles"
        )
    engines = {"cycles": "CYCLES", "workbench": "BLENDER_WORKBENCH"}
    eevee = "BLENDER_EEVEE_NEXT" if (4, 2) <= bpy.app.version < (5, 0) else "BLENDER_EEVEE"
    scene.render.engine = engines.get(args.engine, eevee)
    # A wrong folder is an error now, and not in the first sample.
    for show, folder in ((bl.randomise.sky, args.hdris), (bl.randomise.background, args.backgrounds)):
        if folder:
            show(folder, np.random.default_rng(0))
    scene.render.resolution_x, scene.render.resolution_y = args.width, args.height
    scene.cycles.samples, scene.cycles.use_denoising = args.samples, False
    scene.cycles.max_bounces, scene.cycles.caustics_reflective, scene.cycles.caustics_refractive = 3, False, False
    scene.view_settings.view_transform = "Standard"
    scene.display.shading.color_type = "MATERIAL"


def _models(args: argparse.Namespace) -> list[Model]:
    """Load all models, check them, and write their table."""
    files = [file for path in args.models for file in bl.model_files(path)]
    found: dict[str, Model] = {}
    for file in files:
        base = os.path.basename(file)
        name = base if "/Collection/" in file else os.path.splitext(base)[0]
        if name in found:
            raise ConfigError(f"two models are called {name!r}, the second one is {file!r}: rename one file")
        shape = bl.load_model(file, size=args.size, unit=args.unit)
        keypoints, surface = bl.surface_keypoints(shape, args.keypoints), bl.surface_keypoints(shape, RAYS)
        found[name] = Model(len(found) + 1, name, shape.data, _extent(shape.data), keypoints, surface)
        bpy.data.objects.remove(shape)
    if args.table:
        table = [
            {
                "class_id": model.class_id,
                "class_name": model.name,
                "extent": model.extent.tolist(),
                "keypoints": model.keypoints.tolist(),
            }
            for model in found.values()
        ]
        _write(args.table, json.dumps(table, indent=2))
    return list(found.values())


def _write(path: str, text: str) -> None:
    """Write a file whole or not at all: each Blender of a fleet writes the same one."""
    part = f"{path}.{os.getpid()}"
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"--table {path!r} cannot be written: {error.strerror}") from None


def _hidden(name: str, mesh: Any) -> Any:
    made = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(made)
    _hide(made)
    return made


def _hide(thing: Any) -> None:
    """Leave it out of this sample: far below everything, where no ray and no simulation meets it."""
    thing.hide_render, thing.location, thing.rotation_euler = True, (0, 0, -1e6), (0, 0, 0)
    if thing.rigid_body is not None:
        thing.rigid_body.enabled = False


def _extent(mesh: Any) -> np.ndarray:
    """Return the lengths of the mesh along its axes."""
    points = np.empty(3 * len(mesh.vertices), np.float32)
    mesh.vertices.foreach_get("co", points)
    return np.ptp(points.reshape(-1, 3), axis=0)


def _primitive(operator: str) -> Any:
    """Return a mesh of 1 m or less in each direction."""
    getattr(bpy.ops.mesh, f"primitive_{operator}")()
    made = bpy.context.object
    mesh = made.data
    mesh.transform(Matrix.Scale(1 / max(made.dimensions), 4))
    mesh.materials.append(None)
    bpy.data.objects.remove(made)
    return mesh


def _floor(size: float, catches_shadows: bool) -> Any:
    """Return a floor, whose origin is on its top. In front of pictures it only catches shadows, in Cycles."""
    bpy.ops.mesh.primitive_cube_add()
    made = bpy.context.object
    made.name, made.is_shadow_catcher, made.scale = "Floor", catches_shadows, (size, size, size)
    # Thick, so that nothing falls through it between two steps of a simulation.
    made.data.transform(Matrix.Diagonal((200, 200, 10, 1)) @ Matrix.Translation((0, 0, -1)))
    return made
