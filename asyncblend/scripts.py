"""Finds the Blender scripts that come with asyncblend."""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError

# An installed package has them inside, and a checkout has them beside the package.
_FOLDERS = [folder / "blender_scripts" for folder in Path(__file__).resolve().parents[:2]]


def script(name: str) -> Path:
    """Return the path of a script that comes with asyncblend, such as "cube.py". Raises ConfigError for another name."""
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    known = sorted({path.name for folder in _FOLDERS for path in folder.glob("*.py")})
    raise ConfigError(f"asyncblend has no script {name!r}; it has: {', '.join(known) or 'none'}")
