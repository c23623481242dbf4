"""`bl.annotate` and `bl.mesh_of`: labels of objects, such as boxes, poses and keypoints, to the image of a `bl.render`.

How a label comes about: `annotate.py` checks the arguments and has `rendered_ids.py` find which pixels show which object:
from the result of the render that the labels belong to, or else by a render of its own. Of each object it takes the
mesh as it is rendered (`as_rendered.py`, `meshes.py`), projects it (`views.py`), and counts the pixels of the whole
silhouette (`silhouette.py`) and the visible ones (`boxes.py`). `keypoints.py` places the keypoints, and tells which are hidden.

- `annotate.py`: `annotate`.
- `triangles.py`: `bl.mesh_of`, the mesh of an object for its user.
- `arguments.py`: what it is given.
- `as_rendered.py`: the scene as a render evaluates it, where that is not what the viewport has.
- `rendered_ids.py`: the image of object ids, given or rendered here.
- `boxes.py`: `box_of`, and the boxes of all ids in an image.
- `meshes.py`: meshes as arrays.
- `occurrences.py`: all that is rendered: objects, and the copies of them by collections, nodes, particles and vertices.
- `copies.py` and `copy_ids.py`: an id for each copy, and which pixels show which of them.
- `views.py`: what of a mesh lies in the image.
- `silhouette.py`: which pixels a mesh covers.
- `amodal.py`: the whole silhouettes of objects, and which share of them is visible.
- `keypoints.py`: where keypoints are, in the world and in the image, and what is between them and the camera.
- `unseen.py`: what the camera does not see wherever it is, for both.
- `surface.py`: `bl.surface_keypoints`, which chooses keypoints on the surface of a mesh.

`boxes.py`, `views.py` and `silhouette.py` are pure arithmetic, without Blender.
"""
