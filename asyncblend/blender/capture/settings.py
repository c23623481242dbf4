"""Settings of Blender that a render needs, changed for as long as it takes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def changed(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Change settings, each given as (owner, name, value), and put them back at the end of the `with` block.

    They are changed, and put back, in this order, because some settings decide which values others may have. Settings
    that this version of Blender lacks are skipped.
    """
    wanted = [(owner, name, value) for owner, name, value in changes if hasattr(owner, name)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        _assign(wanted)
        yield
    finally:
        with contextlib.ExitStack() as back:  # each one, also after an owner that a handler has removed
            for setting in reversed(before):
                back.callback(_assign, [setting])


def _assign(values: Iterable[tuple[Any, str, Any]]) -> None:
    for owner, name, value in values:
        # Even the assignment of an equal value would make Blender evaluate the scene again. What Blender itself reads as
        # no value (a codec for 16 bits, where the depth is 32 now) cannot be set.
        if value != "" and getattr(owner, name) != value:
            _set(owner, name, value)


def _set(owner: Any, name: str, value: Any) -> None:
    """Set a property, and call none of the functions that Cycles has for the moment when one of its switches changes.

    Those for `use_denoising` and for some passes tell Blender's dependency graph of a change, and rigid bodies jump back
    to where they were in the frame before.
    """
    import bpy

    if isinstance(value, bool) and isinstance(owner, bpy.types.PropertyGroup):
        # From Blender 5.0 on, an add-on's properties are no longer items of the group itself.
        items = owner.bl_system_properties_get(do_create=True) if hasattr(owner, "bl_system_properties_get") else owner
        items[name] = value
    else:
        setattr(owner, name, value)
