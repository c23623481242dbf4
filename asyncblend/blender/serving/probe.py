"""The scene script of `asyncblend doctor`: tells what this Blender is, and renders one small frame on the clock."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
import time
from typing import Any

import numpy as np
import zmq

from asyncblend import blender as bl


def engines(scene: Any) -> list[str]:
    """What `scene.render.engine` may be set to. Only Blender's error message lists add-ons' engines too."""
    try:
        scene.render.engine = "?"
    except TypeError as error:
        return re.findall(r"'(\w+)'", str(error).partition("not found in")[2])
    return [scene.render.engine]


def has_denoiser() -> bool | None:
    """Whether Cycles was built with OpenImageDenoise. None: it does not say."""
    try:
        import _cycles
    except ImportError:
        return None
    built: bool | None = getattr(_cycles, "with_openimagedenoise", None)
    return built


def has_egl() -> bool:
    """Whether EEVEE and Workbench could render without a screen, as far as a library decides it."""
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return True


def sample(task: bl.Task) -> dict[str, Any]:
    """A small frame, how long it took, and all there is to tell."""
    import bpy

    scene = bpy.context.scene
    available = engines(scene)
    if "CYCLES" not in available:
        raise RuntimeError(f"this Blender has no Cycles, only {', '.join(available)}")
    scene.render.engine = "CYCLES"
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 64, 48, 100
    scene.cycles.samples, scene.cycles.use_denoising = 1, False
    bl.render()  # the first one loads kernels
    start = time.perf_counter()
    image = bl.render()["image"]
    return {
        "image": image,
        "seconds": time.perf_counter() - start,
        "blender": bpy.app.version_string,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyzmq": zmq.__version__,
        "pyzmq_file": zmq.__file__,
        "engines": available,
        "denoiser": has_denoiser(),
        "egl": has_egl(),
    }


if __name__ == "__main__":
    if "bpy" not in sys.modules:  # a fake one may run in a Python that has the module, but has not loaded it
        sys.exit("this is no Blender: it has no module bpy")
    bl.serve(sample)
