"""The packages that a worker needs inside Blender's Python: found, or requested from the host."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig

from ...wire.launch import Report
from ...wire.ownership import why_untrusted

_PACKAGES = {"numpy": "numpy", "zmq": "pyzmq"}  # module -> distribution


def find(cache: str, report: str) -> None:
    """Call `look`. If a package is missing, write a report for the host, which installs it, and end this process."""
    found = look(cache)
    if found.packages is None:
        return
    found.write(report)
    print(f"asyncblend: Blender's Python {found.python} has no {' and no '.join(found.packages)}", flush=True)
    os._exit(1)


def look(cache: str) -> Report:
    """Make the packages in the cache importable, and return which are still missing.

    Args:
        cache: The folder that has one folder of packages per kind of Python, filled by the host. It goes last on
            sys.path, so that a package which Blender has itself is preferred. A folder that somebody else may have
            written to is left out; the host says so when it is to install into it.
    """
    folder = os.path.join(cache, f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}")
    if os.path.isdir(folder) and not why_untrusted(folder, cache, os.path.dirname(cache)):
        sys.path.append(folder)
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    return Report(packages=missing or None, python=".".join(map(str, sys.version_info[:2])), folder=folder)
