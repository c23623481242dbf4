"""The scene script of `asyncblend doctor`: says what this Blender is, and renders one small frame on the clock."""

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
    """Return what `scene.render.engine` may be set to. Only Blender's error message lists add-ons' engines too."""
    try:
        scene.render.engine = "?"
    except TypeError as error:
        return re.findall(r"'(\w+)'", str(error).partition("not found in")[2])
    return [scene.render.engine]


def has_egl() -> bool:
    """Return whether EEVEE and Workbench have the library that they need to render without a screen."""
    try:
        return sys.platform != "linux" or bool(ctypes.CDLL("libEGL.so.1"))
    except OSError:
        return False


def sample(task: bl.Task) -> dict[str, Any]:
    """Return a small frame, how long it took, and what there is to know of this Blender."""
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
        # Whether Cycles was built with OpenImageDenoise; None if it does not say.
        "denoiser": getattr(sys.modules.get("_cycles"), "with_openimagedenoise", None),
        "egl": has_egl(),
    }


if __name__ == "__main__":
    if "bpy" not in sys.modules:  # a fake Blender may run in a Python that has the module, but has not loaded it
        sys.exit("this is no Blender: it has no module bpy")
    bl.serve(sample)
