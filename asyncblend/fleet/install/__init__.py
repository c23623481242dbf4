"""What Blender lacks, installed by the host into the user's cache folder.

- `packages.py`: numpy and pyzmq for the Python inside a Blender; also the cache folder, its locks, and running pip.
- `installer.py`: whether pip or uv installs them.
- `embedded.py`: a whole Blender (the pip module `bpy`) in an environment of its own, for a machine without Blender.
"""
