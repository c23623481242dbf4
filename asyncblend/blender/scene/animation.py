"""What the animation of a datablock sets, in every Blender: drivers, the action, and the strips of the NLA editor."""

from __future__ import annotations

from typing import Any


def is_animated(block: Any, path: str) -> bool:
    """Whether a driver, an action or a strip sets the property with this data path, such as "location"."""
    animation = block.animation_data
    if animation is None:
        return False
    tracks = animation.nla_tracks if animation.use_nla else ()
    solo = any(track.is_solo for track in tracks)
    playing = [track for track in tracks if (track.is_solo if solo else not track.mute)]
    strips = [strip for track in playing for strip in track.strips]  # also muted ones, some of which set a value still
    groups = [animation.drivers, *(curves for owner in (animation, *strips) for curves in _curves_of(owner))]
    return any(curve.data_path == path and not curve.mute for group in groups for curve in group)


def _curves_of(owner: Any) -> list[Any]:
    """Return the groups of curves that animation data, or a strip, has of its action. From Blender 4.4 on it has slots."""
    action = owner.action
    if action is None or not hasattr(action, "layers"):
        return [] if action is None else [action.fcurves]
    strips = [strip for layer in action.layers for strip in layer.strips]
    bags = [strip.channelbag(owner.action_slot) for strip in strips] if owner.action_slot is not None else []
    return [bag.fcurves for bag in bags if bag is not None]
