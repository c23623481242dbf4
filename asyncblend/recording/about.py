"""What made a recording: all that its samples are a function of, and the versions that made them."""

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

__all__ = ["about", "check_same"]

_SAME = ("seed", "script", "scene", "script_args", "params", "image_format", "quality")
"""What may not differ within a recording. Of script and scene it is the content."""


def about(config: StreamConfig, images: Images) -> dict[str, Any]:
    """What samples of this stream are a function of, as JSON has it. Reads the script and the scene.

    Raises:
        ConfigError: they do not exist.
    """
    return {
        "seed": config.seed,
        "script": Path(config.script).name,
        "script_sha256": _sha256("script", config.script),
        "scene": None if config.scene is None else Path(config.scene).name,
        "scene_sha256": None if config.scene is None else _sha256("scene", config.scene),
        "script_args": [a if isinstance(a, str) else _plain_args(a) for a in config.script_args],
        "params": _params(config.params),
        "image_format": images.format,
        "quality": images.quality,
        "versions": {
            "asyncblend": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "pillow", "webdataset")},
        },
    }


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """
    Raises:
        ConfigError: the recording that is there was made of something else; it says what differs.
    """
    differing = []
    for name in _SAME:
        content = f"{name}_sha256"
        one, other = _brief(there.get(name)), _brief(here.get(name))
        if content in here:
            if there.get(content) != here[content]:
                now = "has been changed since" if one == other else f"is {one} there, {other} here"
                differing.append(f"the {name} {now}")
        elif there.get(name) != here.get(name):
            differing.append(f"{name} is {one} there, {other} here")
    if differing:
        raise ConfigError(
            f"{folder} has a recording of another stream, which this one cannot go on with: {'; '.join(differing)}. "
            f"Record into another folder, or take the same options"
        )


def _plain_args(arg: Any) -> Any:
    """An instance's arguments, or one of all instances' that is a path."""
    return os.fspath(arg) if isinstance(arg, os.PathLike) else [os.fspath(one) for one in arg]


def _params(params: Params | None) -> Any:
    """A mapping is told by its content, and a function only by its name."""
    if params is None:
        return None
    if callable(params):
        name = getattr(params, "__qualname__", type(params).__qualname__)
        return {"function": f"{getattr(params, '__module__', '?')}.{name}"}
    try:
        tree, *arrays = payload.encode_values(params)
    except payload.Unsendable as error:
        raise ConfigError(f"params: {error}") from None
    text = tree.decode()
    if not arrays:
        return {"values": text}
    return {"values": text, "sha256": [hashlib.sha256(array).hexdigest() for array in arrays]}


def _sha256(name: str, path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{name} {os.fspath(path)!r} cannot be read: {error.strerror} (looked in {Path.cwd()})"
        ) from None


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
