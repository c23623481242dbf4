"""Codec: one sample as the files of a WebDataset sample, and back.

    000000012.image.png        uint8 arrays of H x W x 3 or 4
    000000012.depth.npy.gz     all other arrays, with their dtype and shape; before format 4, depth.npy
    000000012.json             index, instance, params and values, and the checksums of the other files

An episode is one sample too: its values are those of its frames side by side, and its JSON has their number, "steps".

In the JSON, params and values are trees of `wire.payload`: `{"$": "depth.npy.gz"}` stands for an array. Files are named
after their values, so that any WebDataset reader finds them. The name of a file has only lower-case letters, digits,
"_" and "-", so it may differ from the name of the value; which file is which value, only the JSON says.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_whole
from ..errors import ConfigError, ProtocolError
from ..wire.payload import from_tree, to_tree
from . import npy
from .checksums import Damaged, checksum, sealed, unsealed
from .png import png

Array = np.ndarray[Any, Any]

_MAX_PIXELS = 1 << 26  # Pillow takes larger images for an attack when it reads them
_MAX_JPEG_SIDE = 65_500  # pixels; libjpeg writes no more
_MAX_NAME = 60  # characters of a file's name after the key; a tar header has room for 100 in all


@dataclass(frozen=True)
class Images:
    """How images are written. Raises ConfigError if an option is wrong."""

    format: str = "png"
    """"png", or "jpeg" for three-channel images whose name begins with "image", if no side is over 65,500 pixels.

    All other images are PNG, which loses nothing, because they may be labels."""
    quality: int | None = None
    """The quality of JPEG, 1 to 100. None is 95."""

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
        """Return the extension and the bytes of an array's file: an image if it can be one, else gzipped npy.

        Which of them depends on the name, the dtype and the shape alone, so that a value has the same key in all samples.
        """
        channels = array.shape[2] if array.dtype == np.uint8 and array.ndim == 3 else 0
        if channels not in (3, 4) or not 0 < array.shape[0] * array.shape[1] <= _MAX_PIXELS:
            return "npy.gz", npy.compressed(array)
        fits = channels == 3 and max(array.shape) <= _MAX_JPEG_SIDE
        if self.format == "jpeg" and name.startswith("image") and fits:
            from PIL import Image

            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "JPEG", quality=95 if self.quality is None else self.quality)
            return "jpg", buffer.getvalue()
        return "png", png(array)


class Sample(dict[str, Any]):
    """A recorded sample: its values by name, and "index". The arrays are numpy's, writable, and yours."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        index: int,
        instance: int,
        params: Any,
        files: Mapping[str, bytes],
        steps: int = 1,
        sources: Mapping[str, tuple[str, Array]] | None = None,
    ) -> None:
        super().__init__({**values, "index": index})
        self.returned = values
        """What the script returned, by name: the same values without "index"."""
        self.index = index
        """The index of the sample in its stream."""
        self.instance = instance
        """The number of the Blender process that rendered it."""
        self.params: dict[str, Any] = params
        """The params it was rendered with. Empty if there were none."""
        self.files = files
        """The recorded bytes of its files, by names such as "image.png" or "depth.npy.gz"."""
        self.steps = steps
        """How many frames the sample has. If there are several, it is an episode, and time is the first axis of its
        arrays."""
        self._sources = sources or {}  # by value the name of its file, and the array that was read from it

    def file_of(self, name: str) -> tuple[str, bytes] | None:
        """Return the name and the bytes of a value's recorded file. None if it has none, or is not the array that was read."""
        file, array = self._sources.get(name, ("", None))
        return (file, self.files[file]) if file and self.get(name) is array else None

    def frame(self, step: int) -> Mapping[str, Any]:
        """Return the values of one frame, by name. `step` counts from 0. The arrays are views of the sample's."""
        if self.steps == 1:
            return self.returned
        return {name: _at_step(value, step) for name, value in self.returned.items()}


def key_of(index: int) -> str:
    """Return the WebDataset key of a sample: what the names of its files begin with."""
    return f"{index:09d}"


