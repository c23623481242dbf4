"""What a scene script uses inside Blender: `from asyncblend import blender as bl`.

Needs Python 3.10 and numpy (in a fleet pyzmq too), and imports without bpy, so that scripts can be checked and
tested anywhere. Names are loaded at their first use: what starts a Blender runs before numpy is known to be there.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from . import randomise as randomise
    from .capture.render import RenderInfo as RenderInfo
    from .capture.render import last_render as last_render
    from .capture.render import render as render
    from .labels.annotate import annotate as annotate
    from .labels.boxes import box_of as box_of
    from .scene.camera import Camera as Camera
    from .serving.serve import serve as serve
    from .serving.task import Task as Task

__all__ = [
    "Camera",
    "RenderInfo",
    "Task",
    "annotate",
    "box_of",
    "last_render",
    "randomise",
    "render",
    "serve",
]

__getattr__ = lazy(
    __name__,
    {
        "labels.annotate": ["annotate"],
        "labels.boxes": ["box_of"],
        "scene.camera": ["Camera"],
        "capture.render": ["RenderInfo", "last_render", "render"],
        "serving.serve": ["serve"],
        "serving.task": ["Task"],
    },
    modules=["randomise"],
)
