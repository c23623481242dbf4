"""Camera: where points of the scene lie in the rendered image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Camera"]

_Matrix = npt.NDArray[np.float64]


class Camera:
    """A camera of the current scene, resolved anew at each call: settings may change between samples.

    Args:
        obj: the camera object; None for the scene's active camera, whichever that is at the time of a call.
    """

    def __init__(self, obj: Any = None) -> None:
        self._obj = obj

    def project(self, points: Iterable[Any], obj: Any = None) -> npt.NDArray[np.float32]:
        """Pixel coordinates of points, in the image that `render` gives now.

        Updates the view layer first, so transforms assigned just before count. Knows lens, sensor fit, shift, pixel
        aspect, resolution percentage, crop to border, perspective and orthographic cameras.

        Args:
            points: N x 3 array, or an iterable of N mathutils vectors or triples, in Blender units.
            obj: the object in whose space the points are; None for world space.

        Returns:
            N x 2 float32 array of (x, y): x to the right, y down; (0, 0) is the outer corner of the top-left pixel,
            whose centre is (0.5, 0.5), as in COCO. Points outside the image have coordinates outside it. A point on
            or behind the plane of a perspective camera is (NaN, NaN). Occlusion plays no part.

        Raises:
            ValueError: the points are not N x 3, or the camera is panoramic.
            TypeError: the camera is an object of another kind.
            RuntimeError: the scene has no camera; or Blender does not keep the transform of `obj` or of the camera
                up to date, because it is disabled in viewports or not in the view layer.
        """
        import bpy

        local = _as_points(points)
        context = bpy.context
        depsgraph = context.evaluated_depsgraph_get()  # updates the view layer
        camera = _checked_camera(context.scene, self._obj)

        # Blender ignores the camera's scale
        view = np.linalg.inv(_matrix(_evaluated(camera, depsgraph).matrix_world.normalized()))
        model = np.eye(4) if obj is None else _matrix(_evaluated(obj, depsgraph).matrix_world)
        width, height = _full_size(context.scene.render)
        clip = _homogeneous(local) @ (_projection(camera, depsgraph, context.scene.render) @ view @ model).T

        w = np.where(clip[:, 3:] > 0, clip[:, 3:], np.nan)
        unit = clip[:, :2] / w * (0.5, -0.5) + 0.5
        pixels: _Matrix = unit * (width, height) - _crop_origin(context.scene.render)
        return pixels.astype(np.float32)


def _as_points(points: Iterable[Any]) -> _Matrix:
    array = np.asarray(points if isinstance(points, np.ndarray) else list(points), dtype=np.float64)
    if array.shape == (0,):
        array = array.reshape(0, 3)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points must have the shape (N, 3), got {array.shape}")
    return array


def _checked_camera(scene: Any, obj: Any) -> Any:
    camera = scene.camera if obj is None else obj
    if camera is None:
        raise RuntimeError(
            f"scene {scene.name!r} has no camera: set scene.camera, or give Camera a camera object"
        )
    if camera.type != "CAMERA":
        raise TypeError(f"object {camera.name!r} is not a camera but of type {camera.type}")
    if camera.data.type not in ("PERSP", "ORTHO"):
        raise ValueError(
            f"camera {camera.name!r} is of type {camera.data.type}; only PERSP and ORTHO can be projected"
        )
    return camera


def _evaluated(obj: Any, depsgraph: Any) -> Any:
    """The object with constraints, parents and drivers applied."""
    evaluated = obj.evaluated_get(depsgraph)
    if not evaluated.is_evaluated:  # measured: matrix_world then silently stays what it once was
        raise RuntimeError(
            f"Blender does not update the transform of {obj.name!r}: it is disabled in viewports (hide_viewport), "
            "or not in the view layer. Hide it with hide_set(True), or give world space points instead"
        )
    return evaluated


def _matrix(matrix: Any) -> _Matrix:
    return np.array(matrix, dtype=np.float64)


def _homogeneous(points: _Matrix) -> _Matrix:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _full_size(render: Any) -> tuple[int, int]:
    """Width and height of the whole image in pixels; Blender rounds down."""
    scale = render.resolution_percentage
    return render.resolution_x * scale // 100, render.resolution_y * scale // 100


def _projection(camera: Any, depsgraph: Any, render: Any) -> _Matrix:
    """From camera space to clip space (OpenGL's: the image is [-1, 1] x [-1, 1], y up)."""
    width, height = _full_size(render)
    return _matrix(
        camera.calc_matrix_camera(
            depsgraph, x=width, y=height, scale_x=render.pixel_aspect_x, scale_y=render.pixel_aspect_y
        )
    )


def _crop_origin(render: Any) -> tuple[int, int]:
    """The top-left pixel of the rendered image in the whole image: not (0, 0) when cropped to a border."""
    if not (render.use_border and render.use_crop_to_border):
        return 0, 0
    width, height = _full_size(render)
    left = int(np.float32(render.border_min_x) * np.float32(width))
    top = height - int(np.float32(render.border_max_y) * np.float32(height))
    return left, top
