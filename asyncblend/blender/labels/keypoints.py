"""Keypoints: where they are in the world and in the image, and whether the camera sees them."""

from __future__ import annotations

import difflib
import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.lens import View, transformed
from ..scene.placing import vector
from .as_rendered import Evaluation
from .meshes import Mesh
from .rendered_ids import Entry
from .unseen import same_matrix
from .views import Appearance, rays

if TYPE_CHECKING:
    from collections.abc import Callable

    from .unseen import Unseen

_Points = npt.NDArray[np.float64]

# A hit that is nearer to a point than this part of their distance from the camera does not hide it: it is the surface
# that the point lies on. That is 1 mm at 10 m.
_TOLERANCE = 1e-4
_KINDS = " in the object's own space, the index of a vertex, the name of a bone, or an object or its name"


class Annotated(NamedTuple):
    """An object, or a copy of one, with its mesh and how it looks."""

    obj: Any
    name: str  # a unique one
    entry: Entry
    mesh: Mesh
    matrix: _Points  # 4 x 4, from the mesh's space to the world
    appearance: Appearance
    instancer: Any = None  # what shows the copy; None for an object itself

    @property
    def is_copy(self) -> bool:
        return self.instancer is not None


def world_points(one: Annotated, given: Any, scene: Evaluation) -> _Points:
    """Return where the keypoints of an object, or of a copy, are in the world: K x 3.

    A copy has its bones and the objects among its keypoints where they would be if they had been copied with it.

    Args:
        one: The object that has them.
        given: K x 3 numbers in the object's own space, or a list whose entries are three such numbers, the index of a
            vertex, the name of a bone, or an object or its name.
        scene: The current one.

    Raises:
        ConfigError: An entry is something else, or there is no such vertex, bone or object. The message says which.
    """
    import bpy

    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise ConfigError(
            f"the keypoints of {one.name!r} must be K x 3 numbers in its own space, or a list of points, vertex "
            f"indices, bone names and objects; got {given!r}"
        )
    obj, vertices, entries = one.obj, one.mesh.points, list(given)
    points, local = np.empty((len(entries), 3)), np.ones(len(entries), bool)
    for number, entry in enumerate(entries):
        if isinstance(entry, (str, bpy.types.Object)):
            points[number], local[number] = _named(entry, number, one, scene), False
        elif isinstance(entry, numbers.Integral) and not isinstance(entry, bool):
            if not 0 <= int(entry) < len(vertices):
                raise ConfigError(
                    f"keypoint {number} of {obj.name!r} is vertex {entry}, but its mesh, modifiers applied, has the "
                    f"vertices 0 to {len(vertices) - 1}"
                )
            points[number] = vertices[int(entry)]
        else:
            points[number] = vector(entry, f"keypoint {number} of {obj.name!r}", _KINDS)
    if local.any():
        points[local] = transformed(one.matrix, points[local])
    if one.is_copy and not local.all():
        moved = one.matrix @ np.linalg.pinv(scene.matrix(obj))  # it may be hidden by a scale of 0
        points[~local] = transformed(moved, points[~local])
    return points


def _named(given: Any, number: int, one: Annotated, scene: Evaluation) -> _Points:
    """Return a place in the world: of a bone's head, or of an object's origin. A bone comes before an object."""
    import bpy

    where = f"keypoint {number} of {one.name!r}"
    # What is copied may be in no view layer.
    objects = bpy.data.objects if one.is_copy else bpy.context.view_layer.objects
    name: str = given
    bones: Any = {}
    if not isinstance(given, str):
        name = given.name
        if given not in set(objects):
            raise ConfigError(f"{where} is the object {name!r}, which is not in the view layer")
        return scene.matrix(given)[:3, 3]
    if (armature := _armature(one.obj)) is not None:
        bones = armature.data.bones
        if name in bones:
            head = scene.evaluated(armature).pose.bones[name].head
            moved: _Points = scene.matrix(armature)[:3] @ (*head, 1)
            return moved
    if name in objects:
        return scene.matrix(objects[name])[:3, 3]

    close = difflib.get_close_matches(name, sorted({*bones.keys(), *objects.keys()}), n=3)
    raise ConfigError(
        f"{where} is {name!r}, but there is no such object in the view layer, and "
        + ("no such bone" if bones else "no armature, in a modifier or as a parent, whose bone it could be")
        + (f". Is it {' or '.join(map(repr, close))}?" if close else "")
    )


def _armature(obj: Any) -> Any:
    """Return the armature that deforms the object, or else the one among its parents, or None."""
    for modifier in obj.modifiers:
        if modifier.type == "ARMATURE" and modifier.object is not None:
            return modifier.object
    parent = obj.parent
    while parent is not None and parent.type != "ARMATURE":
        parent = parent.parent
    return parent


