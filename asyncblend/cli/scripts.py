"""Finds the Blender scripts that come with asyncblend."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (
    _PACKAGE / "blender_scripts",  # an installed package has them inside
    _PACKAGE.parent / "blender_scripts",  # a checkout has them beside the package
)


def script(name: str) -> Path:
    """Return the path of a script that comes with asyncblend, such as "cube.py".

    Raises:
        ConfigError: There is no script of that name.
    """
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    known = sorted({path.name for folder in _FOLDERS for path in folder.glob("*.py")})
    raise ConfigError(f"asyncblend has no script {name!r}; it has: {', '.join(known) or 'none'}")
