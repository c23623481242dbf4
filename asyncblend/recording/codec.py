"""Codec: one sample as the files of a WebDataset sample, and back.

    000000012.image.png        uint8 arrays of H x W x 3 or 4
    000000012.depth.npy        all other arrays, with their dtype and shape
    000000012.json             index, instance, params, and all values; {"$file": "depth.npy"} stands for an array

The JSON is strict: {"$float": "nan"} stands for a number that JSON does not have. A user's own keys that begin with
"$" have one more. Names of files are made of the names of the values, so that any WebDataset reader finds them, but
only the JSON says which value is which: a name with a dot, a slash, or capitals gets another file name.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import check_whole
from ..errors import ConfigError

__all__ = ["Damaged", "Images", "Sample", "decode", "encode", "key_of"]

Array = np.ndarray[Any, Any]

_KINDS = "biufc"  # of numpy dtypes: those that a frame may have
_MAX_PIXELS = 1 << 26  # Pillow takes larger images for an attack when it reads them
_MAX_JPEG_SIDE = 65_500  # pixels; libjpeg writes no more
_LONGEST = 60  # characters of a file's name, without its key; a tar header has room for 100
# PNG of a rendered 640x480 image: level 1 takes 6 ms, level 6 takes 12 ms for 10 % less. Run-length matches (zlib's
# strategy 3) are faster still with noise, 24 ms instead of 31, and smaller. One core; `python -m benchmarks record`.
_PNG = {"compress_level": 1, "compress_type": 3}


class Damaged(Exception):
    """These files are no sample. Never leaves the room: who knows the shard's name says it."""


@dataclass(frozen=True)
class Images:
    """How images are written. Raises ConfigError if it cannot be so."""

    format: str = "png"
    """"png", without loss, or "jpeg" for `image` and for values whose name begins with it, if they have three
    channels and no side over 65,500 pixels. All other images are PNG in any case: they may be labels."""
    quality: int | None = None
    """Of JPEG, 1 to 100; None: 95."""

    def __post_init__(self) -> None:
        if self.format not in ("png", "jpeg"):
            raise ConfigError(f"image_format must be 'png' or 'jpeg'; got {self.format!r}")
        if self.quality is not None:
            if self.format != "jpeg":
                raise ConfigError("quality goes with image_format='jpeg'; PNG has no loss")
            check_whole("quality", self.quality, 1)
            if self.quality > 100:
                raise ConfigError(f"quality must be at most 100; got {self.quality}")

    def encode(self, array: Array, name: str) -> tuple[str, bytes]:
        """The extension and the bytes of an image."""
        from PIL import Image

        buffer = io.BytesIO()
        image = Image.fromarray(array)
        fits = max(array.shape) <= _MAX_JPEG_SIDE
        if self.format == "jpeg" and name.startswith("image") and array.shape[2] == 3 and fits:
            image.save(buffer, "JPEG", quality=95 if self.quality is None else self.quality)
            return "jpg", buffer.getvalue()
        image.save(buffer, "PNG", **_PNG)
        return "png", buffer.getvalue()


class Sample(dict[str, Any]):
    """A recorded sample: the values by name, arrays as numpy's and your own, and "index"."""

    def __init__(
        self, values: Mapping[str, Any], *, index: int, instance: int, params: Any, files: Mapping[str, bytes]
    ) -> None:
        super().__init__({**values, "index": index})
        self.returned = values
        """What the script returned, by name: the same without "index"."""
        self.index = index
        """Index of the sample in its stream."""
        self.instance = instance
        """Number of the Blender that made it."""
        self.params: dict[str, Any] = params
        """What it was made with; {} for none."""
        self.files = files
        """Its files as they were recorded, such as "image.png" or "depth.npy", without the key."""


def key_of(index: int) -> str:
    """What the names of a sample's files begin with."""
    return f"{index:09d}"


# -- to files ------------------------------------------------------------------------------------------------------


def encode(
    values: Mapping[str, Any], *, index: int, instance: int, params: Mapping[str, Any], images: Images
) -> dict[str, bytes]:
    """The files of a sample, by name without the key. `values` and `params` are a Frame's."""
    files: dict[str, bytes] = {}
    # Values first: where names are alike, those of params give way.
    tree = {_escaped(name): _plain(value, name, files, images) for name, value in values.items()}
    made_with = _plain(params, "params", files, images)
    about = {"index": index, "instance": instance, "params": made_with, "values": tree}
    files["json"] = json.dumps(about, allow_nan=False, separators=(",", ":")).encode()
    return files


def _plain(value: Any, name: str, files: dict[str, bytes], images: Images) -> Any:
    if isinstance(value, np.ndarray):
        extension, data = images.encode(value, name) if _is_image(value) else ("npy", _npy(value))
        file = _unused(name, extension, files)
        files[file] = data
        return {"$file": file}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, list):
        return [_plain(item, f"{name}.{i}", files, images) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_escaped(key): _plain(item, f"{name}.{key}", files, images) for key, item in value.items()}
    raise TypeError(f"{name!r} is a {type(value).__name__}, which no frame has")


def _escaped(key: str) -> str:
    return "$" + key if key.startswith("$") else key


def _is_image(array: Array) -> bool:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
        return False
    return 0 < array.shape[0] * array.shape[1] <= _MAX_PIXELS


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _unused(name: str, extension: str, files: Mapping[str, bytes]) -> str:
    """A name that every tar and every WebDataset reader takes: lower case, no dot but that of the extension."""
    base = re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:_LONGEST].strip("_-") or "value"
    taken = {file.partition(".")[0] for file in files}
    if base not in taken:
        return f"{base}.{extension}"
    number = next(n for n in range(2, len(files) + 3) if f"{base}-{n}" not in taken)
    return f"{base}-{number}.{extension}"


# -- and back ------------------------------------------------------------------------------------------------------


def decode(files: Mapping[str, bytes]) -> Sample:
    """The sample of these files, by name without the key.

    Raises:
        Damaged: they are not as `encode` made them.
    """
    try:
        about = json.loads(files["json"])
        return Sample(
            {_unescaped(name): _rich(value, files) for name, value in about["values"].items()},
            index=int(about["index"]),
            instance=int(about["instance"]),
            params=_rich(about["params"], files),
            files=files,
        )
    except KeyError as error:
        raise Damaged(f"there is no {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its JSON cannot be read: {error}") from None


def _rich(value: Any, files: Mapping[str, bytes]) -> Any:
    if isinstance(value, list):
        return [_rich(item, files) for item in value]
    if not isinstance(value, dict):
        return value
    if "$file" in value:
        return _array(value["$file"], files)
    if "$float" in value:
        return float(value["$float"])
    return {_unescaped(key): _rich(item, files) for key, item in value.items()}


def _unescaped(key: str) -> str:
    return key.removeprefix("$")


def _array(file: str, files: Mapping[str, bytes]) -> Array:
    data = files[file]
    try:
        return _from_npy(data) if file.endswith(".npy") else _from_image(data)
    except Exception as error:  # Pillow and numpy raise of many kinds when bytes are wrong
        raise Damaged(f"{file} cannot be read: {error}") from None


def _from_npy(data: bytes) -> Array:
    # Not numpy's load: it would unpickle what says that it is pickled.
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError("another version of npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
    if fortran or dtype.kind not in _KINDS:
        raise ValueError(f"dtype {dtype}, or an order of the axes, that is never written")
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError("more or fewer bytes than its shape says")
    return np.ndarray(shape, dtype, data, stream.tell()).copy()


def _from_image(data: bytes) -> Array:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        return np.array(image)
