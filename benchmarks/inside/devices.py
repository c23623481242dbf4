"""Says what this Blender can render on: first the devices that `gpus` gives to Cycles, then what draws for EEVEE."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import told  # type: ignore[import-not-found]

told.asyncblend_too()
import bpy

from asyncblend.blender.serving.devices import render_on
from asyncblend.errors import ConfigError

preferences = bpy.context.preferences.addons["cycles"].preferences
scene = bpy.context.scene
try:
    render_on(None, gpu=True)
except ConfigError:
    told.say(cycles="")
else:
    names = ", ".join(sorted({device.name for device in preferences.devices if device.use}))
    told.say(cycles=f"{preferences.compute_device_type} ({names})")

for name in ("BLENDER_EEVEE_NEXT", "BLENDER_EEVEE"):  # the first is its name in 4.2 to 4.5
    try:
        scene.render.engine = eevee = name
        break
    except TypeError:
        continue
# Workbench is drawn by the same, and has few shaders. A Blender that cannot draw without a display dies here.
scene.render.engine = "BLENDER_WORKBENCH"
scene.render.resolution_x, scene.render.resolution_y = 64, 48
bpy.ops.render.render(write_still=False)
import gpu

told.say(eevee=eevee, renderer=gpu.platform.renderer_get(), software=gpu.platform.device_type_get() == "SOFTWARE")
