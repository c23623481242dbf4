"""The arithmetic of a camera, without Blender: its intrinsics, and pixels from points and back.

Camera space is OpenCV's: x to the right, y down, z forward. Pixels are those of the image that `render` gives: (0, 0)
is the outer corner of its top-left pixel. K is 3 x 3, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]:

- of a perspective camera (u, v, 1) = K (X/Z, Y/Z, 1), with fx and fy in pixels;
- of an orthographic one (u, v, 1) = K (X, Y, 1), with fx and fy in pixels per Blender unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_Array = npt.NDArray[np.float64]

_MAX_ASPECT = 200.0  # Blender's largest pixel aspect; its smallest is 1
_MIN_LENS = 1.0  # its shortest lens, in millimetres


class Frame(NamedTuple):
    """The rendered image within the full image, in pixels. It is smaller only where Blender crops it to a border."""

    full_width: int
    full_height: int
    left: int
    top: int
    width: int
    height: int


class LensSettings(NamedTuple):
    """The settings of Blender that together make the intrinsics."""

    pixel_aspect: tuple[float, float]  # x and y; only their ratio matters
    shift: tuple[float, float]
    lens: float  # millimetres, for a perspective camera
    sensor: float  # millimetres: the sensor's width, or its height where the fit is VERTICAL
    ortho_scale: float  # Blender units, for an orthographic camera


class View(NamedTuple):
    """A camera and its image at one moment."""

    K: _Array
    world_to_camera: _Array
    perspective: bool  # otherwise the camera is orthographic
    near: float  # the camera's `clip_start`: only what is further away along the axis is rendered
    far: float  # the camera's `clip_end`: what is further away is not rendered
    frame: Frame

    def pixels(self, points: _Array) -> _Array:
        """Return N x 2 pixel coordinates of N x 3 points in camera space; NaN behind a perspective camera."""
        return to_pixels(self.K, points, self.perspective)


def frame_of(render: Any) -> Frame:
    """Return the image's size by `scene.render`, rounded as Blender does: down, and borders as float32."""
    scale = render.resolution_percentage
    width, height = render.resolution_x * scale // 100, render.resolution_y * scale // 100
    if not (render.use_border and render.use_crop_to_border):
        return Frame(width, height, 0, 0, width, height)
    left, right = (int(np.float32(at) * np.float32(width)) for at in (render.border_min_x, render.border_max_x))
    low, high = (int(np.float32(at) * np.float32(height)) for at in (render.border_min_y, render.border_max_y))
    return Frame(width, height, left, height - high, right - left, high - low)


def projection_of(camera: Any, depsgraph: Any, render: Any) -> Any:
    """Return a camera's 4 x 4 projection matrix, Blender's own, for the full image of `scene.render`."""
    frame, aspect = frame_of(render), {"scale_x": render.pixel_aspect_x, "scale_y": render.pixel_aspect_y}
    return camera.calc_matrix_camera(depsgraph, x=frame.full_width, y=frame.full_height, **aspect)


def extrinsics(place: Iterable[Iterable[float]]) -> _Array:
    """Return the 4 x 4 matrix from the world to camera space, from the rows of a camera object's matrix without scale.

    The inverse is by its formula, in plain Python: after a render no cache holds the code of numpy's solver any more,
    which then takes as long as the rest of a projection.

    Raises:
        ConfigError: The camera is flat.
    """
    (a, b, c, x), (d, e, f, y), (g, h, i, z), _ = place
    right = e * i - f * h, c * h - b * i, b * f - c * e
    up = f * g - d * i, a * i - c * g, c * d - a * f
    back = d * h - e * g, b * g - a * h, a * e - b * d
    volume = a * right[0] + b * up[0] + c * back[0]
    if not volume:
        raise ConfigError("the camera's scale is 0 along an axis, so it has no view: set its scale to 1")
    rows = []
    # Blender's cameras look along -z, with y up.
    for axis, divisor in ((right, volume), (up, -volume), (back, -volume)):
        p, q, r = (part / divisor for part in axis)
        rows.append((p, q, r, -(p * x + q * y + r * z)))
    return np.array([*rows, (0.0, 0.0, 0.0, 1.0)])


def transformed(matrix: _Array, points: _Array) -> _Array:
    """Return N x 3 points, multiplied by a 4 x 4 matrix. Each of the three columns is contiguous in memory."""
    moved: _Array = (matrix[:3, :3] @ points.T + matrix[:3, 3:]).T
    return moved


