"""The image of object ids to which labels belong: from a `render` of the caller, or rendered for that alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ..capture.ids_alone import ids_alone
from ..capture.render import render
from ..scene.lens import Frame


def _advice(wanted: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in wanted)
    return (
        f"give it the result of bl.render((..., {names})) as it is, or leave rendered out, and annotate renders the ids"
    )


class Entry(NamedTuple):
    """What the table "instances" tells of an object."""

    id: int
    class_id: int
    class_name: str


class RenderedIds(NamedTuple):
    """An image of object ids, and their table."""

    mask: npt.NDArray[np.integer[Any]]  # H x W ids, 0 for the background
    entries: dict[str, Entry]  # by the object's name
    depth: npt.NDArray[Any] | None  # H x W, along the camera's axis, where it was asked for


def ids_from(rendered: Any, frame: Frame, wanted: Sequence[str] = ("instance",)) -> RenderedIds:
    """Return the ids in `rendered`, and the depth if it is wanted, too.

    Raises:
        ConfigError: It is no result of `render` with what is wanted, or its image has another size than the frame.
    """
    advice = _advice(wanted)
    if not isinstance(rendered, Mapping):
        raise ConfigError(f"rendered must be a dict, got {type(rendered).__name__}: {advice}")
    if missing := [name for name in (*wanted, "instances") if name not in rendered]:
        raise ConfigError(f"rendered has no {' and no '.join(map(repr, missing))}: {advice}")
    mask = np.asarray(rendered["instance"])
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise ConfigError(f"rendered['instance'] must be H x W ids, got shape {mask.shape}, {mask.dtype}: {advice}")
    if mask.shape != (frame.height, frame.width):
        raise ConfigError(
            f"rendered['instance'] is {mask.shape[1]} x {mask.shape[0]} pixels, but the scene is now set to "
            f"{frame.width} x {frame.height}: annotate before you change the resolution or the border"
        )
    try:
        rows = rendered["instances"]
        entries = {row["name"]: Entry(int(row["id"]), int(row["class_id"]), row["class_name"]) for row in rows}
    except (TypeError, ValueError, KeyError):
        raise ConfigError(f"rendered['instances'] is not the table of ids that render returned: {advice}") from None
    if len(entries) < len(rows):
        raise ConfigError(
            f"rendered['instances'] has a name twice, as the result of annotate(..., instances=True) has: {advice}"
        )
    depth = np.asarray(rendered["depth"]) if "depth" in wanted else None
    if depth is not None and depth.shape != mask.shape:
        raise ConfigError(f"rendered['depth'] must be as large as rendered['instance'], got {depth.shape}: {advice}")
    return RenderedIds(mask, entries, depth)


def render_ids(frame: Frame, wanted: Sequence[str] = ("instance",)) -> RenderedIds:
    """Render nothing but ids, and the depth if it is wanted, too, and return them.

    Cycles renders them, whatever the scene's engine, with one sample in each pixel's centre, without motion blur and
    depth of field. All settings are put back.
    """
    import bpy

    with ids_alone(bpy.context.scene, bpy.context.view_layer):
        return ids_from(render(wanted, color="linear"), frame, wanted)  # "linear": no view transform
