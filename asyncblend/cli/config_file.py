"""A StreamConfig from what a command line names: a TOML file, or simply a script."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..config import RestartPolicy, StreamConfig, Timeouts
from ..errors import ConfigError

__all__ = ["load_config"]


def load_config(path: Path, **options: Any) -> StreamConfig:
    """The config of a `.toml` file (its paths are relative to it), or of a script. `options` override its fields.

    Raises:
        ConfigError: the file does not exist or is no TOML, or a field is unknown or wrong.
    """
    if path.suffix != ".toml":
        return StreamConfig(script=path, **options)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r} does not exist (looked in {Path.cwd()})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from None
    for name in ("script", "scene"):
        if isinstance(fields.get(name), str):
            fields[name] = path.parent / fields[name]
    if isinstance(blender := fields.get("blender"), str) and blender != "bpy":
        fields["blender"] = path.parent / Path(blender).expanduser()
    for name, part in (("timeouts", Timeouts), ("restart", RestartPolicy)):
        if isinstance(fields.get(name), dict):
            fields[name] = part(**fields[name])
    if isinstance(fields.get("shard"), list):
        fields["shard"] = tuple(fields["shard"])
    return StreamConfig(**{**fields, **options})
