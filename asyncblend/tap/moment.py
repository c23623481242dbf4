"""Moment: what there is to see of a stream at one time, and how it travels to another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ProtocolError
from ..stream.clips import Clip
from ..stream.frame import Frame
from ..wire.payload import decode_values, encode_values, pieces

VERSION = 1
"""Of the form in which moments travel."""


class Line(NamedTuple):
    """One line of the log."""

    level: str
    """Such as "WARNING"."""
    text: str


class Doing(NamedTuple):
    """What a stream does: that of its statistics which is of a moment."""

    queued: int
    """Frames that wait for the consumer."""
    queue_size: int
    """How many can."""
    state: Mapping[int, str]
    """By instance, as `StreamStats` has it."""


class Moment(NamedTuple):
    """What is to be seen at one time."""

    frame: Frame | None = None
    """The newest frame; None if none has come since the moment before."""
    came: int = 0
    """How many frames the consumer has taken so far, this one included."""
    doing: Doing | None = None
    """None where there is no stream, as with a recording, or none yet."""
    log: Sequence[Line] = ()
    """The lines of the log since the moment before."""
    ended: bool = False
    """Whether this is the last one."""


def packed(moment: Moment) -> list[Any]:
    """Return a moment as the parts of a message. Its arrays are not copied yet.

    Raises:
        Unsendable: The frame has values that cannot travel.
    """
    frame = moment.frame
    values: dict[str, Any] = {
        "version": VERSION,
        "came": moment.came,
        "log": [list(line) for line in moment.log],
        "ended": moment.ended,
    }
    if frame is not None:
        about = {name: getattr(frame, name) for name in ("index", "instance", "step", "last")}
        if isinstance(frame, Clip):
            about["step"] += (frame.length - 1) * frame.stride  # whose values are those of the last one
        values["frame"] = {**about, "params": dict(frame.params), "values": dict(_single(frame))}
    if moment.doing is not None:
        values["doing"] = [*moment.doing[:2], list(moment.doing.state.items())]  # JSON has no numbers as keys
    head, *arrays = encode_values(values)
    return [head, *(piece for array in arrays for piece in pieces(array))]


def unpacked(parts: Sequence[Any]) -> Moment:
    """Return the moment in the parts of a message.

    Raises:
        ProtocolError: They have none, or that of another version.
    """
    values = decode_values(parts)
    if values.get("version") != VERSION:
        raise ProtocolError(
            f"the training runs another version of asyncblend, whose view has the form {values.get('version')!r:.40}; "
            f"this one knows {VERSION}. Install the same version on both sides"
        )
    try:
        frame, doing = values.get("frame"), values.get("doing")
        return Moment(
            frame=None if frame is None else Frame(frame.pop("values"), **frame),
            came=values["came"],
            doing=None if doing is None else Doing(doing[0], doing[1], dict(doing[2])),
            log=[Line(*line) for line in values["log"]],
            ended=values["ended"],
        )
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise ProtocolError(f"a moment that cannot be read: {error}") from None


def _single(frame: Frame) -> Mapping[str, Any]:
    """Return the values of a frame; of a clip, those of its last frame."""
    if not isinstance(frame, Clip):
        return frame
    return {name: _last(value, frame.length) for name, value in frame.items()}


def _last(value: Any, length: int) -> Any:
    if isinstance(value, dict):
        return {name: _last(one, length) for name, one in value.items()}
    of_steps = isinstance(value, list | np.ndarray) and len(value) == length
    return value[-1] if of_steps else value
