"""Prepares Blender for a render with labels and passes, and turns what it rendered into the result."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.camera import Camera
from .camera_motion import checked_camera
from .object_ids import assigned_ids
from .passes import Pass, is_object_index, passes_enabled, passes_named, unavailable
from .pixel_labels import pixel_labels, semantic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from .object_ids import ObjectIds

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

WITH_IDS = {"instance", "semantic"}
"""The labels that show ids of objects. Only Cycles has the pass for them."""

_OF_FIRST_SAMPLE = {"Depth", "IndexOB", "IndexMA"}  # Blender's own names of the passes that hold one sample
_FLOWS = {"flow_forward", "flow_backward"}
_BACKGROUND_DEPTH = 1e10  # of Cycles and Workbench


class LabelSession(NamedTuple):
    """One render with labels and passes."""

    names: list[str]  # labels and passes in the order in which they were asked for
    passes: list[Pass]  # what Blender has to render for them
    reasons: dict[str, str]  # by the name of a pass the label or pass for which it is needed
    scene: Any
    object_ids: ObjectIds | None  # for the labels with ids

    def own_names(self, available: Collection[str]) -> dict[str, str]:
        """Return Blender's own names of the passes, by their names. Raise ConfigError if one is not available."""
        found = {}
        for wanted in self.passes:
            own = next((own for own in wanted.own_names if own in available), None)
            if own is None:
                raise unavailable(self.reasons[wanted.name], wanted, self.scene.render.engine, available, LABELS)
            found[wanted.name] = own
        return found

    def values(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Return what was asked for, as new arrays, and with ids also their table, as "instances".

        `arrays` are the passes by name: H x W x C, top row first. They may be overwritten later.
        """
        labels: dict[str, Any] = {**pixel_labels(self.names, arrays, _background_depth(self.scene), Camera())}
        table: list[dict[str, Any]] = []
        if self.object_ids is not None:
            ids, table = self.object_ids.read(arrays["object_index"][..., 0])
            labels["instance"] = ids
            if "semantic" in self.names:
                labels["semantic"] = semantic(ids, table)
        found: dict[str, Any] = {}
        for name in self.names:
            if name in LABELS:
                found[name] = labels[name]
            elif self.object_ids is not None and is_object_index(name):
                found[name] = self.object_ids.user_index(arrays[name][..., 0])
            else:
                array = arrays[name]
                found[name] = np.array(array[..., 0] if array.shape[2] == 1 else array, np.float32, order="C")
        if self.object_ids is not None:
            found["instances"] = table
        return found


@contextlib.contextmanager
def label_session(names: Sequence[str], scene: Any, view_layer: Any) -> Iterator[LabelSession]:
    """Have a render of the scene give labels and passes within the `with` block. For the errors see `render`."""
    asked = [wanted.name for wanted in passes_named(names)]
    reasons: dict[str, str] = {}
    for name in asked:
        for need in LABELS.get(name, (name,)):
            reasons.setdefault(need, name)
    passes, ids = passes_named(list(reasons)), None
    _check_first_sample(scene, passes, reasons)
    with contextlib.ExitStack() as stack:
        if flows := _FLOWS & set(asked):
            if scene.render.use_motion_blur and getattr(view_layer, "use_motion_blur", True):
                raise ConfigError(
                    f"pass {min(flows)!r}: Blender gives no motion vectors together with motion blur: set "
                    "scene.render.use_motion_blur = False"
                )
            stack.enter_context(checked_camera(min(flows)))
        if WITH_IDS & set(asked):
            ids = stack.enter_context(assigned_ids(view_layer))
        stack.enter_context(passes_enabled(view_layer, passes))
        yield LabelSession(asked, passes, reasons, scene, ids)


def _check_first_sample(scene: Any, passes: Sequence[Pass], reasons: Mapping[str, str]) -> None:
    """Raise ConfigError if Cycles leaves out the sample with which it writes depths and indices. They would be 0."""
    if scene.render.engine != "CYCLES":
        return
    cycles = scene.cycles
    if not cycles.sample_offset or not getattr(cycles, "use_sample_subset", True):
        return
    if wanted := next((one for one in passes if _OF_FIRST_SAMPLE.intersection(one.own_names)), None):
        raise ConfigError(
            f"pass {reasons[wanted.name]!r}: Cycles writes it with the first sample, which scene.cycles.sample_offset = "
            f"{cycles.sample_offset} leaves out: set it to 0"
        )


def _background_depth(scene: Any) -> float:
    if scene.render.engine in ("CYCLES", "BLENDER_WORKBENCH") or scene.camera is None:
        return _BACKGROUND_DEPTH
    # EEVEE gives the background the depth of the far clipping plane, or a little less: 99.9977 for 100. In perspective it
    # comes out of a buffer whose steps at the far plane are the larger, the nearer the near plane is.
    camera = scene.camera.data
    far, ratio = float(camera.clip_end), float(camera.clip_end / camera.clip_start)
    return min(_BACKGROUND_DEPTH, far * (1 - 1e-4 - (2**-23 * ratio if camera.type == "PERSP" else 0)))
