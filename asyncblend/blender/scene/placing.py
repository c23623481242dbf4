"""Where objects are in the world, and how to move and turn them there, whatever their parents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .animation import is_animated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_Array = npt.NDArray[np.float64]


def evaluated(obj: Any, depsgraph: Any) -> Any:
    """Return the object with constraints, parents and drivers applied; RuntimeError if Blender does not update it."""
    found = obj.evaluated_get(depsgraph)
    if not found.is_evaluated:  # measured: matrix_world then keeps an old value, without any sign of it
        raise RuntimeError(
            f"Blender does not update the transform of {obj.name!r}: it is disabled in viewports (hide_viewport), "
            "or not in the view layer. Hide it with hide_set(True), or give world space points instead"
        )
    return found


def world_matrix(obj: Any, depsgraph: Any) -> _Array:
    """Return the 4 x 4 float64 matrix from the object's space to the world."""
    rows = evaluated(obj, depsgraph).matrix_world
    return np.array([tuple(row) for row in rows], dtype=np.float64)  # in a third of the time of the matrix itself


def middle(obj: Any, depsgraph: Any) -> _Array:
    """Return the middle of the object's bounding box in the world, or the origin of an object without geometry."""
    corners = np.array(evaluated(obj, depsgraph).bound_box, dtype=np.float64)
    return world_matrix(obj, depsgraph)[:3] @ (*(corners.min(axis=0) + corners.max(axis=0)) / 2, 1.0)


def vector(value: Iterable[float], name: str, kinds: str = "") -> _Array:
    """Return three finite numbers as an array. The error for anything else names the other `kinds` that would do."""
    try:
        array = np.array([float(each) for each in value])
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise ConfigError(f"{name} must be three finite numbers{kinds}; got {value!r}")
    return array


def facing(direction: _Array, up: _Array) -> _Array:
    """Return the axes (the columns) of an object that looks along its -z, as cameras and lights do.

    They are in the world. y is as near to `up` as possible; looking along `up` itself, to the world's y, or else z.
    """
    if not direction.any():
        raise ConfigError("it cannot look at the point where it is: move one of the two first")
    if not up.any():
        raise ConfigError("up must not be (0, 0, 0)")
    z = -direction / np.linalg.norm(direction)
    for candidate in (up / np.linalg.norm(up), np.array([0.0, 1, 0]), np.array([0.0, 0, 1])):
        if np.linalg.norm(np.cross(candidate, z)) > 1e-6:
            break
    return _axes(candidate, z)


def _axes(y: _Array, z: _Array) -> _Array:
    """Return right-handed axes as columns: z as given, and y as near to the given one as possible."""
    x = np.cross(y, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def turn(obj: Any, axes: _Array) -> None:
    """Set the object's own rotation so that its axes in the world are the columns of `axes`.

    Where the uneven scale of a parent allows no such rotation, the z axis is as asked, and y as near as possible. The
    result does not depend on the rotation before, not even in its last digit.
    """
    from mathutils import Matrix

    wanted = np.linalg.solve(_parent_space(obj)[:3, :3], axes)
    own = _axes(wanted[:, 1], wanted[:, 2] / np.linalg.norm(wanted[:, 2]))
    location, scale = obj.location.copy(), obj.scale.copy()
    # By the basis, as it respects rotation modes and delta rotations. Its location and scale would only lose digits.
    obj.matrix_basis = Matrix(own.tolist()).to_4x4()
    obj.location, obj.scale = location, scale


def check_free(obj: Any) -> None:
    """Raise ConfigError if animation would put the object back, where it was moved or turned, as soon as it is rendered."""
    kinds = {"QUATERNION": "rotation_quaternion", "AXIS_ANGLE": "rotation_axis_angle"}
    own = ("location", kinds.get(obj.rotation_mode, "rotation_euler"))
    for path in (*own, "delta_location", "delta_rotation_euler", "delta_rotation_quaternion"):
        if is_animated(obj, path):
            raise ConfigError(
                f"object {obj.name!r} has an animated or driven {path}, which would put it back in the render: remove the "
                f"keyframes or the driver first, such as by obj.animation_data_clear()"
            )


def check_kept(obj: Any, axes: Sequence[int] = ()) -> None:
    """Raise ConfigError if a constraint holds an object that was moved or turned. Evaluates it only if it has some.

    Args:
        axes: Which of the object's own axes (0 is x) must have the direction that its own rotation gives them.
    """
    import bpy

    if not len(obj.constraints):
        return
    free = np.array([tuple(row) for row in obj.matrix_basis], dtype=np.float64)
    wanted = _parent_space(obj) @ free
    found = world_matrix(obj, bpy.context.evaluated_depsgraph_get())  # after the line before, which moves the object
    place = wanted[:3, 3]
    kept = np.abs(found[:3, 3] - place).max() <= 1e-4 * (1 + np.abs(place).max())
    for axis in axes:
        one, other = (matrix[:3, axis] / np.linalg.norm(matrix[:3, axis]) for matrix in (wanted, found))
        kept &= bool(one @ other > 1 - 1e-6)
    if not kept:
        raise ConfigError(f"object {obj.name!r} does not stay as it is put: a constraint holds it. Remove or mute it")


def move(obj: Any, to: _Array) -> None:
    """Set the object's own location so that its origin is at a point of the world, exact to the last digit."""
    space = _parent_space(obj)
    basis: _Array = np.linalg.solve(space[:3, :3], to - space[:3, 3])
    obj.location = (basis - np.array(obj.delta_location, dtype=np.float64)).tolist()


def _parent_space(obj: Any) -> _Array:
    """Return the 4 x 4 matrix that applies to the object's own location, rotation and scale."""
    if obj.parent is None:
        return np.eye(4)
    import bpy
    from mathutils import Matrix

    names = "location", "rotation_euler", "rotation_quaternion", "rotation_axis_angle", "scale"
    saved = [(name, list(getattr(obj, name))) for name in names]
    # Other constraints are no space to be placed in: one that tracks something turns the object where it is.
    acting = [one for one in obj.constraints if not one.mute and one.type not in ("CHILD_OF", "ARMATURE")]
    # A parent may be a bone, a vertex or a curve. Blender knows what it does to an object that has no transform itself.
    try:
        for constraint in acting:
            constraint.mute = True
        obj.matrix_basis = Matrix()
        space = world_matrix(obj, bpy.context.evaluated_depsgraph_get())
    finally:
        for constraint in acting:
            constraint.mute = False
        for name, value in saved:
            setattr(obj, name, value)
    if abs(np.linalg.det(space[:3, :3])) < 1e-30:
        raise ConfigError(f"a parent of {obj.name!r} has a scale of 0, so it cannot be placed")
    return space
