"""Finds the Blender scripts that come with asyncblend."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError

# An installed package has them inside, and a checkout has them beside the package.
_FOLDERS = [folder / "blender_scripts" for folder in Path(__file__).resolve().parents[:2]]

_PARTS = ("_options", "_scene")  # how modules are called that scripts import


def script(name: str) -> Path:
    """Return the path of a script that comes with asyncblend, such as "cube.py". Raises ConfigError for another name."""
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    found = {path for folder in _FOLDERS for path in folder.glob("*.py")}
    known = sorted({path.name for path in found if not path.stem.endswith(_PARTS)})
    raise ConfigError(f"asyncblend has no script {name!r}; it has: {', '.join(known) or 'none'}")


def packaged(path: Path) -> Path:
    """Return the path, or that of the script that comes with asyncblend if there is no such file.

    `model.py` and `blender_scripts/model.py` name such a script, as they do in a checkout.
    """
    named = path.parent in (Path(), Path("blender_scripts"))
    if named and path.suffix == ".py" and not path.exists():
        return next((found for folder in _FOLDERS if (found := folder / path.name).is_file()), path)
    return path
