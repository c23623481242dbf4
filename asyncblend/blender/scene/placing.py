"""Where objects are in the world, and how to put them there, whatever their parents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["evaluated", "facing", "middle", "move", "turn", "vector", "world_matrix"]

_Array = npt.NDArray[np.float64]


def evaluated(obj: Any, depsgraph: Any) -> Any:
    """The object with constraints, parents and drivers applied.

    Raises:
        RuntimeError: Blender does not keep it up to date.
    """
    found = obj.evaluated_get(depsgraph)
    if not found.is_evaluated:  # measured: matrix_world then silently stays what it once was
        raise RuntimeError(
            f"Blender does not update the transform of {obj.name!r}: it is disabled in viewports (hide_viewport), "
            "or not in the view layer. Hide it with hide_set(True), or give world space points instead"
        )
    return found


def world_matrix(obj: Any, depsgraph: Any) -> _Array:
    """4 x 4 float64, from the object's space to the world's."""
    return np.array(evaluated(obj, depsgraph).matrix_world, dtype=np.float64)


def middle(obj: Any, depsgraph: Any) -> _Array:
    """The middle of the object's bounding box, in the world; the origin of what has no geometry."""
    corners = np.array(evaluated(obj, depsgraph).bound_box, dtype=np.float64)
    return world_matrix(obj, depsgraph)[:3] @ (*(corners.min(axis=0) + corners.max(axis=0)) / 2, 1.0)


def vector(value: Iterable[float], name: str) -> _Array:
    """Three finite numbers.

    Raises:
        ConfigError: it is something else.
    """
    try:
        array = np.array([float(each) for each in value])
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise ConfigError(f"{name} must be three finite numbers, got {value!r}")
    return array


def facing(direction: _Array, up: _Array) -> _Array:
    """Axes (the columns) of what looks along its -z, as cameras and lights do, with y as near to `up` as can be.

    Looking along `up` itself, y is as near to the world's y, or else z, as can be.

    Raises:
        ConfigError: the direction or `up` is zero.
    """
    if not direction.any():
        raise ConfigError("it cannot look at the point where it is: move one of the two first")
    if not up.any():
        raise ConfigError("up must not be (0, 0, 0)")
    z = -direction / np.linalg.norm(direction)
    for candidate in (up / np.linalg.norm(up), np.array([0.0, 1, 0]), np.array([0.0, 0, 1])):
        x = np.cross(candidate, z)
        if np.linalg.norm(x) > 1e-6:
            break
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def turn(obj: Any, axes: _Array) -> None:
    """Turn the object so that its axes in the world are the columns of `axes`, by its own rotation.

    Where a parent's uneven scale lets no rotation do that, the z axis is as asked, and y as near as can be. What was
    before has no part in the result, not even in its last digit.
    """
    from mathutils import Matrix

    wanted = np.linalg.solve(_parent_space(obj)[:3, :3], axes)
    z = wanted[:, 2] / np.linalg.norm(wanted[:, 2])
    x = np.cross(wanted[:, 1], z)
    x /= np.linalg.norm(x)
    location, scale = obj.location.copy(), obj.scale.copy()
    # The basis, as it knows rotation modes and delta rotations. The rest of it would only lose digits.
    obj.matrix_basis = Matrix(np.stack([x, np.cross(z, x), z], axis=1).tolist()).to_4x4()
    obj.location, obj.scale = location, scale


def move(obj: Any, to: _Array) -> None:
    """Move the object's origin to a point of the world, by its own location; also to the last digit."""
    space = _parent_space(obj)
    basis: _Array = np.linalg.solve(space[:3, :3], to - space[:3, 3])
    obj.location = (basis - np.array(obj.delta_location, dtype=np.float64)).tolist()


def _parent_space(obj: Any) -> _Array:
    """4 x 4: from what the object's own location, rotation and scale give to the world.

    Raises:
        ConfigError: a parent has a scale of 0.
    """
    if obj.parent is None:
        return np.eye(4)
    import bpy
    from mathutils import Matrix

    names = "location", "rotation_euler", "rotation_quaternion", "rotation_axis_angle", "scale"
    saved = [(name, list(getattr(obj, name))) for name in names]
    # Parents may be bones, vertices or curves. Blender knows what they do to an object that itself does nothing.
    try:
        obj.matrix_basis = Matrix()
        space = world_matrix(obj, bpy.context.evaluated_depsgraph_get())
    finally:
        for name, value in saved:
            setattr(obj, name, value)
    if abs(np.linalg.det(space[:3, :3])) < 1e-30:
        raise ConfigError(f"a parent of {obj.name!r} has a scale of 0, so it cannot be placed")
    return space
