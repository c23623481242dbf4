"""`bl.render`: the current scene as an image, with labels of each pixel.

How a frame passes through: `render.py` asks `label_session.py` which of Blender's passes the wanted labels need, and
`plan.py` whether the image can be read from memory. Within the session and with unneeded steps off, Blender renders.
Then the image comes either from `cycles.py` (memory) through the table of `display.py`, or from `imagefile.py`, and
`pixel_labels.py` turns the passes into labels.

- `render.py`: `render`, `RenderInfo` and `last_render`.
- `plan.py`: `CapturePlan`: from memory, or by a file, and why.
- `cycles.py`: reads passes from Cycles' memory inside its own render.
- `display.py`: the scene's view transform as a table.
- `channel_table.py`: the table of a view transform that treats each channel by itself.
- `colour_table.py`: the table of one that mixes them.
- `shown.py`: has Blender show colours, with which the tables are filled.
- `imagefile.py`: has Blender write TIFF and OpenEXR files that exist only in memory, and reads them.
- `label_session.py`: which passes a label needs; prepares Blender for them, and assembles the result.
- `passes.py`: names and switches of Blender's passes.
- `object_ids.py`: the ids of objects in the object index pass, and their table.
- `ids_alone.py`: the settings for a render of ids alone, which engines other than Cycles need.
- `camera_motion.py`: refuses flow where Cycles gets the camera's own movement wrong.
- `pixel_labels.py`: the arithmetic from passes to labels, without Blender.
- `spent.py`: how long `render` has taken so far, for the worker.
- `settings.py`: changes settings for the time of a render.
"""
