"""Prepares Blender for a render with labels and passes, and turns what it rendered into the result."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.camera import Camera
from .camera_motion import watching_camera
from .object_ids import assigned_ids
from .passes import Pass, is_object_index, passes_enabled, passes_named
from .pixel_labels import PixelLabels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .camera_motion import CameraMotion
    from .object_ids import ObjectIds

__all__ = ["LABELS", "LabelSession", "Request", "label_session", "parse_request"]

LABELS: dict[str, tuple[str, ...]] = {
    "depth": ("depth",),
    "distance": ("depth",),
    "normal": ("depth", "normal"),
    "normal_camera": ("depth", "normal"),
    "instance": ("object_index",),
    "semantic": ("object_index",),
    "flow_forward": ("depth", "vector"),
    "flow_backward": ("depth", "vector"),
}
"""By the name of a label the friendly names of the passes that it is made from. ("albedo" is a pass as it is.)"""

_WITH_IDS = {"instance", "semantic"}
_FLOWS = {"flow_forward", "flow_backward"}
_BACKGROUND_DEPTH = 1e10  # of Cycles and Workbench


class Request(NamedTuple):
    """What the user asked for, and what Blender has to render for it."""

    names: list[str]
    """Labels and passes in the order in which they were asked for."""
    passes: list[Pass]
    """Blender's passes."""
    reasons: dict[str, str]
    """By the name of a pass the label or pass for which it is needed."""


def parse_request(names: Sequence[str]) -> Request:
    """Return what has to be rendered for labels and passes with these names.

    Raises:
        ConfigError: `names` is not a sequence of names, or has the name of the image itself.
    """
    asked = [wanted.name for wanted in passes_named(names)]
    reasons: dict[str, str] = {}
    for name in asked:
        for need in LABELS.get(name, (name,)):
            reasons.setdefault(need, name)
    return Request(asked, passes_named(list(reasons)), reasons)


class LabelSession(NamedTuple):
    """One render with labels and passes."""

    request: Request
    scene: Any
    object_ids: ObjectIds | None
    """For the labels with ids."""
    motion: CameraMotion | None
    """For flow."""

    def values(self, passes: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Return what was asked for.

        Args:
            passes: The passes of the request, by name: H x W x C, top row first. They may be overwritten later.

        Returns:
            New arrays, contiguous and writable, and with ids also their table, as "instances".

        Raises:
            ConfigError: Cycles left the camera's movement out of the flow.
        """
        if self.motion is not None:
            self.motion.check()
        labels = PixelLabels(passes, _background_depth(self.scene), Camera(), self.object_ids)
        found: dict[str, Any] = {}
        for name in self.request.names:
            if name in LABELS:
                found[name] = getattr(labels, name)
            elif self.object_ids is not None and is_object_index(name):
                found[name] = self.object_ids.user_index(passes[name][..., 0])
            else:
                array = passes[name]
                found[name] = np.array(array[..., 0] if array.shape[2] == 1 else array, np.float32, order="C")
        if self.object_ids is not None:
            found["instances"] = labels.ids_and_table[1]
        return found


@contextlib.contextmanager
def label_session(request: Request, scene: Any, view_layer: Any) -> Iterator[LabelSession]:
    """Have a render of the scene give the passes of the request within the `with` block.

    Raises:
        ConfigError: Flow is asked for together with motion blur; or as for `ObjectIds`.
    """
    ids = motion = None
    with contextlib.ExitStack() as stack:
        if flows := _FLOWS & set(request.names):
            _check_motion_blur(scene, view_layer, min(flows))
            motion = stack.enter_context(watching_camera(min(flows)))
        if _WITH_IDS & set(request.names):
            ids = stack.enter_context(assigned_ids(view_layer))
        stack.enter_context(passes_enabled(view_layer, request.passes))
        yield LabelSession(request, scene, ids, motion)


def _check_motion_blur(scene: Any, view_layer: Any, name: str) -> None:
    if scene.render.use_motion_blur and getattr(view_layer, "use_motion_blur", True):
        raise ConfigError(
            f"pass {name!r}: Blender gives no motion vectors together with motion blur: set "
            "scene.render.use_motion_blur = False"
        )


def _background_depth(scene: Any) -> float:
    """Return the depth from which on a pixel counts as background."""
    if scene.render.engine in ("CYCLES", "BLENDER_WORKBENCH") or scene.camera is None:
        return _BACKGROUND_DEPTH
    # EEVEE gives the background the depth of the far clipping plane, or a little less: 99.9977 for 100.
    return min(_BACKGROUND_DEPTH, float(scene.camera.data.clip_end) * (1 - 1e-4))
