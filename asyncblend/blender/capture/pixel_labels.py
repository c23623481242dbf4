"""The arithmetic of labels: from Blender's passes to exact values in stated units. It needs no Blender."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..scene.camera import Camera
    from .object_ids import ObjectIds

_Float = npt.NDArray[np.float32]
_Bool = npt.NDArray[np.bool_]
_Ids = npt.NDArray[np.int32]

_BLOCK = 1 << 15  # pixels in one step


@dataclasses.dataclass
class PixelLabels:
    """The labels of one render. Each is computed when it is first asked for."""

    # By friendly name: H x W x C float32, top row first, with Blender's own values for the background.
    passes: Mapping[str, npt.NDArray[Any]]
    background_depth: float  # the depth from which on a pixel counts as background
    camera: Camera
    object_ids: ObjectIds | None = None  # what the object index pass holds, if it is among the passes

    @functools.cached_property
    def background(self) -> _Bool:
        """H x W. Includes what is outside of a border that is rendered without cropping: there all passes are 0."""
        depth = self.passes["depth"][..., 0]
        found: _Bool = (depth >= self.background_depth) | (depth <= 0)
        return found

    @functools.cached_property
    def depth(self) -> _Float:
        depth = np.array(self.passes["depth"][..., 0], np.float32, order="C")
        np.copyto(depth, np.inf, where=self.background)
        return depth

    @functools.cached_property
    def distance(self) -> _Float:
        # The rays of an orthographic camera are parallel, and the depth of a panorama is the distance already.
        if self.camera.obj.data.type != "PERSP":
            return self.depth.copy()
        height, width = self.depth.shape
        return ray_lengths(self.camera.K, width, height) * self.depth

    @functools.cached_property
    def normal(self) -> _Float:
        return unit_vectors(self.passes["normal"], self.background)

    @functools.cached_property
    def normal_camera(self) -> _Float:
        return rotated(self.normal, self.camera.world_to_camera[:3, :3])

    @functools.cached_property
    def ids_and_table(self) -> tuple[_Ids, list[dict[str, Any]]]:
        assert self.object_ids is not None
        return self.object_ids.read(self.passes["object_index"][..., 0])

    @property
    def instance(self) -> _Ids:
        return self.ids_and_table[0]

    @functools.cached_property
    def semantic(self) -> _Ids:
        ids, table = self.ids_and_table
        return np.array([0, *(row["class_id"] for row in table)], np.int32).take(ids)

    @functools.cached_property
    def flow_forward(self) -> _Float:
        return self._flow(2, -1)

    @functools.cached_property
    def flow_backward(self) -> _Float:
        return self._flow(0, 1)

    def _flow(self, channel: int, sign: int) -> _Float:
        """Return two channels of the vector pass as flow.

        The pass has y up, and holds (where it was - here, here - where it will be), as experiments showed.
        """
        vectors = self.passes["vector"]
        flow = np.empty((*vectors.shape[:2], 2), np.float32)
        for axis, factor in enumerate((sign, -sign)):
            np.multiply(vectors[..., channel + axis], np.float32(factor), out=flow[..., axis])
            np.copyto(flow[..., axis], 0, where=self.background)
        return flow


def ray_lengths(K: npt.NDArray[np.float64], width: int, height: int) -> _Float:
    """Return H x W: how long each pixel's ray is where it has gone 1 along the camera's axis."""
    x = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)
    lengths: _Float = np.add.outer(y * y, x * x + np.float32(1))
    return np.sqrt(lengths, out=lengths)


def unit_vectors(vectors: npt.NDArray[Any], background: _Bool) -> _Float:
    """Return H x W x 3 vectors with the length 1; 0 in the background."""
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


def rotated(vectors: _Float, rotation: npt.NDArray[np.float64]) -> _Float:
    """Return H x W x 3 vectors, each multiplied by the 3 x 3 rotation."""
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
    """Yield rows of H x W x C in blocks that are small enough for the processor's cache.

    numpy is slow with axes of 3, and a matrix product would start threads of its own beside those of Blender, and both
    would then wait for each other (6 ms became 36 ms at 640 x 480). So the callers work on one channel at a time.
    """
    rows = max(1, _BLOCK // max(1, array.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def _planes(vectors: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [np.ascontiguousarray(vectors[..., channel]) for channel in range(3)]