def flagged(
    each: list[Annotated], points: list[_Points], margin: float, view: View, scene: Evaluation, unseen: Unseen
) -> npt.NDArray[np.float32]:
    """Return where the keypoints of N objects are in the image, with COCO's visibility: N x K x 3 float32, x y v.

    `points` has the keypoints of each object in world space. The longest one decides K; missing rows are 0 0 0.
    """
    counts = [len(some) for some in points]
    found = np.zeros((len(each), max(counts, default=0), 3), np.float32)
    if not any(counts):
        return found
    # All keypoints of all objects in one array. `of` and `row` tell where they belong in `found`.
    world = np.concatenate(points)
    of, row = np.nonzero(np.arange(max(counts)) < np.array(counts)[:, None])
    local = transformed(view.world_to_camera, world)
    xy = view.pixels(local)
    with np.errstate(invalid="ignore"):  # points behind the camera are NaN
        inside = ((xy >= 0) & (xy < (view.frame.width, view.frame.height))).all(axis=1) & (local[:, 2] > view.near)
    inside &= ~np.array([unseen.has(one.obj, one.instancer) for one in each])[of]
    world, local, xy, of, row = world[inside], local[inside], xy[inside], of[inside], row[inside]

    rotation, shift = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    starts = (rays(local, view) - shift) @ rotation  # back to the world: a rotation's inverse is its transpose
    lengths = np.linalg.norm(world - starts, axis=1)
    directions = (world - starts) / np.maximum(lengths, 1e-30)[:, None]
    camera_rays = _Rays(scene, unseen, margin)
    occluded = [
        camera_rays.are_stopped(start, direction, length, each[number])
        for number, start, direction, length in zip(of, starts, directions, lengths.tolist(), strict=True)
    ]
    found[of, row, :2] = xy
    found[of, row, 2] = np.where((local[:, 2] > view.far) | np.array(occluded, bool), 1, 2)
    return found


class _Rays:
    """What rays from the camera meet."""

    def __init__(self, scene: Evaluation, unseen: Unseen, margin: float) -> None:
        import bpy

        self._scene, self._margin = scene, margin
        objects = bpy.context.view_layer.objects
        # In a render's depsgraph only instancers, and what they copy, can be met although they are not rendered.
        self._passed = unseen.unshown if scene.of_render else unseen.unshown | unseen.hidden
        # Rays through the whole scene miss what is hidden in viewports. These meshes are asked one by one.
        missed = [obj for obj in objects if obj.type == "MESH" and not obj.visible_get() and obj not in unseen]
        self._casts = [self._through_all, *map(self._through, missed)]

    def are_stopped(self, start: _Points, direction: _Points, length: float, owner: Annotated) -> bool:
        """Whether there is a surface between a point and the camera, on a ray of that length in world space.

        A point may lie up to the margin, in Blender units along the ray, below the surface of its `owner`. Rays pass
        through objects that are not rendered, and through those that the camera does not see.
        """
        return any(self._is_stopped(cast, start, direction, length, owner) for cast in self._casts)

    def _is_stopped(self, cast: Any, start: _Points, direction: _Points, length: float, owner: Annotated) -> bool:
        from mathutils import Vector

        begin, along = Vector(start), Vector(direction)
        tolerance = _TOLERANCE * length
        travelled, end = 0.0, length - tolerance
        while travelled < end:
            at = begin + along * travelled
            hit, place, source, matrix = cast(at, along, end - travelled)
            if not hit:
                return False
            travelled += (place - at).length
            on_owner = source == owner.obj and end - travelled <= self._margin and same_matrix(matrix, owner.matrix)
            if not on_owner and source.visible_camera and not self._passes(source, matrix):
                return True
            travelled += tolerance  # continue behind the surface that was hit
        return False

    def _through_all(self, at: Any, along: Any, distance: float) -> tuple[bool, Any, Any, Any]:
        import bpy

        hit, place, _, _, obj, matrix = bpy.context.scene.ray_cast(self._scene.depsgraph, at, along, distance=distance)
        return hit, place, obj.original if hit else None, matrix

    def _through(self, obj: Any) -> Callable[[Any, Any, float], tuple[bool, Any, Any, Any]]:
        """Return the same for rays through one object alone."""
        current = self._scene.evaluated(obj)
        matrix = current.matrix_world
        inverse = matrix.inverted_safe()
        turned = inverse.to_3x3()

        def cast(at: Any, along: Any, distance: float) -> tuple[bool, Any, Any, Any]:
            local = turned @ along
            hit, place, *_ = current.ray_cast(inverse @ at, local, distance=distance * local.length)
            return hit, matrix @ place, obj, matrix

        return cast

    def _passes(self, source: Any, matrix: Any) -> bool:
        """Whether what was hit is an object that is not rendered, and not a copy of it."""
        return source in self._passed and same_matrix(matrix, self._scene.matrix(source))
