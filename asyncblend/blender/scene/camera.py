"""Camera: where points of the scene lie in the rendered image, and what lies at a pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from .lens import (
    View,
    checked_intrinsics,
    extrinsics,
    frame_of,
    intrinsics,
    lens_settings,
    projection_of,
    to_camera,
    transformed,
)
from .placing import evaluated, facing, turn, vector, world_matrix

if TYPE_CHECKING:
    from collections.abc import Iterable

_Matrix = npt.NDArray[np.float64]
_Floats = npt.NDArray[np.float32]


class Camera:
    """A camera of the current scene. Its settings are read at each use, as they may change between samples.

    All results are for the image that `render` gives now: with lens, sensor fit, shift, pixel aspect, resolution
    percentage and crop to border, for perspective and orthographic cameras. Each use updates the view layer first, so
    transforms that were assigned just before count. Pixel coordinates are (x, y), x to the right and y down; (0, 0) is
    the outer corner of the top-left pixel, whose centre is (0.5, 0.5), as in COCO. Lengths are in Blender units, which
    are metres unless the scene says otherwise.

    Args:
        obj: The camera object. None: the scene's active camera at the time of each use.

    Raises, in every use:
        ValueError: The camera is panoramic; only `world_to_camera` and `look_at` work for such a camera.
        TypeError: The object is not a camera.
        RuntimeError: The scene has no camera. Or Blender does not keep the transform of the camera, or of a given
            object, up to date, because it is disabled in viewports or not in the view layer.
    """

    def __init__(self, obj: Any = None) -> None:
        self._obj = obj

    @property
    def obj(self) -> Any:
        """The camera object: the given one, or else that of the current scene."""
        import bpy

        scene, camera = bpy.context.scene, self._obj
        if camera is None and (camera := scene.camera) is None:
            raise RuntimeError(f"scene {scene.name!r} has no camera: set scene.camera, or give Camera a camera object")
        if not hasattr(camera, "matrix_world"):
            raise TypeError(f"Camera takes a camera object, such as bpy.data.objects['Camera']; got {camera!r}")
        if camera.type != "CAMERA":
            raise TypeError(f"object {camera.name!r} is not a camera but of type {camera.type}")
        return camera

    @property
    def K(self) -> _Matrix:
        """The intrinsics: 3 x 3 float64, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], in pixels.

        Let (X, Y, Z) be a point in camera space, as `world_to_camera` gives it. Its pixel is K (X/Z, Y/Z, 1) for a
        perspective camera, and K (X, Y, 1) for an orthographic one, where fx and fy are pixels per Blender unit. With
        crop to border, cx and cy count from the corner of the cropped image. fx and fy differ if pixels are not square.
        """
        return self._view().K

    @property
    def world_to_camera(self) -> _Matrix:
        """The extrinsics: 4 x 4 float64, from the world to the camera's space in OpenCV's convention.

        In that space x is to the right, y down and z forward, and the camera is at the origin. A camera's scale has no
        effect, as in Blender.
        """
        import bpy

        seen = evaluated(self.obj, bpy.context.evaluated_depsgraph_get())  # which updates the view layer
        return extrinsics(seen.matrix_world.normalized())

    def set_K(self, K: Any) -> None:
        """Give the camera these intrinsics. The resolution, percentage and crop of the scene stay as they are.

        Changes `lens` (of an orthographic camera `ortho_scale`), `shift_x` and `shift_y` of the camera's data, which
        other camera objects may share, and `pixel_aspect_x` and `pixel_aspect_y` of the scene: to 1 for square pixels,
        and else so that x / y is fy / fx. The sensor keeps its fit and size, unless the lens would be shorter than
        1 mm: then the lens is 1 mm, and the sensor larger.

        Args:
            K: 3 x 3, as the property K. Blender keeps the settings as float32, so what is read back differs by some
                1e-7 of its size.

        Raises:
            ConfigError: K is not a 3 x 3 matrix of finite numbers, or has skew or a focal length that is not positive;
                or the camera does not take it, because a driver holds a setting. Nothing is changed then.
        """
        import bpy

        wanted = checked_intrinsics(K)
        camera, before = self.obj, self._view()
        data, render = camera.data, bpy.context.scene.render
        sensor = "sensor_height" if data.sensor_fit == "VERTICAL" else "sensor_width"
        found = lens_settings(wanted, before.frame, data.sensor_fit, getattr(data, sensor))
        (aspect_x, aspect_y), (shift_x, shift_y) = found.pixel_aspect, found.shift
        changes = [(render, "pixel_aspect_x", aspect_x), (render, "pixel_aspect_y", aspect_y)]
        changes += [(data, "shift_x", shift_x), (data, "shift_y", shift_y)]
        if before.perspective:
            changes += [(data, "lens", found.lens), (data, sensor, found.sensor)]
        else:
            changes += [(data, "ortho_scale", found.ortho_scale)]
        saved = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        for owner, name, value in changes:
            setattr(owner, name, value)
        got = self._view().K
        if not np.allclose(got, wanted, rtol=1e-5, atol=1e-5 * max(before.frame)):
            for owner, name, value in saved:
                setattr(owner, name, value)
            raise ConfigError(
                f"camera {camera.name!r} does not take K = {wanted.tolist()}; it would have {got.tolist()}. "
                "A driver may hold one of its settings, or of the scene's pixel aspect: remove it"
            )

    @overload
    def project(self, points: Iterable[Any], obj: Any = None, depth: Literal[False] = False) -> _Floats: ...

    @overload
    def project(self, points: Iterable[Any], obj: Any = None, *, depth: Literal[True]) -> tuple[_Floats, _Floats]: ...

    def project(self, points: Iterable[Any], obj: Any = None, depth: bool = False) -> _Floats | tuple[_Floats, _Floats]:
        """Return the pixel coordinates of points, whether or not another object hides them.

        Args:
            points: N x 3 array, or an iterable of N mathutils vectors or triples, in Blender units.
            obj: The object in whose space the points are. None: world space.
            depth: Return the depths too.

        Returns:
            N x 2 float32 array of (x, y). A point outside the image has coordinates outside it; one on or behind the
            plane of a perspective camera is (NaN, NaN). With `depth` also N float32: the distances along the camera's
            axis, as in the pass "depth", negative behind the camera.

        Raises:
            ValueError: The points are not N x 3.
        """
        import bpy

        local = _as_array(points, 3, "points")
        view = self._view()
        model = np.eye(4) if obj is None else world_matrix(obj, bpy.context.evaluated_depsgraph_get())
        inside = transformed(view.world_to_camera @ model, local)
        xy = view.pixels(inside).astype(np.float32, order="C")
        return (xy, inside[:, 2].astype(np.float32)) if depth else xy

    def unproject(self, xy: Any, depth: Any) -> _Matrix:
        """Return the points in the world that lie at these pixels, at these depths: the inverse of `project`.

        Args:
            xy: N x 2 pixel coordinates. None: the centres of all pixels.
            depth: N distances along the camera's axis, as in the pass "depth", or one for all. If `xy` is None, the
                pass itself: H x W.

        Returns:
            N x 3 float64 in world space, or H x W x 3 if `xy` is None. NaN where the depth is not finite, as it is in
            the background.

        Raises:
            ValueError: `xy` is not N x 2, or `depth` is of another length or not of the image's size.
        """
        depths = np.asarray(depth, dtype=np.float64)
        view = self._view()
        shape: tuple[int, ...]
        if xy is None:
            size = view.frame.height, view.frame.width
            if depths.shape != size:
                raise ConfigError(f"a depth map must have the shape of the image, {size}; got the shape {depths.shape}")
            y, x = np.indices(size) + 0.5
            pixels, shape = np.stack([x.ravel(), y.ravel()], axis=1), (*size, 3)
        else:
            pixels = _as_array(xy, 2, "xy")
            shape = (len(pixels), 3)
            if depths.shape not in ((), shape[:1]):
                raise ConfigError(
                    f"depth must be one number, or one for each of {len(pixels)} points; got the shape {depths.shape}"
                )
        inside = to_camera(view.K, pixels, np.broadcast_to(depths.ravel(), len(pixels)), view.perspective)
        return np.ascontiguousarray(transformed(np.linalg.inv(view.world_to_camera), inside)).reshape(shape)

    def look_at(self, point: Any, up: Iterable[float] = (0, 0, 1)) -> None:
        """Turn the camera, by its own rotation, so that a point is in the middle of its view (without shift).

        Parents are taken into account, and place and scale of the camera stay.

        Args:
            point: Three numbers in world space, or an object, for its origin.
            up: The direction in world space that is up in the image. Looking along it, the world's y is up.

        Raises:
            ConfigError: The camera is at that point, or does not turn, because a constraint holds it.
        """
        import bpy

        camera, depsgraph = self.obj, bpy.context.evaluated_depsgraph_get()
        at = world_matrix(camera, depsgraph)[:3, 3]
        if isinstance(point, bpy.types.Object):
            target = world_matrix(point, depsgraph)[:3, 3]
        else:
            target = vector(point, "point")
        axes = facing(target - at, vector(up, "up"))
        turn(camera, axes)
        if self.world_to_camera[2, :3] @ axes[:, 2] > -1 + 1e-6:
            raise ConfigError(
                f"camera {camera.name!r} does not turn: a constraint or a driver holds its rotation. Remove it"
            )

    def _view(self) -> View:
        return view_of(self.obj)


def view_of(camera: Any) -> View:
    """Return how a camera object shows the current scene now. It raises what each use of `Camera` raises."""
    import bpy

    depsgraph, render = bpy.context.evaluated_depsgraph_get(), bpy.context.scene.render  # updates the view layer
    kind = camera.data.type
    if kind not in ("PERSP", "ORTHO"):
        raise ValueError(f"camera {camera.name!r} is of type {kind}; only PERSP and ORTHO can be projected")
    frame, perspective = frame_of(render), kind == "PERSP"
    K = intrinsics(projection_of(camera, depsgraph, render), frame, perspective)
    seen = evaluated(camera, depsgraph)
    place = extrinsics(seen.matrix_world.normalized())
    return View(K, place, perspective, seen.data.clip_start, seen.data.clip_end, frame)


def _as_array(values: Any, columns: int, name: str) -> _Matrix:
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    if array.shape == (0,):
        array = array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"{name} must have the shape (N, {columns}), got {array.shape}")
    return array
