"""motion: whether Cycles' motion vectors are right for the camera's own movement."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Lenses", "lenses"]

_Matrix = npt.NDArray[np.float64]


class _Seen(NamedTuple):
    orthographic: bool
    place: _Matrix
    projection: _Matrix


class Lenses:
    """The camera at each of the frames that one render looks at: the scene's own, the one before, and the next."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: list[_Seen] = []

    def note(self, scene: Any, depsgraph: Any) -> None:
        """For Blender to call at each frame."""
        camera, render = scene.camera.evaluated_get(depsgraph), scene.render
        projection = camera.calc_matrix_camera(
            depsgraph,
            x=render.resolution_x,
            y=render.resolution_y,
            scale_x=render.pixel_aspect_x,
            scale_y=render.pixel_aspect_y,
        )
        self._seen.append(_Seen(camera.data.type == "ORTHO", np.array(camera.matrix_world), np.array(projection)))

    def check(self) -> None:
        """
        Raises:
            ConfigError: the camera changes from frame to frame in a way that Cycles leaves out of the vectors.
        """
        import bpy

        if not self._seen:
            return
        now = self._seen[-1]  # Blender ends where it began
        zooms = bpy.app.version >= (4, 5) and not now.orthographic  # measured: 3.4 leaves out an animated lens
        for other in self._seen:
            change = (other.projection - now.projection)[:2]  # the other rows are depth
            if zooms:
                change[[0, 1], [0, 1]] = 0
            if np.abs(change).max() > 1e-5:
                what = "shift" if zooms else "lens, shift or orthographic scale"
                raise ConfigError(
                    f"pass {self._name!r}: the camera's {what} changes from frame to frame, which Cycles leaves out of "
                    "its vectors. Animate the camera object instead"
                )
            moved = np.abs(other.place - now.place).max() > 1e-6
            if now.orthographic and moved and bpy.app.version >= (4, 5):  # measured: right in 3.4
                raise ConfigError(
                    f"pass {self._name!r}: this Blender's Cycles gives wrong vectors for an orthographic camera that "
                    "moves. Move the objects instead, or use a perspective camera"
                )


@contextlib.contextmanager
def lenses(name: str) -> Iterator[Lenses]:
    """Meanwhile, the camera is noted at each frame that Blender looks at; for a render with the vector pass.

    Args:
        name: what was asked for, for the messages.
    """
    import bpy

    seen = Lenses(name)
    handlers = bpy.app.handlers.frame_change_post
    handlers.append(seen.note)
    try:
        yield seen
    finally:
        with contextlib.suppress(ValueError):  # another handler may have cleared the list
            handlers.remove(seen.note)
