"""Ownership: whether code in a folder can be trusted, because nobody else can have put it there. Used by both sides."""

from __future__ import annotations

import os
import stat

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def why_untrusted(folder: str | os.PathLike[str], *above: str | os.PathLike[str]) -> str:
    """Return why code in a folder cannot be trusted: it is another user's, or others may write to it. "" if it can.

    Args:
        folder: The folder that has the code. What does not exist can be trusted.
        above: Folders that it lies in, which are ours too. Others may write to them if only owners may rename what is
            in them, as in /tmp.
    """
    for path in (folder, *above):
        try:
            states = (os.stat(path), os.lstat(path))  # of the folder, and of a link to it
        except OSError:
            continue
        for state in states:
            if state.st_uid not in (os.geteuid(), 0):
                return f"{os.fspath(path)} belongs to another user (number {state.st_uid}; this one is {os.geteuid()})"
        mode = states[0].st_mode
        if mode & _OTHERS and not (mode & stat.S_ISVTX and path is not folder):
            return f"other users may write to {os.fspath(path)} (its mode is {stat.S_IMODE(mode):o})"
    return ""