def intrinsics(projection: Any, frame: Frame, perspective: bool) -> _Array:
    """Return K of a projection matrix of OpenGL's convention, as Blender gives it.

    In that convention the camera looks along -z with y up, and the full image is [-1, 1] x [-1, 1].
    """
    half_width, half_height = frame.full_width / 2, frame.full_height / 2
    x, y, *_ = projection
    # A shift is in the column that is multiplied by z = -Z, or in the constant one.
    shift_x, shift_y = (-x[2], -y[2]) if perspective else (x[3], y[3])
    fx, cx = half_width * x[0], half_width * (1 + shift_x) - frame.left
    fy, cy = half_height * y[1], half_height * (1 - shift_y) - frame.top
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def checked_intrinsics(K: Any) -> _Array:
    """Return K as an array, or raise a ConfigError that says why no camera of Blender can have such intrinsics."""
    try:
        matrix = np.array(K, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"K must be a 3 x 3 matrix of numbers, got {K!r}") from None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"K must be a 3 x 3 matrix of finite numbers, got the shape {matrix.shape}: {matrix.tolist()}"
        )
    fx, fy = matrix[0, 0], matrix[1, 1]
    if fx <= 0 or fy <= 0:
        raise ConfigError(f"the focal lengths K[0, 0] and K[1, 1] must be positive, got {fx} and {fy}")
    if (abs(matrix[[0, 1], [1, 0]]) > 1e-6 * min(fx, fy)).any():
        raise ConfigError(
            f"Blender's cameras have no skew: K[0, 1] and K[1, 0] must be 0, got {matrix[0, 1]} and {matrix[1, 0]}"
        )
    if (matrix[2] != (0, 0, 1)).any():
        raise ConfigError(f"the last row of K must be 0, 0, 1, got {matrix[2].tolist()}: divide K by K[2, 2]")
    if max(fx / fy, fy / fx) > _MAX_ASPECT:
        raise ConfigError(
            f"K[0, 0] = {fx} and K[1, 1] = {fy}: Blender's pixels are at most {_MAX_ASPECT:g} times as wide as high"
        )
    return matrix


def lens_settings(K: _Array, frame: Frame, fit: str, sensor: float) -> LensSettings:
    """Return the settings with which a camera projects by K: the inverse of `BKE_camera_params_compute_viewplane`.

    Args:
        fit: The camera's sensor_fit: "AUTO", "HORIZONTAL" or "VERTICAL".
        sensor: The present LensSettings.sensor in millimetres. It is kept unless the lens would be shorter than
            Blender allows.
    """
    fx, fy = K[0, 0], K[1, 1]
    aspect = max(1.0, fy / fx), max(1.0, fx / fy)  # the higher a pixel, the fewer pixels per unit
    high = fx / fy  # the height of a pixel, in widths of a pixel
    if fit == "AUTO":
        fit = "HORIZONTAL" if frame.full_width >= high * frame.full_height else "VERTICAL"
    # The side of the image that the sensor spans, in widths of a pixel. It is also the unit of both shifts.
    side = frame.full_width if fit == "HORIZONTAL" else high * frame.full_height
    shift_x = (frame.full_width / 2 - frame.left - K[0, 2]) / side
    shift_y = (K[1, 2] + frame.top - frame.full_height / 2) * high / side
    lens = fx * sensor / side
    if lens < _MIN_LENS:
        lens, sensor = _MIN_LENS, sensor / lens
    return LensSettings(aspect, (shift_x, shift_y), lens, sensor, side / fx)


def to_pixels(K: _Array, points: _Array, perspective: bool) -> _Array:
    """Return the N x 2 pixel coordinates of N x 3 points in camera space.

    They are NaN for points on and behind the plane of a perspective camera.
    """
    plane = points[:, :2]
    if perspective:
        plane = plane / np.where(points[:, 2:] > 0, points[:, 2:], np.nan)
    pixels: _Array = plane * K.diagonal()[:2] + K[:2, 2]
    return pixels


def to_camera(K: _Array, xy: _Array, depth: _Array, perspective: bool) -> _Array:
    """Return N x 3 points in camera space from N x 2 pixels and N depths; NaN where a depth is not finite."""
    depth = np.where(np.isfinite(depth), depth, np.nan)[:, None]
    plane = (xy - K[:2, 2]) / K.diagonal()[:2]
    # An orthographic point would otherwise have x and y even where it has no depth.
    plane = plane * depth if perspective else np.where(np.isnan(depth), np.nan, plane)
    return np.concatenate([plane, depth], axis=1)
