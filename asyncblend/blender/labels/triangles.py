"""mesh_of: the mesh of an object as vertices and faces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..capture.object_ids import unique_names
from .arguments import checked_objects
from .as_rendered import Evaluation, render_differs, with_render_depsgraph
from .meshes import Mesh, read_mesh


def mesh_of(obj: Any) -> dict[str, Any]:
    """Return the mesh of an object, as trainers of 6D poses need it: in BOP datasets, and in errors such as ADD.

        models = {"cube": bl.mesh_of(cube)}  # by class name; `asyncblend export --format bop` writes them

    It is evaluated as for a render, with its modifiers. It does not depend on where the object is.

    Args:
        obj: An object with a mesh, or its name.

    Returns:
        - "vertices": V x 3 float32, in the object's own space, in Blender units: `pose` of `annotate` maps them to the
          camera's space.
        - "faces": M x 3 int32, triangles as indices of vertices.

    Raises:
        ConfigError: There is no such object in the view layer, or it has no mesh.
    """
    import bpy

    layer = bpy.context.view_layer
    layer.update()
    (found,) = checked_objects([obj], layer, unique_names(), False)
    mesh = rendered_mesh(found)
    return {"vertices": np.ascontiguousarray(mesh.points, np.float32), "faces": mesh.triangles.astype(np.int32)}


def rendered_mesh(obj: Any) -> Mesh:
    """Return the mesh of an object of a type in WITH_MESH, as it is evaluated for a render."""
    import bpy

    viewport = bpy.context.evaluated_depsgraph_get()

    def read(depsgraph: Any) -> Mesh:
        return read_mesh(obj, Evaluation(depsgraph, viewport).evaluated(obj))

    return with_render_depsgraph(read) if render_differs(bpy.context.scene) else read(viewport)
