"""Whether the bpy module executes the Python in .blend files. An executable is told on its command line."""

from __future__ import annotations


def execute_scripts(allowed: bool) -> None:
    """Let Blender execute, or leave out, the drivers and text blocks of every file that is opened from now on.

    A script may forbid what is allowed here. It cannot allow what is forbidden.
    """
    import bpy
    from bpy.app import handlers

    @handlers.persistent  # type: ignore[misc,untyped-decorator,unused-ignore]
    def apply(*_: object) -> None:
        bpy.context.preferences.filepaths.use_scripts_auto_execute = allowed

    apply()
    handlers.load_factory_preferences_post.append(apply)  # again, as a script's read_factory_settings undoes it
    if not allowed:
        handlers.load_post.append(apply)
