"""Checks that Cycles' motion vectors are right for the camera's own movement."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.lens import projection_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_Matrix = npt.NDArray[np.float64]


class _Shot(NamedTuple):
    """The camera at one of the frames that a render evaluates: the scene's own, the one before and the next."""

    orthographic: bool
    place: _Matrix
    projection: _Matrix


@contextlib.contextmanager
def checked_camera(pass_name: str) -> Iterator[None]:
    """Check the camera's movement in a render within the `with` block.

    At its end it is a ConfigError, which names the pass, if Cycles leaves a part of that movement out of its vectors.
    """
    import bpy

    shots: list[_Shot] = []

    def record(scene: Any, depsgraph: Any) -> None:  # Blender calls this at each frame
        camera = scene.camera.evaluated_get(depsgraph)
        projection = np.array(projection_of(camera, depsgraph, scene.render))
        shots.append(_Shot(camera.data.type == "ORTHO", np.array(camera.matrix_world), projection))

    handlers = bpy.app.handlers.frame_change_post
    handlers.append(record)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # another handler may have cleared the list
            handlers.remove(record)
    _check(shots, pass_name)


def _check(shots: list[_Shot], pass_name: str) -> None:
    import bpy

    newer = bpy.app.version >= (4, 5)
    for other in shots:
        now = shots[-1]  # Blender ends at the frame where it began
        change = (other.projection - now.projection)[:2]  # the other rows are about depth
        zooms = newer and not now.orthographic  # measured: 3.4 leaves out an animated lens
        if zooms:
            change[[0, 1], [0, 1]] = 0
        if np.abs(change).max() > 1e-5:
            what = "shift" if zooms else "lens, shift or orthographic scale"
            raise ConfigError(
                f"pass {pass_name!r}: the camera's {what} changes from frame to frame, which Cycles leaves out of its "
                "vectors. Animate the camera object instead"
            )
        moved = np.abs(other.place - now.place).max() > 1e-6
        if now.orthographic and moved and newer:  # measured: 3.4 is right
            raise ConfigError(
                f"pass {pass_name!r}: this Blender's Cycles gives wrong vectors for an orthographic camera that moves. "
                "Move the objects instead, or use a perspective camera"
            )
