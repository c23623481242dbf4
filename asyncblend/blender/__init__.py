"""What a scene script uses inside Blender: `from asyncblend import blender as bl`.

It needs Python 3.10 and numpy, and in a fleet pyzmq. It imports without bpy, so that scripts can be checked and tested
anywhere. Names are loaded at their first use, because the code that starts a Blender runs before numpy is known to exist.

- `serving/`: `bl.serve`, `bl.Task` and `bl.Environment`: the Blender end of a fleet, which asks the host for samples and
  sends frames.
- `capture/`: `bl.render`, `bl.last_render` and `bl.RenderInfo`: the image and the labels of each pixel.
- `labels/`: `bl.annotate` and `bl.box_of`: labels of objects, to the image of a `bl.render`; `bl.surface_keypoints` and
  `bl.mesh_of`.
- `scene/`: `bl.Camera`, `bl.load_model` and `bl.model_files`, and what places objects and backgrounds.
- `randomise.py`: `bl.randomise`: random poses, materials, lights, skies, cameras and backgrounds.

`labels` builds on `capture`, and these two and `randomise` build on `scene`. `serving` needs none of them.
"""

from typing import TYPE_CHECKING

from .._lazy import Load, lazy

if TYPE_CHECKING:
    from . import randomise as randomise
    from .capture.render import RenderInfo as RenderInfo
    from .capture.render import last_render as last_render
    from .capture.render import render as render
    from .labels.annotate import annotate as annotate
    from .labels.boxes import box_of as box_of
    from .labels.surface import surface_keypoints as surface_keypoints
    from .labels.triangles import mesh_of as mesh_of
    from .scene.camera import Camera as Camera
    from .scene.models import load_model as load_model
    from .scene.models import model_files as model_files
    from .serving.environment import Environment as Environment
    from .serving.serve import serve as serve
    from .serving.task import Task as Task

__all__ = [
    "Camera",
    "Environment",
    "RenderInfo",
    "Task",
    "annotate",
    "box_of",
    "last_render",
    "load_model",
    "mesh_of",
    "model_files",
    "randomise",
    "render",
    "serve",
    "surface_keypoints",
]

__getattr__: Load = lazy(
    __name__,
    {
        "labels.annotate": "annotate",
        "labels.boxes": "box_of",
        "labels.surface": "surface_keypoints",
        "labels.triangles": "mesh_of",
        "scene.camera": "Camera",
        "scene.models": "load_model model_files",
        "capture.render": "RenderInfo last_render render",
        "serving.environment": "Environment",
        "serving.serve": "serve",
        "serving.task": "Task",
    },
    modules=["randomise"],
)
