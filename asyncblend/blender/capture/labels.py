"""labels: which there are, which of Blender's passes each needs, and what a render has to be like for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..scene.camera import Camera
from . import motion
from . import object_ids as instances
from .passes import Pass, enabled, wanted
from .pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["LABELS", "Request", "Session", "request", "session"]

_Float = npt.NDArray[np.float32]

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
"""By name, the passes that a label is made of, by their friendly names. ("albedo" is a pass as it is.)"""

_BY_ID = {"instance", "semantic"}
_FLOWS = {"flow_forward", "flow_backward"}
_NOTHING = 1e10  # the depth where there is nothing, in Cycles and Workbench


class Request(NamedTuple):
    """What was asked for, and what Blender has to render for it."""

    names: list[str]
    """Labels and passes, in the order in which they were asked for."""
    passes: list[Pass]
    """Of Blender's."""
    reasons: dict[str, str]
    """By the name of a pass, what was asked for that needs it."""


def request(names: Sequence[str]) -> Request:
    """What is to be rendered for labels and passes of these names.

    Raises:
        ConfigError: no sequence of names, or the name of the image itself.
    """
    asked = [each.name for each in wanted(names)]
    reasons: dict[str, str] = {}
    for name in asked:
        for need in LABELS.get(name, (name,)):
            reasons.setdefault(need, name)
    return Request(asked, wanted(list(reasons)), reasons)


class Session:
    """One render that gives labels."""

    def __init__(self, asked: Request, scene: Any) -> None:
        self._asked = asked
        self._scene = scene
        self._numbers: instances.Numbers | None = None
        self._lenses: motion.Lenses | None = None

    def values(self, passes: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """What was asked for, from the passes of the request.

        Args:
            passes: by name H x W x C, top row first. They are not kept, and may be overwritten later.

        Returns:
            New arrays, contiguous and writable; with ids the table too, under "instances".

        Raises:
            ConfigError: Cycles leaves something out of the flow that matters here.
        """
        if self._lenses is not None:
            self._lenses.check()
        pixels = Pixels(passes, _nothing(self._scene), Camera(), self._numbers)
        found: dict[str, Any] = {}
        for name in self._asked.names:
            if name in LABELS:
                found[name] = getattr(pixels, name)
            elif self._numbers is not None and _is_object_index(name):
                found[name] = self._numbers.user_index(passes[name][..., 0])
            else:
                found[name] = _copy(passes[name])
        if self._numbers is not None:
            ids, found["instances"] = pixels.ids
            instances.remember(ids, found["instances"], self._scene.camera)
        return found


@contextlib.contextmanager
def session(asked: Request, scene: Any, view_layer: Any) -> Iterator[Session]:
    """Meanwhile, a render of the scene gives the passes that were asked for; afterwards all is as before.

    Raises:
        ConfigError: flow together with motion blur; or as for `instances.numbered`.
    """
    made = Session(asked, scene)
    with contextlib.ExitStack() as stack:
        if flows := _FLOWS & set(asked.names):
            _check_motion_blur(scene, view_layer, min(flows))
            made._lenses = stack.enter_context(motion.lenses(min(flows)))
        if _BY_ID & set(asked.names):
            made._numbers = stack.enter_context(instances.numbered(view_layer))
        stack.enter_context(enabled(view_layer, asked.passes))
        yield made


def _check_motion_blur(scene: Any, view_layer: Any, name: str) -> None:
    if scene.render.use_motion_blur and getattr(view_layer, "use_motion_blur", True):
        raise ConfigError(
            f"pass {name!r}: Blender gives no motion vectors together with motion blur: set "
            "scene.render.use_motion_blur = False"
        )


def _is_object_index(name: str) -> bool:
    return "IndexOB" in wanted([name])[0].own


def _nothing(scene: Any) -> float:
    """From which depth on there is nothing."""
    if scene.render.engine in ("CYCLES", "BLENDER_WORKBENCH") or scene.camera is None:
        return _NOTHING
    # EEVEE's depth of the background is that of the far clipping plane, a little less: 99.9977 for 100
    return min(_NOTHING, float(scene.camera.data.clip_end) * (1 - 1e-4))


def _copy(array: npt.NDArray[Any]) -> _Float:
    """H x W x C, or H x W for one channel."""
    return np.array(array[..., 0] if array.shape[2] == 1 else array, np.float32, order="C")
