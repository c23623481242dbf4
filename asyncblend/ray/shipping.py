"""Shipping: the script, the scene and what they need travel to the nodes as content, because no path is sure to be there.

The files stand in the same places in relation to each other as here, so a script finds what lies beside it. Links travel
as what they lead to.
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
from ..fleet.discovery import is_path
from ..recording.places import open_file, size_of

_MOST = 1 << 31  # bytes; Ray carries them as one object, and each actor has it in memory


@dataclasses.dataclass(frozen=True)
class Shipment:
    """A config, and the content of the files that it names."""

    config: StreamConfig
    """Its paths are those on the machine where it was packed; all that travel are absolute."""
    folders: frozenset[str]
    """The paths there of the folders that travel."""
    content: Mapping[str, bytes]
    """What is in each file, by its path there."""

    @classmethod
    def packed(cls, config: StreamConfig, files: Iterable[PathLike] = ()) -> Shipment:
        """Read the script, the Python files beside it that it imports, the scene, and further files and folders.

        Raises:
            ConfigError: A file or a folder cannot be read, is neither, or is too large; a link leads to a folder that it
                is in; or `files` is a single path.
        """
        if isinstance(files, str | os.PathLike):
            raise ConfigError(f"files must be a list of paths; got {files!r}")
        scene = [] if config.scene is None else [config.scene]
        paths = [Path(os.path.abspath(path)) for path in (config.script, *scene, *files)]
        folders, content, size = set(), {}, 0
        for path in (*paths, *_imported(paths[0])):
            for name in _with_all_in_it(str(path)):
                if os.path.isdir(name):
                    folders.add(name)
                elif name not in content:
                    content[name] = _read(name, _MOST - size)
                    size += len(content[name])

        config = dataclasses.replace(
            config,
            blender=None if config.blender is None else _blender_of(os.fspath(config.blender)),
            logs=None if config.logs is None else os.path.abspath(config.logs),
        )

        def absolute(path: str) -> str:
            there = os.path.abspath(path)
            return there if there in content or there in folders else path

        return cls(_renamed(config, absolute), frozenset(folders), content)

    def unpacked(self, folder: Path) -> StreamConfig:
        """Write the files into a folder, and return the config with their paths in it.

        An argument of the script that is the path of one of them is its path in the folder, too.
        """
        for path in self.folders:
            _below(folder, path).mkdir(parents=True, exist_ok=True)
        for path, data in self.content.items():
            file = _below(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

        def here(path: str) -> str:
            return str(_below(folder, path)) if path in self.content or path in self.folders else path

        return _renamed(self.config, here)


def _renamed(config: StreamConfig, rename: Callable[[str], str]) -> StreamConfig:
    """Return the config with the paths of script and scene, and the script's arguments, renamed."""
    args = [
        rename(os.fspath(arg)) if isinstance(arg, str | os.PathLike) else [rename(os.fspath(one)) for one in arg]
        for arg in config.script_args
    ]
    scene = None if config.scene is None else rename(os.fspath(config.scene))
    return dataclasses.replace(config, script=rename(os.fspath(config.script)), scene=scene, script_args=tuple(args))


def _blender_of(blender: str) -> str:
    """Return the option for the nodes: a path, which is relative to the working directory here, as an absolute one.

    A name may be that of a command there, also where none of that name is here. A home is the one there.
    """
    named = os.path.basename(blender) == blender and not (is_path(blender) and os.path.exists(blender))
    return blender if named or blender.startswith("~") else os.path.abspath(blender)


def _below(folder: Path, path: str) -> Path:
    """Return where a file of that absolute path stands below a folder."""
    return folder.joinpath(*Path(path).parts[1:])


def _with_all_in_it(path: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the path, and if it is a folder, the paths of all that is in it, also where links lead to.

    Args:
        path: The file or folder.
        above: The folders that it is in, by device and inode.
    """
    yield path
    if not os.path.isdir(path):
        return
    try:
        status, names = os.stat(path), sorted(os.listdir(path))
    except OSError as error:
        raise _unreadable(path, error) from None
    own = (status.st_dev, status.st_ino)
    if own in above:
        raise ConfigError(f"{path!r} cannot travel to the nodes: it is a link to a folder that it is in")
    for name in names:
        yield from _with_all_in_it(os.path.join(path, name), (*above, own))


def _read(path: str, most: int) -> bytes:
    """Return what is in a file, which may have so many bytes. A pipe or the like is not waited for."""
    try:
        with open_file(Path(path)) as file:
            if size_of(file) <= most and len(data := file.read(most + 1)) <= most:
                return data
            raise ConfigError(
                f"{path!r} cannot travel to the nodes: with it, the files have more than {_MOST >> 30} GiB. Put it where all "
                f"nodes see it, and have the script read it there"
            )
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"{path!r} cannot be read, so it cannot travel to the nodes: {error.strerror}")


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
        for node in ast.walk(ast.parse(_read(str(file), _MOST))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]
