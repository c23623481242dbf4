"""pixels: the arithmetic of labels: from Blender's passes to what is exact and in stated units. No Blender needed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..scene.camera import Camera
    from .object_ids import Numbers

__all__ = ["Pixels", "ray_lengths", "turned", "unit_vectors"]

_Float = npt.NDArray[np.float32]
_Bool = npt.NDArray[np.bool_]
_Ids = npt.NDArray[np.int32]

_BLOCK = 1 << 15  # pixels that are worked on at once


class Pixels:
    """The labels, each made when it is first asked for.

    Args:
        passes: of Blender's, by friendly name: H x W x C float32, top row first, with its own values for the
            background.
        nothing: the depth from which on there is nothing.
        camera: the camera that they were rendered with.
        numbers: what the object index pass holds, where it is among the passes.
    """

    def __init__(
        self,
        passes: Mapping[str, npt.NDArray[Any]],
        nothing: float,
        camera: Camera,
        numbers: Numbers | None = None,
    ) -> None:
        self._passes = passes
        self._nothing = nothing
        self._camera = camera
        self._numbers = numbers

    @functools.cached_property
    def background(self) -> _Bool:
        """H x W bool. Outside of a border that is rendered without cropping all passes are 0."""
        depth = self._passes["depth"][..., 0]
        found: _Bool = depth >= self._nothing
        found |= depth <= 0
        return found

    @functools.cached_property
    def depth(self) -> _Float:
        depth = np.array(self._passes["depth"][..., 0], np.float32, order="C")
        np.copyto(depth, np.inf, where=self.background)
        return depth

    @functools.cached_property
    def distance(self) -> _Float:
        # The rays of an orthographic camera are parallel, and a panorama's depth is the distance.
        if self._camera.obj.data.type != "PERSP":
            return self.depth.copy()
        height, width = self.depth.shape
        distance = ray_lengths(self._camera.K, width, height)
        distance *= self.depth
        return distance

    @functools.cached_property
    def normal(self) -> _Float:
        return unit_vectors(self._passes["normal"], self.background)

    @functools.cached_property
    def normal_camera(self) -> _Float:
        return turned(self.normal, self._camera.world_to_camera[:3, :3])

    @functools.cached_property
    def ids(self) -> tuple[_Ids, list[dict[str, Any]]]:
        """The instance ids and the table of them."""
        assert self._numbers is not None
        return self._numbers.read(self._passes["object_index"][..., 0])

    @property
    def instance(self) -> _Ids:
        return self.ids[0]

    @functools.cached_property
    def semantic(self) -> _Ids:
        ids, table = self.ids
        classes = np.array([0, *(entry["class_id"] for entry in table)], np.int32)
        return classes.take(ids)

    @functools.cached_property
    def flow_forward(self) -> _Float:
        return self._flow(2, -1)

    @functools.cached_property
    def flow_backward(self) -> _Float:
        return self._flow(0, 1)

    def _flow(self, channel: int, sign: int) -> _Float:
        """The vector pass, whose y points up, is (where it was - here, here - where it will be): found by experiment."""
        vectors = self._passes["vector"]
        flow = np.empty((*vectors.shape[:2], 2), np.float32)
        for axis, factor in enumerate((sign, -sign)):
            np.multiply(vectors[..., channel + axis], np.float32(factor), out=flow[..., axis])
            np.copyto(flow[..., axis], 0, where=self.background)
        return flow


def ray_lengths(K: npt.NDArray[np.float64], width: int, height: int) -> _Float:
    """H x W: the length of the ray through each pixel's centre, for a ray that goes 1 along the camera's axis."""
    x = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)
    lengths: _Float = np.add.outer(y * y, x * x + np.float32(1))
    return np.sqrt(lengths, out=lengths)


def unit_vectors(vectors: npt.NDArray[Any], background: _Bool) -> _Float:
    """H x W x 3 with the length 1; 0 in the background."""
    found: _Float = np.empty(vectors.shape, np.float32)
    for rows in _blocks(found):
        x, y, z = _planes(vectors[rows])
        length = x * x
        length += y * y
        length += z * z
        np.maximum(length, np.float32(1e-30), out=length)
        np.sqrt(length, out=length)
        np.copyto(length, np.inf, where=background[rows])
        for channel, plane in enumerate((x, y, z)):
            np.divide(plane, length, out=found[rows, :, channel])
    return found


def turned(vectors: _Float, rotation: npt.NDArray[np.float64]) -> _Float:
    """H x W x 3: each vector after the 3 x 3 rotation."""
    found: _Float = np.empty(vectors.shape, np.float32)
    for rows in _blocks(found):
        x, y, z = _planes(vectors[rows])
        for channel, (a, b, c) in enumerate(rotation.astype(np.float32)):
            plane = x * a
            plane += y * b
            plane += z * c
            found[rows, :, channel] = plane
    return found


def _blocks(array: npt.NDArray[Any]) -> Iterator[slice]:
    """Rows of H x W x C that are worked on at once: what they need stays in the cache, and is no fresh memory.

    numpy is slow with axes of 3, and a matrix product would start its own threads beside those of Blender, which then
    wait for each other (6 ms became 36 ms at 640 x 480). So it is one channel after the other.
    """
    rows = max(1, _BLOCK // max(1, array.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def _planes(vectors: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [np.ascontiguousarray(vectors[..., channel]) for channel in range(3)]