def encode(
    values: Mapping[str, Any], *, index: int, instance: int, params: Mapping[str, Any], images: Images, steps: int = 1
) -> dict[str, bytes]:
    """Return the files of a sample, by name without the key.

    Args:
        values, index, instance, params: Those of a Frame; or of an episode, as a Clip of all its frames has them.
        images: How images are written.
        steps: How many frames the sample has.
    """
    files: dict[str, bytes] = {}

    def store(array: Array, name: str) -> str:
        extension, data = images.encode(array, name)
        file = _unused(name, extension, files)
        files[file] = data
        return file

    # The values first: where a value and one of params would have the same file name, the value gets it.
    tree = to_tree(values, "", store)
    sample = {"index": index, "instance": instance, "params": to_tree(params, "params", store), "values": tree}
    if steps > 1:
        sample["steps"] = steps
    files["json"] = sealed({**sample, "files": {name: checksum(data) for name, data in files.items()}})
    return files


def encode_sample(sample: Any, images: Images) -> dict[str, bytes]:
    """Return the files of a Frame, or of an episode as a Clip of all its frames, as `encode` does."""
    return encode(
        sample,
        index=sample.index,
        instance=sample.instance,
        params=sample.params,
        images=images,
        steps=getattr(sample, "length", 1),
    )


def _unused(name: str, extension: str, files: Mapping[str, bytes]) -> str:
    """Return a new file name that every tar and every WebDataset reader takes, with no dot but before the extension."""
    base = re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:_MAX_NAME].strip("_-") or "value"
    used = {file.partition(".")[0] for file in files}
    unused = base if base not in used else next(f"{base}-{n}" for n in itertools.count(2) if f"{base}-{n}" not in used)
    return f"{unused}.{extension}"


def decode(files: Mapping[str, bytes], *, checked: bool = True) -> Sample:
    """Return the sample of these files, by name without the key.

    Args:
        checked: Whether to compare the checksums, which samples of format 2 do not have.

    Raises:
        Damaged: `encode` did not make them.
    """
    unused = dict(files)
    file_of: dict[int, str] = {}  # by the id of an array

    def fetch(file: Any) -> Array:
        if not isinstance(file, str) or file not in unused:
            raise Damaged(f"there is no {file!r:.80}")
        data = unused.pop(file)  # once each, so that a small JSON cannot ask for more memory than its files do
        if checked and sums.get(file) != checksum(data):
            raise Damaged(f"{file} is not what was written: its checksum differs", file=file)
        try:
            if file.endswith(".npy.gz"):
                array = npy.from_compressed(data)
            else:
                array = npy.from_plain(data) if file.endswith(".npy") else _from_image(data)
        except Exception as error:  # Pillow, numpy and isal raise many kinds when bytes are wrong
            raise Damaged(f"{file} cannot be read: {error}", file=file) from None
        file_of[id(array)] = file
        return array

    try:
        sample = unsealed(files["json"], checked=checked)
        sums = dict(sample["files"]) if checked else {}
        values, params = (from_tree(sample[name], fetch) for name in ("values", "params"))
        if not isinstance(values, dict) or not isinstance(params, dict):
            raise Damaged("its JSON cannot be read: values and params are no dicts", file="json")
        index, instance, steps = int(sample["index"]), int(sample["instance"]), int(sample.get("steps", 1))
        if steps > 1 and not lengths(values) <= {steps}:
            raise Damaged(f"its JSON cannot be read: not all values have {steps} steps", file="json")
    except KeyError as error:
        raise Damaged(f"there is no {error}", file="json") from None
    except (ProtocolError, ValueError, TypeError, OverflowError) as error:
        raise Damaged(f"its JSON cannot be read: {error}", file="json") from None
    sources = {name: (file_of[id(value)], value) for name, value in values.items() if id(value) in file_of}
    return Sample(values, index=index, instance=instance, params=params, files=files, steps=steps, sources=sources)


def lengths(value: Any) -> set[int]:
    """Return the numbers of rows in what an episode's frames are batched to. Raises TypeError if something has none."""
    if isinstance(value, dict):
        return set().union(*map(lengths, value.values()))
    return {len(value)}


def _at_step(value: Any, step: int) -> Any:
    """Return the value of one frame from those of all: the other way round than `stream.batch` puts them together."""
    if isinstance(value, dict):
        return {name: _at_step(item, step) for name, item in value.items()}
    row = value[step]
    return row.item() if isinstance(row, np.generic) else row


def _from_image(data: bytes) -> Array:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        pixels = image.width * image.height
        if image.mode not in ("RGB", "RGBA") or pixels > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels of mode {image.mode}, which is never written")
        if pixels * len(image.mode) > npy.MOST_SHRUNK * len(data):  # Pillow would allocate them before it notices
            raise ValueError(f"{image.width} x {image.height} pixels cannot be in {len(data)} bytes")
        return np.array(image)
