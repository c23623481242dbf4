"""Reads the argument CONFIG of a command, a TOML file or a script, into a StreamConfig."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..config import RestartPolicy, StreamConfig, Timeouts
from ..errors import ConfigError
from ..scripts import packaged

_PATHS = ("script", "scene", "blender", "logs")


def load_config(path: Path, **options: Any) -> StreamConfig:
    """Return the config that a `.toml` file describes, or one for a script.

    Args:
        path: The file. Paths inside a TOML file are relative to its folder; a command on the PATH is no path. A script
            that is not there may be one of those that come with asyncblend, such as model.py.
        options: Fields of `StreamConfig` that override the file's. One that is None, or an empty list, overrides
            nothing.

    Raises:
        ConfigError: The file does not exist or is not TOML, or a field is unknown or wrong.
    """
    options = {name: value for name, value in options.items() if value is not None and value != []}
    if path.suffix != ".toml":
        return StreamConfig(script=packaged(path), **options)
    from ..fleet.discovery import is_path  # not above: `--help` needs none of the packages that this needs

    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r} does not exist (looked in {Path.cwd()})") from None
    except (
        ValueError,
        OSError,
    ) as error:  # ValueError: no UTF-8, no TOML, or a number of more digits than Python reads
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from None
    except RecursionError:
        raise ConfigError(f"config {str(path)!r} cannot be read: its values are nested too deeply") from None
    for name in _PATHS:
        if isinstance(value := fields.get(name), str) and value and (name != "blender" or is_path(value)):
            fields[name] = path.parent / _expanded(path, name, value)
    for name, part in (("timeouts", Timeouts), ("restart", RestartPolicy)):
        if isinstance(fields.get(name), dict):
            fields[name] = part(**fields[name])
    if isinstance(about := fields.get("cluster"), dict):
        from ..ray import Cluster

        if isinstance(files := about.get("files"), list) and all(isinstance(file, str) for file in files):
            about["files"] = [path.parent / _expanded(path, "cluster.files", file) for file in files]
        fields["cluster"] = Cluster(**about)
    if isinstance(fields.get("shard"), list):
        fields["shard"] = tuple(fields["shard"])
    return StreamConfig(**{**fields, **options})


def completed(config: StreamConfig) -> StreamConfig:
    """Return a config with the script and the seed of the fleet that it names, if it names one.

    Raises:
        AsyncblendError: As attaching to that fleet raises.
    """
    if config.fleet is None:
        return config
    from ..aio import run
    from ..stream.stream import BlenderStream

    async def attached() -> StreamConfig:
        async with BlenderStream(config) as stream:
            return stream.config

    return run(attached())


def _expanded(path: Path, name: str, value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"config {str(path)!r}: {name} {value!r} cannot be expanded: {error}") from None
