"""Names the machine and the versions that figures belong to."""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from asyncblend import __version__
from asyncblend.fleet.discovery import find_blender
from asyncblend.fleet.pythons import module_of

__all__ = ["blender_name", "machine", "own_view"]


def machine() -> dict[str, str]:
    """Return what is needed to understand figures: date, processor, system and versions, by name."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "asyncblend": __version__,
        "Python": platform.python_version(),
        **{name: _version(name) for name in ("bpy", "torch", "numpy", "pyzmq", "uvloop")},
    }


def blender_name(blender: str | None) -> str:
    """Return the name and version of the Blender that the stream's option `blender` chooses."""
    found = find_blender(blender)
    if found.kind == "module" and found.path != sys.executable:
        return f"bpy {asyncio.run(module_of(found.path)).version}"
    if found.kind == "module":
        return f"bpy {_version('bpy')}"
    done = subprocess.run([found.path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return next((line.strip() for line in done.stdout.splitlines() if line.startswith("Blender")), "Blender")


def own_view(blender: str | None) -> str:
    """Return the view transform that this Blender has by default: AgX, or Filmic before Blender 4.0."""
    version = re.search(r"(\d+)\.", blender_name(blender))
    return "Filmic" if version and int(version[1]) < 4 else "AgX"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
