"""Reads the argument CONFIG of a command, a TOML file or a script, into a StreamConfig."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..config import RestartPolicy, StreamConfig, Timeouts
from ..errors import ConfigError


def load_config(path: Path, **options: Any) -> StreamConfig:
    """Return the config that a `.toml` file describes, or one for a script.

    Args:
        path: The file. Paths inside a TOML file are relative to its folder.
        options: Fields of `StreamConfig` that override the file's. An option that is None overrides nothing.

    Raises:
        ConfigError: The file does not exist or is not TOML, or a field is unknown or wrong.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if path.suffix != ".toml":
        return StreamConfig(script=path, **options)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r} does not exist (looked in {Path.cwd()})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from None
    for name in ("script", "scene", "blender"):
        if isinstance(value := fields.get(name), str) and (name, value) != ("blender", "bpy"):
            fields[name] = path.parent / Path(value).expanduser()
    for name, part in (("timeouts", Timeouts), ("restart", RestartPolicy)):
        if isinstance(fields.get(name), dict):
            fields[name] = part(**fields[name])
    if isinstance(fields.get("shard"), list):
        fields["shard"] = tuple(fields["shard"])
    return StreamConfig(**{**fields, **options})
