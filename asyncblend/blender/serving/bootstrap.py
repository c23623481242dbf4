"""The script that Blender is started with: `blender --python bootstrap.py`, or `python bootstrap.py` with bpy.

It loads the asyncblend package alone, by its location. The host's site-packages must never be on Blender's sys.path,
because the numpy in it is another build.
"""

import importlib.util
import os
import sys


def load_asyncblend() -> None:
    """Import the package that this file belongs to, and leave sys.path as Blender has it."""
    here = os.path.dirname(os.path.abspath(__file__))
    # `python bootstrap.py` puts this folder first, though its files are no top-level modules.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    root = os.path.dirname(os.path.dirname(here))
    spec = importlib.util.spec_from_file_location(
        "asyncblend", os.path.join(root, "__init__.py"), submodule_search_locations=[root]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["asyncblend"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_asyncblend()
    from asyncblend.blender.serving import child

    child.main()
