"""The camera, and where objects are.

- `lens.py`: a camera's arithmetic, without Blender: its intrinsics, and pixels from points and back.
- `placing.py`: where objects are in the world, and how to move and turn them, whatever their parents.
- `animation.py`: which properties animation sets.
- `camera.py`: `bl.Camera`, which applies both to a camera of Blender.
- `models.py`: `bl.load_model`, which makes one object of a file with a mesh, and `bl.model_files`.
- `parts.py`: the parts of such a file, as renders show them, and how they become one.
- `backdrop.py`: a picture behind everything, for `bl.randomise.background`, and the pictures' memory.
- `sky.py`: a picture all around that lights the scene, for `bl.randomise.sky`.

A script first sets up its scene, by `bl.randomise` or Blender's own API, then renders it, and then asks `bl.Camera`
where points lie in that image. Nothing is kept between samples: each call reads Blender's present settings.
"""
