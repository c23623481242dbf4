"""The files of images: as they were recorded, or PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from ..recording.codec import Sample
from ..recording.png import png


class ImageFile(NamedTuple):
    """The image of a sample."""

    suffix: str  # with the dot
    data: bytes
    size: tuple[int, int]  # height and width


def is_picture(value: Any) -> bool:
    """Return whether this is an image of 8 bits that has a file: H x W grey, or H x W x 3 or 4, not empty."""
    right = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size > 0
    return right and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4)))


def image_file(item: Mapping[str, Any], *, alpha: bool = True) -> ImageFile:
    """Return the image of a sample: the file as it was recorded, which is not encoded again, or a new one.

    The file is that of the very array that was read; an array in its place is encoded. Without `alpha` an image of four
    channels loses the last one.

    Raises ConfigError if it is no image of 8 bits.
    """
    image = item["image"]
    if not is_picture(image):
        raise ConfigError(
            f"sample {item['index']}: `image` is no picture of H x W, H x W x 3 or 4 uint8 but "
            f"{getattr(image, 'dtype', type(image).__name__)}{list(np.shape(image))}; an export's are files of 8 "
            f"bits: let the script's sample return such a one as `image`, and this under another name"
        )
    cut = not alpha and image.ndim == 3 and image.shape[2] == 4
    recorded = item.file_of("image") if isinstance(item, Sample) and not cut else None
    if recorded is not None and recorded[0].endswith((".png", ".jpg")):
        return ImageFile(recorded[0][-4:], recorded[1], image.shape[:2])
    return ImageFile(".png", png(np.ascontiguousarray(image[..., :3]) if cut else image), image.shape[:2])


def write_new(path: Path, data: bytes, index: int) -> None:
    """Write a file of a sample. Raises ConfigError if it is there, because the sample came before."""
    if path.exists():
        raise ConfigError(f"two samples have the index {index}; each may come once in an export")
    path.write_bytes(data)
