"""The arithmetic of labels: from Blender's passes to exact values in stated units. It needs no Blender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..scene.camera import Camera

_Float = npt.NDArray[np.float32]
_Bool = npt.NDArray[np.bool_]
_Ids = npt.NDArray[np.int32]
_Matrix = npt.NDArray[np.float64]

_BLOCK = 1 << 15  # pixels in one step
_PAIR, _FOUR = np.complex64, np.complex128  # to copy or clear two or four float32 as if they were one number
_FLOWS = ("flow_backward", "flow_forward")  # in the order of the vector pass, which has two channels for each
# That pass has y up, and holds (where it was - here, here - where it will be), as experiments showed.
_FLOW_SIGNS = np.array([1, -1, -1, 1], np.float32)


def pixel_labels(
    names: Sequence[str], passes: Mapping[str, npt.NDArray[Any]], background_depth: float, camera: Camera
) -> dict[str, _Float]:
    """Return the labels among `names` that depend on what is background, as new and contiguous arrays.

    They are computed block by block, because the passes and intermediate values of a block fit into the processor's
    cache: with ids and albedo that took 5.5 instead of 8.3 ms at 640 x 480. numpy is slow with axes of 2, 3 or 4, so
    each step works on one channel, or on all of them as one long row. Two threads were tried for the blocks: they took
    longer, as they wait for Python's lock between the steps.

    Args:
        names: Names of labels. Those that need no "depth" pass are left out of the result.
        passes: By friendly name: H x W x C float32, top row first, with Blender's own values for the background. They
            are not changed.
        background_depth: The depth from which on a pixel counts as background. So does a depth of 0, which is what all
            passes have outside of a border that is rendered without cropping.
        camera: Asked for its lens if there is "distance", and for its place if there is "normal_camera".
    """
    families: list[_Family] = []
    if "depth" in names or "distance" in names:
        families.append(_Depths(names, passes["depth"], camera))
    if "normal" in names or "normal_camera" in names:
        families.append(_Normals(names, passes["normal"], camera))
    if "flow_forward" in names or "flow_backward" in names:
        families.append(_Flows(names, passes["vector"]))
    if not families:
        return {}
    for rows in _blocks(passes["depth"]):
        depth = passes["depth"][rows, :, 0]
        background: _Bool = depth >= background_depth
        background |= depth <= 0
        for family in families:
            family.compute(rows, background)
    return {name: array for family in families for name, array in family.found.items() if name in names}


def semantic(ids: _Ids, table: Sequence[Mapping[str, Any]]) -> _Ids:
    """Return the class of each id: H x W int32."""
    classes = np.array([0, *(row["class_id"] for row in table)], np.int32)
    # Unlike the default mode, "clip" needs no copy of the result. No id is outside the table.
    return classes.take(ids, out=np.empty_like(ids), mode="clip")


class _Family(Protocol):
    """Labels that are computed from the same pass."""

    found: dict[str, _Float]

    def compute(self, rows: slice, background: _Bool) -> None:
        """Fill in some rows of all labels. `background` is about these rows alone."""


class _Depths:
    """The labels "depth" and "distance"."""

    def __init__(self, names: Sequence[str], depth: npt.NDArray[Any], camera: Camera) -> None:
        height, width = depth.shape[:2]
        self._pass = depth
        self._depth = np.empty((height, width), np.float32)
        self.found = {"depth": self._depth}
        if "distance" in names:
            self.found["distance"] = np.empty((height, width), np.float32)
            # The rays of an orthographic camera are parallel, and the depth of a panorama is the distance already.
            self._squares = _squared_rays(camera.K, width, height) if camera.obj.data.type == "PERSP" else None

    def compute(self, rows: slice, background: _Bool) -> None:
        depth = self._depth[rows]
        np.copyto(depth, self._pass[rows, :, 0])
        np.copyto(depth, np.inf, where=background)
        if (distance := self.found.get("distance")) is None:
            return
        if self._squares is None:
            np.copyto(distance[rows], depth)
        else:
            x, y = self._squares
            lengths = np.add.outer(y[rows], x)
            np.multiply(np.sqrt(lengths, out=lengths), depth, out=distance[rows])


def _squared_rays(K: _Matrix, width: int, height: int) -> tuple[_Float, _Float]:
    """Return for each column and each row a number, so that their sum is the square of the length of a pixel's ray.

    The ray ends where it has gone 1 along the camera's axis.
    """
    x = ((np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1]).astype(np.float32)
    return x * x + np.float32(1), y * y


class _Normals:
    """The labels "normal" and "normal_camera": vectors with the length 1, or 0 in the background."""

    def __init__(self, names: Sequence[str], vectors: npt.NDArray[Any], camera: Camera) -> None:
        self._vectors = vectors
        self.found: dict[str, _Float] = {
            name: np.empty(vectors.shape, np.float32) for name in ("normal", "normal_camera") if name in names
        }
        if "normal_camera" in names:
            self._to_camera = camera.world_to_camera[:3, :3].astype(np.float32)

    def compute(self, rows: slice, background: _Bool) -> None:
        # First a copy as they are, which is the fastest way to get them into the cache, and of that the 3 x N planes.
        vectors = np.array(self._vectors[rows], np.float32, order="C").reshape(-1, 3)
        planes: _Float = np.ascontiguousarray(vectors.T)
        more = planes * planes
        length = more[0]
        length += more[1]
        length += more[2]
        np.maximum(length, np.float32(1e-30), out=length)
        np.sqrt(length, out=length)
        np.copyto(length, np.inf, where=background.ravel())
        planes /= length
        if "normal" in self.found:
            _put(self.found["normal"][rows], planes)
        if "normal_camera" in self.found:
            # Not a product of matrices: OpenBLAS would start threads beside those of Blender, and both would wait for
            # each other (6 ms became 36 ms at 640 x 480).
            turned: _Float = np.einsum("ij,jk->ik", self._to_camera, planes, out=more)
            _put(self.found["normal_camera"][rows], turned)


def _put(vectors: _Float, planes: _Float) -> None:
    """Fill contiguous vectors from their planes."""
    for channel, plane in enumerate(planes):
        vectors.reshape(-1, 3)[:, channel] = plane


class _Flows:
    """The labels "flow_backward" and "flow_forward"."""

    def __init__(self, names: Sequence[str], vectors: npt.NDArray[Any]) -> None:
        height, width = vectors.shape[:2]
        self._vectors = vectors
        self._signs = np.tile(_FLOW_SIGNS, width)
        self.found: dict[str, _Float] = {
            name: np.empty((height, width, 2), np.float32) for name in _FLOWS if name in names
        }

    def compute(self, rows: slice, background: _Bool) -> None:
        vectors = self._vectors[rows]
        height, width = vectors.shape[:2]
        signed = vectors.reshape(height, 4 * width) * self._signs
        np.copyto(signed.view(_FOUR), 0, where=background)
        pairs = signed.view(_PAIR).reshape(height, width, 2)
        for name, flow in self.found.items():
            np.copyto(flow[rows].view(_PAIR)[..., 0], pairs[..., _FLOWS.index(name)])


def _blocks(image: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield the rows of H x W x C in blocks."""
    rows = max(1, _BLOCK // max(1, image.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(image), rows))
