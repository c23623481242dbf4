"""Layout: which views there are, and where, for what the frames have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from ..pictures.shown import LABELS, Shown
from ..stream.frame import Frame
from .activity import LOG, RATE, SHARE, STATES
from .entities import CAMERA, IMAGE, MASKS

_MARKS = ("boxes", "keypoints", "skeletons", "points")
_NOT_IN_SPACE = [f"- {CAMERA}/{name}/**" for name in (*LABELS, "masks", *_MARKS)]
_OPAQUE = 0.35  # how opaque the masks are on the image
_AWAY = 8.0  # metres from the camera to what it looks at, if nobody knows
_BACK, _ASIDE = 1.15, 0.6  # where one stands: of the camera's distance; radians around the vertical
_LEGEND = rrb.PlotLegend(corner=rrb.Corner2D.LeftTop)
_WHOLE = rrb.ScalarAxis(range=(0, 1), zoom_lock=True)


class Eye(NamedTuple):
    """Where somebody stands who looks at the scene, and at what, in the world."""

    position: tuple[float, ...]
    target: tuple[float, ...]


def eye_for(frame: Frame) -> Eye | None:
    """Return where to stand for the scene of a frame: behind its camera and beside it. None if it has no camera."""
    shown = Shown(frame)
    if shown.view is None:
        return None
    camera_to_world = np.linalg.inv(shown.view.world_to_camera)
    camera, forward = camera_to_world[:3, 3], camera_to_world[:3, 2]
    corners = [thing.corners for thing in shown.things if len(thing.corners)]
    away = float(np.linalg.norm(np.mean(np.concatenate(corners), axis=0) - camera)) if corners else _AWAY
    target = camera + away * forward
    turn = np.array([[np.cos(_ASIDE), -np.sin(_ASIDE), 0], [np.sin(_ASIDE), np.cos(_ASIDE), 0], [0, 0, 1]])
    position = target + _BACK * turn @ (camera - target)
    return Eye(tuple(position.tolist()), tuple(target.tolist())) if np.isfinite(position).all() else None


def layout(paths: Collection[str], *, live: bool, eye: Eye | None) -> Any:
    """Return a blueprint.

    Args:
        paths: The entities of the frames so far.
        live: Whether there is a stream, which has counts, states and a log.
        eye: From where the scene is seen at first. None: rerun chooses.
    """
    left: list[Any] = [_annotated(paths)] if IMAGE in paths else []
    tiles = [
        rrb.Spatial2DView(origin=path, contents=["$origin"], name=path.rpartition("/")[2].replace("_", " "))
        for path in paths
        if path.startswith("pictures/") or path.removeprefix(f"{CAMERA}/") in LABELS
    ]
    if tiles:
        left.append(rrb.Grid(*tiles, grid_columns=3))
    values = rrb.TextDocumentView(origin="values", name="values")
    right: list[Any] = [rrb.Tabs(rrb.TextLogView(origin=LOG, name="log"), values) if live else values]
    shares = [2]
    if live:
        rate = rrb.TimeSeriesView(origin=RATE, name="frames a second", plot_legend=_LEGEND)
        share = rrb.TimeSeriesView(origin=SHARE, name="share", axis_y=_WHOLE, plot_legend=_LEGEND)
        right[:0] = [rrb.Horizontal(rate, share), rrb.StateTimelineView(origin=STATES, name="Blenders")]
        shares[:0] = [2, 3]
    if {"world/points", "world/boxes"} & {*paths}:
        controls = eye and rrb.EyeControls3D(position=eye.position, look_target=eye.target, eye_up=(0, 0, 1))
        contents = ["$origin/**", *_NOT_IN_SPACE]
        right.insert(0, rrb.Spatial3DView(origin="world", contents=contents, name="scene", eye_controls=controls))
        shares.insert(0, 6)
    columns = [rrb.Vertical(*left, row_shares=[3, 2][: len(left)])] if left else []
    return rrb.Blueprint(
        rrb.Horizontal(*columns, rrb.Vertical(*right, row_shares=shares)),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(state="collapsed", timeline="frame"),
        auto_views=False,
        auto_layout=False,
    )


def _annotated(paths: Collection[str]) -> Any:
    contents = [f"{CAMERA}/{name}/**" for name in ("image", "masks", *_MARKS)]
    opacity = {MASKS: rr.SegmentationImage.from_fields(opacity=_OPAQUE)} if MASKS in paths else None
    return rrb.Spatial2DView(origin=CAMERA, contents=contents, name="image", overrides=opacity)
