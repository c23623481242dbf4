"""Finds the shared libraries that a Blender misses, and names the Debian packages that have them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE

from ...aio import finish

_PACKAGES = {
    **dict.fromkeys(("libc", "libdl", "libm", "libpthread", "libresolv", "librt", "libutil"), "libc6"),
    **dict.fromkeys((f"lib{name}-2.0" for name in ("gio", "glib", "gmodule", "gobject", "gthread")), "libglib2.0-0"),
    **{name: name for name in ("libpython3.10", "libpython3.11", "libpython3.12", "libpython3.13", "libxml2")},
    "libGLU": "libglu1-mesa",
    "libGLdispatch": "libglvnd0",
    "libOpenCL": "ocl-icd-libopencl1",
    "libcrypto": "libssl3",
    "libfftw3": "libfftw3-double3",
    "libharfbuzz": "libharfbuzz0b",
    "libjack": "libjack-jackd2-0",
    "libvorbis": "libvorbis0a",
    "libz": "zlib1g",
}
"""The packages that do not follow Debian's rule for names."""


def debian_package(soname: str) -> str:
    """Return the Debian package of a shared library, such as libxi6 for libXi.so.6."""
    name, _, version = soname.partition(".so")
    version = version.lstrip(".")
    if name in _PACKAGES:
        return _PACKAGES[name]
    # Debian's rule is name and version, with a dash between two digits.
    name = name.lower().replace("_", "-")
    return f"{name}-{version}" if name[-1:].isdigit() and version else name + version


async def missing_libraries(binary: str) -> list[str]:
    """Return all shared libraries that a program or library cannot find, or none where there is no ldd to tell."""
    if (ldd := shutil.which("ldd")) is None:
        return []
    env = {**os.environ, "LC_ALL": "C"}  # in other languages its words are translated
    process = await asyncio.create_subprocess_exec(ldd, binary, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=env)
    try:
        async with asyncio.timeout(30.0):
            output, _ = await process.communicate()
    except TimeoutError:
        return []
    finally:
        if process.returncode is None:
            process.kill()
            await finish(process.wait())
    return re.findall(r"^\s*(\S+) => not found", output.decode(errors="replace"), re.MULTILINE)
