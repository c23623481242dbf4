"""View transforms that treat each channel by itself, such as Standard and Raw, as a table for each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

# How many low bits of a float32 are ignored. 10 bits of the mantissa stay: half a step is 0.12 of 1/255 in sRGB.
_DROPPED = 13
_ENTRIES = 1 << (32 - _DROPPED)


class ChannelTable:
    """A view transform that treats each channel by itself.

    The upper 19 bits of a float32 (sign, exponent and ten bits of the mantissa) are the index into the table. So every
    float has an entry, and an image of 640 x 480 takes about a millisecond.

    Args:
        tables: 3 x 2**19, for R, G and B.
    """

    def __init__(self, tables: npt.NDArray[np.uint8]) -> None:
        self._tables = tables

    def write(self, linear: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> None:
        """Write the display values of H x W x 4 scene-linear pixels into the first three channels of an image."""
        indices = linear.view(np.uint32) >> _DROPPED
        for channel in range(3):
            image[..., channel] = self._tables[channel].take(indices[..., channel])


def fill_channel_table(show: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> ChannelTable | None:
    """Return the table of a view transform, or None if it mixes the channels.

    Args:
        show: Returns the N x 3 uint8 display values of N x 3 scene-linear colours. For all entries it takes 50 to 100 ms.
    """
    if _mixes_channels(show):
        return None
    bits = np.arange(_ENTRIES, dtype=np.uint32) << _DROPPED
    values = (bits | 1 << (_DROPPED - 1)).view(np.float32)  # the middle of the floats that share an entry
    infinite = np.isinf(bits.view(np.float32))
    values[infinite] = bits.view(np.float32)[infinite]
    tables = np.ascontiguousarray(show(np.repeat(values[:, None], 3, axis=1)).T)
    return ChannelTable(np.broadcast_to(tables[0].copy(), tables.shape) if (tables[0] == tables[1:]).all() else tables)


def _mixes_channels(show: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> bool:
    """Whether a channel depends on another: random colours must look as each of their values does as a grey."""
    rng = np.random.default_rng(0)
    # As wide as exposures may move what is seen: with the view's curves, the exposure is part of the transform.
    colours = np.float32(2) ** rng.uniform(-24, 24, (4096, 3)).astype(np.float32)
    colours[rng.random(colours.shape) < 0.1] = 0
    colours[rng.random(colours.shape) < 0.1] *= -1
    greys = np.repeat(colours.T.reshape(-1, 1), 3, axis=1)
    seen = show(np.concatenate([colours, greys])).astype(int).reshape(4, *colours.shape)
    separate = np.stack([seen[1 + channel, :, channel] for channel in range(3)], axis=1)
    return bool(np.abs(separate - seen[0]).max() > 1)
