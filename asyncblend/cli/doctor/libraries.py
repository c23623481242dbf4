"""Shared libraries that a Blender cannot find, and the Debian packages that have them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil

from ...aio import finish

__all__ = ["debian_package", "missing_libraries", "named_libraries"]

_LDD_SECONDS = 30.0

_PACKAGES = {
    **dict.fromkeys(("libc", "libdl", "libm", "libpthread", "libresolv", "librt", "libutil"), "libc6"),
    **dict.fromkeys(
        ("libgio-2.0", "libglib-2.0", "libgmodule-2.0", "libgobject-2.0", "libgthread-2.0"), "libglib2.0-0"
    ),
    "libGLU": "libglu1-mesa",
    "libGLdispatch": "libglvnd0",
    "libOpenCL": "ocl-icd-libopencl1",
    "libcrypto": "libssl3",
    "libfftw3": "libfftw3-double3",
    "libharfbuzz": "libharfbuzz0b",
    "libjack": "libjack-jackd2-0",
    "libpython3.10": "libpython3.10",
    "libpython3.11": "libpython3.11",
    "libpython3.12": "libpython3.12",
    "libpython3.13": "libpython3.13",
    "libvorbis": "libvorbis0a",
    "libxml2": "libxml2",
    "libz": "zlib1g",
}
"""Debian's packages that its naming rule does not give."""


def debian_package(soname: str) -> str:
    """The Debian package of a shared library, such as libxi6 for libXi.so.6."""
    name, _, version = soname.partition(".so")
    version = version.lstrip(".")
    if name in _PACKAGES:
        return _PACKAGES[name]
    # The rule: name and version, with a dash between two digits.
    name = name.lower().replace("_", "-")
    return f"{name}-{version}" if name[-1:].isdigit() and version else name + version


async def missing_libraries(binary: str) -> list[str]:
    """All shared libraries that a program or library cannot find, at once. None where there is no ldd to tell."""
    ldd = shutil.which("ldd")
    if ldd is None:
        return []
    process = await asyncio.create_subprocess_exec(
        ldd,
        binary,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},  # its words are translated
    )
    try:
        async with asyncio.timeout(_LDD_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return []
    finally:
        if process.returncode is None:
            process.kill()
            await finish(process.wait())
    return _not_found(output.decode(errors="replace"))


def _not_found(output: str) -> list[str]:
    return re.findall(r"^\s*(\S+) => not found", output, re.MULTILINE)


def named_libraries(log: str) -> list[str]:
    """The one library that the loader names when it gives up."""
    return re.findall(r"(lib\S+?\.so[.\d]*): cannot open shared object file", log)
