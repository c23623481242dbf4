"""About: what a recording was made from, which is all that its samples are a function of, and with which versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import Params, StreamConfig
from ..errors import ConfigError
from ..wire import payload
from .codec import Images
from .places import open_file

_SAME = ("seed", "script", "scene", "script_args", "params", "image_format", "quality")
"""What must be the same in all of a recording. Scripts and scenes are compared by their content."""


def about(config: StreamConfig, images: Images, made_of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the samples of a stream are a function of, and how they are recorded, as JSON values.

    Raises ConfigError if the script or the scene cannot be read, or params cannot be sent to Blender.

    Args:
        config, images: The stream's.
        made_of: What `source` has returned. None: it is called.
    """
    return {
        **(source(config) if made_of is None else made_of),
        "params": _params(config.params),
        "image_format": images.format,
        "quality": images.quality,
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of what records here. None: it is not installed."""
    return {
        "asyncblend": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "pillow", "isal", "webdataset")},
    }


def source(config: StreamConfig) -> dict[str, Any]:
    """Return what the samples of a stream are a function of, but for params, as JSON values.

    Raises ConfigError if the script or the scene cannot be read. A script that is left to a fleet is left out.
    """
    named = (
        {"script": Path(config.script).name, "script_sha256": _sha256("script", config.script)} if config.script else {}
    )
    return {
        "seed": config.seed,
        **named,
        "scene": None if config.scene is None else Path(config.scene).name,
        "scene_sha256": None if config.scene is None else _sha256("scene", config.scene),
        # An argument is for all instances, or a list of one for each instance.
        "script_args": [
            os.fspath(given) if isinstance(given, str | os.PathLike) else [os.fspath(one) for one in given]
            for given in config.script_args
        ],
    }


def check_same(recorded: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError, which says in what, if a recording was made from something else than a stream's samples."""
    differing = []
    for name in _SAME:
        content = f"{name}_sha256"
        one, other = f"{recorded.get(name)!r:.60}", f"{config.get(name)!r:.60}"
        if content in config:
            if recorded.get(content) != config[content]:
                now = "has been changed since" if one == other else f"is {one} there, {other} here"
                differing.append(f"the {name} {now}")
        elif recorded.get(name) != config.get(name):
            differing.append(f"{name} is {one} there, {other} here")
    if differing:
        raise ConfigError(
            f"{folder} has a recording of another stream, which this one cannot go on with: {'; '.join(differing)}. "
            f"Record into another folder, or take the same options"
        )


def check_blender(recorded: str | None, version: str, folder: Path) -> None:
    """Raise ConfigError if a recording was made with another version of Blender. `recorded` is None if none is known."""
    if recorded is not None and recorded != version:
        raise ConfigError(
            f"{folder} has a recording of Blender {recorded or 'of no version'}, and this is {version or 'one of none'}, "
            f"whose pixels differ. Record into another folder, or take the same version"
        )


def _params(params: Params | None) -> Any:
    """Describe params: a mapping by its content, a function or an iterator only by its name."""
    if params is None:
        return None
    if not isinstance(params, Mapping):
        name = getattr(params, "__qualname__", type(params).__qualname__)
        kind = "function" if callable(params) else "iterator"
        return {kind: f"{getattr(params, '__module__', '?')}.{name}"}
    try:
        tree, *arrays = payload.encode_values(params)
    except payload.Unsendable as error:
        raise ConfigError(f"params: {error}") from None
    return {"values": tree.decode(), "sha256": [hashlib.sha256(array).hexdigest() for array in arrays]}


def _version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    return next((found.version for found in importlib.metadata.distributions(name=distribution)), None)


def _sha256(name: str, path: str | os.PathLike[str]) -> str:
    try:
        with open_file(Path(path)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        text = f"{name} {os.fspath(path)!r} cannot be read: {error.strerror} (looked in {Path.cwd()})"
        raise ConfigError(text) from None
