"""Renders the cube as blendtorch's first version did: into a PNG file, which is read, pickled and published."""

import os
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import told  # type: ignore[import-not-found]

told.packages()
import bpy
import bpy_extras
import cube_scene  # type: ignore[import-not-found]
import numpy as np
import zmq

try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]

cube_scene.prepare()
scene, cube = cube_scene.scene, cube_scene.cube
scene.render.image_settings.file_format = "PNG"
scene.render.filepath = os.path.join(told.about["folder"], f"image_{told.about['id']}.png")
rng = np.random.default_rng()
publisher = zmq.Context().socket(zmq.PUB)
publisher.linger = 0
publisher.bind("tcp://127.0.0.1:*")
told.say(endpoint=publisher.get_string(zmq.LAST_ENDPOINT))


def read(path: str) -> Any:
    """Return an image file as height x width x 3 bytes. Blender itself reads it where its Python has no Pillow."""
    if Image is not None:
        return np.asarray(Image.open(path).convert("RGB"))
    image = bpy.data.images.load(path)
    image.colorspace_settings.name = "Non-Color"
    values = np.empty(image.size[1] * image.size[0] * 4, np.float32)
    image.pixels.foreach_get(values)
    pixels = values.reshape(image.size[1], image.size[0], 4)[::-1, :, :3]
    bpy.data.images.remove(image)
    return (pixels * 255 + 0.5).astype(np.uint8)


def corners() -> Any:
    """Return the corners of the cube, normalised to 0 to 1, as blendtorch's script had them."""
    camera = scene.camera
    points = [
        bpy_extras.object_utils.world_to_camera_view(scene, camera, cube.matrix_world @ vertex.co)[:2]
        for vertex in cube.data.vertices
    ]
    return np.array(points, np.float32)


def one(chosen: Any) -> None:
    cube_scene.choose(*chosen)
    cube_scene.turn(rng)
    bpy.ops.render.render(write_still=True)
    publisher.send_pyobj({"image": read(scene.render.filepath), "xy": corners(), "id": told.about["id"]})


told.loop(one)
