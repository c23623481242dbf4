"""Shipping: the script, the scene and what they need travel to the nodes as content, because no path is sure to be there.

The files stand in the same places in relation to each other as here, so a script finds what lies beside it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ..config import PathLike, StreamConfig
from ..errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Shipment:
    """A config, and the content of the files that it names."""

    config: StreamConfig
    """Its paths are those on the machine where it was packed; all that travel are absolute."""
    places: frozenset[str]
    """The paths there of the files that travel, and of the folders that were named."""
    content: Mapping[str, bytes]
    """What is in each file, by its path there."""

    @classmethod
    def packed(cls, config: StreamConfig, files: Iterable[PathLike] = ()) -> Shipment:
        """Read the script, the Python files beside it that it imports, the scene, and further files and folders.

        Raises:
            ConfigError: A file cannot be read, or `files` is a single path.
        """
        if isinstance(files, str | os.PathLike):
            raise ConfigError(f"files must be a list of paths; got {files!r}")
        scene = [] if config.scene is None else [config.scene]
        paths = [Path(os.path.abspath(path)) for path in (config.script, *scene, *files)]
        content = {}
        for path in (*paths, *_imported(paths[0])):
            for file in path.rglob("*") if path.is_dir() else [path]:
                if not file.is_dir():
                    content[str(file)] = _read(file)
        places = frozenset([*map(str, paths), *content])

        def absolute(path: str) -> str:
            return there if (there := os.path.abspath(path)) in places else path

        return cls(_renamed(config, absolute), places, content)

    def unpacked(self, folder: Path) -> StreamConfig:
        """Write the files into a folder, and return the config with their paths in it.

        An argument of the script that is the path of one of them is its path in the folder, too.
        """
        for path, data in self.content.items():
            file = _below(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return _renamed(self.config, lambda path: str(_below(folder, path)) if path in self.places else path)


def _renamed(config: StreamConfig, rename: Callable[[str], str]) -> StreamConfig:
    """Return the config with the paths of script and scene, and the script's arguments, renamed."""
    args = [
        rename(os.fspath(arg)) if isinstance(arg, str | os.PathLike) else [rename(os.fspath(one)) for one in arg]
        for arg in config.script_args
    ]
    scene = None if config.scene is None else rename(os.fspath(config.scene))
    return dataclasses.replace(config, script=rename(os.fspath(config.script)), scene=scene, script_args=tuple(args))


def _below(folder: Path, path: str) -> Path:
    """Return where a file of that absolute path stands below a folder."""
    return folder.joinpath(*Path(path).parts[1:])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read, so it cannot travel to the nodes: {error.strerror}") from None


def _imported(script: Path) -> set[Path]:
    """Return the Python files in the script's folder that it imports, and those that these import."""
    found: set[Path] = set()
    new = [script]
    while new:
        for name in _modules(new.pop()):
            beside = [script.parent / f"{name}.py", *(script.parent / name).rglob("*.py")]
            new += [path for path in beside if path.is_file() and path not in found]
            found.update(new)
    return found


def _modules(file: Path) -> Iterator[str]:
    """Yield the first part of the name of each module that a file imports. Blender will tell what is wrong with it."""
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(_read(file))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]
