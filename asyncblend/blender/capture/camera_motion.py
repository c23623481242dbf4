"""Checks that Cycles' motion vectors are right for the camera's own movement."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CameraMotion", "watching_camera"]

_Matrix = npt.NDArray[np.float64]


class _Shot(NamedTuple):
    """The camera at one frame."""

    orthographic: bool
    place: _Matrix
    projection: _Matrix


class CameraMotion:
    """The camera at each frame that one render evaluates: the scene's own frame, the one before and the next.

    Args:
        pass_name: What the user asked for, for the messages.
    """

    def __init__(self, pass_name: str) -> None:
        self._pass_name = pass_name
        self._shots: list[_Shot] = []

    def record(self, scene: Any, depsgraph: Any) -> None:
        """Record the camera. Blender calls this at each frame."""
        camera, render = scene.camera.evaluated_get(depsgraph), scene.render
        projection = camera.calc_matrix_camera(
            depsgraph,
            x=render.resolution_x,
            y=render.resolution_y,
            scale_x=render.pixel_aspect_x,
            scale_y=render.pixel_aspect_y,
        )
        self._shots.append(_Shot(camera.data.type == "ORTHO", np.array(camera.matrix_world), np.array(projection)))

    def check(self) -> None:
        """Check that Cycles has taken account of all that changes about the camera.

        Raises:
            ConfigError: The camera changes from frame to frame in a way that Cycles leaves out of the vectors.
        """
        import bpy

        if not self._shots:
            return
        now = self._shots[-1]  # Blender ends at the frame where it began
        zooms = bpy.app.version >= (4, 5) and not now.orthographic  # measured: 3.4 leaves out an animated lens
        for other in self._shots:
            change = (other.projection - now.projection)[:2]  # the other rows are about depth
            if zooms:
                change[[0, 1], [0, 1]] = 0
            if np.abs(change).max() > 1e-5:
                what = "shift" if zooms else "lens, shift or orthographic scale"
                raise ConfigError(
                    f"pass {self._pass_name!r}: the camera's {what} changes from frame to frame, which Cycles leaves "
                    "out of its vectors. Animate the camera object instead"
                )
            moved = np.abs(other.place - now.place).max() > 1e-6
            if now.orthographic and moved and bpy.app.version >= (4, 5):  # measured: 3.4 is right
                raise ConfigError(
                    f"pass {self._pass_name!r}: this Blender's Cycles gives wrong vectors for an orthographic camera "
                    "that moves. Move the objects instead, or use a perspective camera"
                )


@contextlib.contextmanager
def watching_camera(pass_name: str) -> Iterator[CameraMotion]:
    """Record the camera at each frame that Blender evaluates within the `with` block."""
    import bpy

    motion = CameraMotion(pass_name)
    handlers = bpy.app.handlers.frame_change_post
    handlers.append(motion.record)
    try:
        yield motion
    finally:
        with contextlib.suppress(ValueError):  # another handler may have cleared the list
            handlers.remove(motion.record)
