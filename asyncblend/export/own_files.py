"""The list of an export's files, by which a later export replaces exactly these, and leaves all others.

    .asyncblend-export.json    {"entries": ["images/", "images/000000012.png", ...], "crc32": "04a7c2f1"}

A name that ends with a slash is a folder's. The list itself is not in it, but is the export's, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..recording.checksums import Damaged, sealed, unsealed
from ..recording.places import open_file

LIST = ".asyncblend-export.json"
"""The name of the list. Readers of the formats pass over hidden files."""


def write_list(folder: Path) -> None:
    """Write the list of all that is in a folder into it."""
    (folder / LIST).write_bytes(sealed({"entries": sorted(_entries(folder))}))


def others_in(folder: Path) -> Iterator[str]:
    """Yield what is in a folder, but not in its list: without a list, or with a damaged one, all of it.

    Of a folder that is not in the list there is only its own name. Links are not followed.
    """
    return _others(folder, _listed(folder))


def _others(folder: Path, own: frozenset[str], prefix: str = "") -> Iterator[str]:
    for entry in list(os.scandir(folder)):  # a list, because the caller may move what is yielded
        name, is_folder = f"{prefix}{entry.name}", entry.is_dir(follow_symlinks=False)
        if is_folder and f"{name}/" in own:
            yield from _others(folder / entry.name, own, f"{name}/")
        elif is_folder or name not in own:
            yield name


def _listed(folder: Path) -> frozenset[str]:
    """Return the entries of a folder's list, and the list itself."""
    try:
        with open_file(folder / LIST) as file:
            entries = unsealed(file.read(-1), checked=True).get("entries")
    except (FileNotFoundError, Damaged):
        entries = None
    return frozenset([LIST, *(name for name in entries or () if isinstance(name, str))])


def _entries(folder: Path, prefix: str = "") -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield f"{prefix}{entry.name}/"
            yield from _entries(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"
