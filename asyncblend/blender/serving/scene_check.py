"""Finds what Blender renders wrongly without a word: missing files, drivers not executed, nodes that write files."""

from __future__ import annotations

import glob
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..capture.plan import compositor_tree

_FILES = {
    "libraries": ("library", "What is linked from them is not rendered"),
    "images": ("image", "What shows them is magenta or black"),
    "fonts": ("font", "Their texts have Blender's own font"),
    "cache_files": ("cache", "What they move or deform stands still"),
    "volumes": ("volume", "They are not rendered"),
    "movieclips": ("movie clip", "What shows them is empty"),
}
"""By name in `bpy.data`, what is read from a file, and what becomes of the scene without the file."""

_SEVERAL_FILES = {"TILED": r"<UDIM>|<UVTILE>", "SEQUENCE": r"\d+(?=\D*$)"}
"""By the source of an image that has several files, which part of their name differs."""

_NAMED = 5  # names in one text
_LONGEST = 6000  # bytes of one text as JSON: nine of them fit into the header of a message


def scene_warnings() -> list[str]:
    """Return what is wrong with the open scene: for each kind of defect one printable text, which says what to do."""
    import bpy

    try:
        found = [_missing_files(what, effect, getattr(bpy.data, kind, ())) for kind, (what, effect) in _FILES.items()]
        found += [_missing_data(), _file_outputs(bpy.context.scene), _not_executed()]
    except Exception as error:  # of a Blender whose data is unlike that of all known ones; it may render all the same
        found = [f"The scene could not be checked for what it lacks: {type(error).__name__}: {error}"]
    return [_shortened(_printable(text)) for text in found if text]


def _missing_files(what: str, effect: str, ids: Iterable[Any]) -> str:
    missing = [f"{one.name!r} ({_path(one)})" for one in ids if _is_missing(one)]
    if not missing:
        return ""
    return (
        f"Missing {what} files: {_listed(missing)}. {effect}. Put the files there, correct the paths in the scene, or "
        "pack the files into it (in Blender: File > External Data > Pack Resources)"
    )


def _is_missing(one: Any) -> bool:
    import bpy

    unused = not isinstance(one, bpy.types.Library) and one.users <= one.use_fake_user
    if unused or one.filepath in ("", "<builtin>") or getattr(one, "packed_file", None) is not None:
        return False
    source = getattr(one, "source", "FILE")
    if source in ("GENERATED", "VIEWER") or getattr(one, "is_dirty", False):
        return False  # its pixels are in memory
    path = _path(one)
    if os.path.exists(path):
        return False
    if (differing := _SEVERAL_FILES.get(source)) is None:
        return True
    folder, name = os.path.split(path)
    pattern = "*".join(map(glob.escape, re.split(differing, name)))
    return next(glob.iglob(os.path.join(glob.escape(folder), pattern)), None) is None


def _path(one: Any) -> str:
    import bpy

    path: str = bpy.path.abspath(one.filepath, library=one.library)
    return os.path.normpath(path)


def _missing_data() -> str:
    """Tell of what is linked from a library that is there, but does not have it. Blender 3.4 cannot tell."""
    import bpy

    there = [library for library in bpy.data.libraries if not _is_missing(library)]
    missing = [
        f"{type(one).__name__.lower()} {one.name!r} ({_path(library)})"
        for library in there
        for one in library.users_id
        if getattr(one, "is_missing", False)
    ]
    if not missing:
        return ""
    return (
        f"Missing from their libraries: {_listed(missing)}. They are not rendered. Give them their old names in the "
        "library, or link them again"
    )


def _file_outputs(scene: Any) -> str:
    """Tell of nodes that write files elsewhere than in this Blender's own temporary folder."""
    import bpy

    own = os.path.realpath(tempfile.gettempdir())
    found, attribute = [], ""
    for node in _output_nodes(compositor_tree(scene)):
        attribute = "directory" if hasattr(node, "directory") else "base_path"  # renamed in Blender 5.0
        folder = os.path.realpath(bpy.path.abspath(getattr(node, attribute)))
        if os.path.commonpath([own, folder]) != own:
            found.append(f"{node.name!r} ({folder})")
    if not found:
        return ""
    return (
        f"File Output nodes of the compositor write files at each render: {_listed(found)}. All Blenders write the "
        "same files, and Blender does not tell of a file that it cannot write. Before bl.serve, mute the nodes "
        f"(node.mute = True), or give them a folder of each Blender's own: node.{attribute} = tempfile.mkdtemp()"
    )


def _output_nodes(tree: Any) -> Iterator[Any]:
    for node in () if tree is None else tree.nodes:
        if node.mute:
            continue
        if node.bl_idname == "CompositorNodeOutputFile":
            yield node
        elif node.bl_idname == "CompositorNodeGroup":
            yield from _output_nodes(node.node_tree)


def _not_executed() -> str:
    import bpy

    if not bpy.app.autoexec_fail:
        return ""
    return (
        f"Blender did not execute the Python in the .blend file: {bpy.app.autoexec_fail_message}. What depends on it "
        "stands still. If you trust the file, set autoexec=True, which is the default, and do not exclude its folder "
        "in Blender's preferences; without a stream, start Blender with --enable-autoexec"
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f", and {more} more" if more > 0 else "")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _shortened(text: str) -> str:
    short = text
    while len(json.dumps(short)) > _LONGEST:  # one character may take twelve bytes
        short = short[: len(short) * 9 // 10]
    return short if short == text else f"{short} [...]"
