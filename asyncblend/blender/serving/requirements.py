"""The packages that a worker needs inside Blender's Python: found, or asked of the host."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig

from ...wire.launch import Report

__all__ = ["find", "look"]

_PACKAGES = {"numpy": "numpy", "zmq": "pyzmq"}  # module -> distribution


def find(cache: str, report: str) -> None:
    """Make numpy and zmq importable, or end this process with a report for the host, which installs them.

    Args:
        cache: as `look` has it.
        report: file to write the report to.
    """
    found = look(cache)
    if found.packages is None:
        return
    found.write(report)
    print(f"asyncblend: Blender's Python {found.python} has no {' and no '.join(found.packages)}", flush=True)
    os._exit(1)


def look(cache: str) -> Report:
    """Make what is in the cache importable, and tell what is missing still.

    Args:
        cache: the folder with one folder of packages per kind of Python, which the host fills. It goes last on
            sys.path: what Blender brings along comes first.
    """
    folder = os.path.join(cache, f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}")
    if os.path.isdir(folder):
        sys.path.append(folder)
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    return Report(packages=missing or None, python=".".join(map(str, sys.version_info[:2])), folder=folder)
