"""export(): writes samples as a folder in another tool's format, as a whole or not at all."""

from __future__ import annotations

import difflib
import errno
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AsyncblendError, ConfigError
from .bop import write_bop
from .coco import write_coco
from .own_files import LIST, others_in, write_list
from .parquet import write_parquet
from .plan import Plan, Report
from .yolo import write_yolo

Writer = Callable[[Iterable[Mapping[str, Any]], Path, Plan], Report]

FORMATS: dict[str, Writer] = {"bop": write_bop, "coco": write_coco, "parquet": write_parquet, "yolo": write_yolo}
"""The formats by name. A writer gets the samples, an empty folder to write into, and what is asked for."""

_ENTRIES = {
    "bop": ("camera.json", "dataset_info.md", "models", "train", "val"),
    "coco": ("annotations", "annotations.json", "images", "train", "val"),
    "parquet": ("data",),
    "yolo": ("data.yaml", "images", "labels"),
}
"""By format all that its writer may put into the folder. What is there already is so known before anything is rendered."""


def check_format(format: str) -> None:
    """Raise ConfigError if there is no such format."""
    if format not in FORMATS:
        near = difflib.get_close_matches(format.lower(), FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no format {format!r}; there are {', '.join(FORMATS)}{hint}")


def export(
    items: Iterable[Mapping[str, Any]],
    out: str | os.PathLike[str],
    format: str = "coco",
    *,
    val: float = 0.0,
    task: str | None = None,
    overwrite: bool = False,
    info: Mapping[str, Any] | None = None,
) -> Report:
    """Write samples into the folder `out`: all of them, or, on any error, nothing.

        export(Recording("recording"), "yolo", "yolo", val=0.1, task="segment")

        with ab.BlenderStream(config).sync() as frames:  # rendered now, each exactly once, without a recording
            export(frames, "parquet", "parquet", val=0.1)

    The samples are written into a hidden folder beside `out`, which then takes its place. A process that is killed
    meanwhile leaves that folder there, and in it what it has not put back of `out`.

    Args:
        items: The samples of a `recording.Recording`, the frames of a stream, or values by name, with "index". They are
            read once, one after another, so any number of them fits into memory.
        out: The folder. It is made if it does not exist.
        format: A name in `FORMATS`.
        val: The share of samples for validation, 0 to less than 1. Which these are depends on `val` and on a sample's
            index alone, so a longer export of the same stream keeps each sample in its split.
        task: For the format "yolo": "detect" (the default), "segment" or "pose".
        overwrite: Replace an earlier export: exactly the files that it wrote, which it has listed in
            `.asyncblend-export.json`. Other files in `out` stay where they are. Versions of asyncblend that wrote no list
            may have left an export whose files cannot be told from yours: such a one is not replaced.
        info: Facts about the whole export as JSON values, such as "description", for the format's own header.

    Raises:
        ConfigError: There is no such format; an option is wrong; `out` is not empty, or, with `overwrite`, has files of
            the names of new ones that are in no list; it cannot be written to; samples lack what the format needs, are
            episodes, have arrays other than numpy's, or have an index that is no whole number or comes twice.
    """
    check_format(format)
    if task is not None and format != "yolo":
        raise ConfigError(f"task={task!r} goes with the format 'yolo'; {format!r} has all labels at once")
    plan = Plan(info=info or {}, val=val, task=task or "detect")
    what = "nothing was changed there"
    try:
        target = Path(out).resolve()  # a symbolic link stays, and the folder that it leads to is replaced
        _check_target(out, target, _ENTRIES[format], overwrite=overwrite)
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.export-", dir=target.parent))
        new, old = temporary / "new", temporary / "old"
        try:
            new.mkdir()
            report = FORMATS[format](_singles(items), new, plan)
            write_list(new)
            if target.exists():
                shutil.copymode(target, new)
                if overwrite:
                    _check_others(out, target, lambda name: os.path.lexists(new / name))
                    target.rename(old)
            new.rename(target)  # fails if somebody has put files there meanwhile
        finally:
            if old.exists():
                what = f"the earlier files are in {old}"
                _settle(old, target)
                what = "nothing was changed there"
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if isinstance(error, AsyncblendError):
            raise
        raise ConfigError(f"cannot export to {out}: {error.strerror or error}; {what}") from error
    return report


def _singles(items: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield samples with their index among their values. Raises ConfigError if one is not a single frame."""
    for item in items:
        if getattr(item, "steps", 1) != 1 or getattr(item, "step", 0) or not getattr(item, "last", True):
            raise ConfigError(
                f"sample {item.index} is an episode of several frames, which have no place in an export of single "
                f"images; let the script's sample return one frame"
            )
        if "index" not in item and not isinstance(getattr(item, "index", None), int):
            raise ConfigError(f"a sample has no 'index', by which it is named; it has {', '.join(map(repr, item))}")
        single = item if "index" in item else {**item, "index": item.index}
        _check_index(single["index"])
        for name, value in single.items():
            if name != "index" and hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
                raise ConfigError(
                    f"sample {single['index']}: {name!r} is a {type(value).__module__}.{type(value).__qualname__}; give "
                    f"numpy arrays, as the samples of a Recording and the frames of a stream have them"
                )
        yield single


def _check_index(index: Any) -> None:
    try:
        right = operator.index(index) >= 0 and not isinstance(index, bool)
    except TypeError:
        right = False
    if not right:
        raise ConfigError(f"a sample's 'index', by which it is named, must be a whole number from 0; got {index!r:.80}")


def _check_target(out: str | os.PathLike[str], target: Path, entries: Collection[str], *, overwrite: bool) -> None:
    """Raise ConfigError if the folder cannot be replaced by one with these entries."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{out} is a file; an export is a folder")
    if target.is_mount() or Path.cwd().is_relative_to(target):
        raise ConfigError(f"{out} holds the current folder or is a mount point; name a folder in it, which is replaced")
    if not overwrite and any(target.iterdir()):
        raise ConfigError(f"{out} is not empty; take another folder, or overwrite=True (--overwrite) to replace it")
    _check_others(out, target, entries.__contains__)


def _check_others(out: str | os.PathLike[str], target: Path, is_new: Callable[[str], bool]) -> None:
    """Raise ConfigError if something that no export wrote has a name that the new one needs."""
    for name in others_in(target):
        if is_new(name):
            raise ConfigError(
                f"{out} is not empty: {name!r} would be replaced, and may be yours, because no {LIST} there says that an "
                f"export wrote it (older versions of asyncblend wrote no such list); remove it, or take another folder"
            )


def _settle(old: Path, target: Path) -> None:
    """Put the earlier folder back if nothing has taken its place. Else keep only its other files, in the new one."""
    if not target.exists():
        old.rename(target)
    else:
        for name in others_in(old):
            if os.path.lexists(target / name):  # it came after the names were compared
                raise FileExistsError(errno.EEXIST, f"{name!r} is both in the new folder and in the earlier one")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(target / name)
