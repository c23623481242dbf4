"""Spaces: what a script calls a space as Gymnasium's own, and the values that are in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ..errors import ConfigError

__all__ = ["Outside", "Space", "reader", "space_of"]

Space = spaces.Space[Any]
_KNOWN = ("Box", "Dict", "Discrete", "MultiBinary", "MultiDiscrete", "Tuple")


class Outside(ValueError):
    """An observation or action is not in its space. The message names the part of it that is not."""


def space_of(description: Any, name: str) -> Space:
    """Return the space that a script describes, as `{"Discrete": {"n": 2}}`.

    Args:
        name: What the space is called in the error.

    Raises:
        ConfigError: It is no description of a space.
    """
    if not (isinstance(description, Mapping) and len(description) == 1 and next(iter(description)) in _KNOWN):
        raise ConfigError(
            f'{name} must be one of {", ".join(_KNOWN)} with its arguments, as {{"Discrete": {{"n": 2}}}}; '
            f"got {description!r:.200}"
        )
    ((kind, arguments),) = description.items()
    try:
        if kind == "Tuple":
            return spaces.Tuple([space_of(part, f"{name}[{i}]") for i, part in enumerate(arguments)])
        if kind == "Dict":
            return spaces.Dict({key: space_of(part, f"{name}[{key!r}]") for key, part in arguments.items()})
        if kind == "Box":
            return _box(**arguments)
        own = {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in arguments.items()}
        return getattr(spaces, kind)(**own)  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except Exception as error:  # assertions and type errors of Gymnasium's, and descriptions that have no items
        raise ConfigError(f"{name} is no {kind}: {error}; got {description!r:.200}") from error


def _box(low: Any, high: Any, shape: Any = None, dtype: Any = "float32") -> Space:
    """Return a box whose bounds, numbers or arrays or lists, have its own dtype: Gymnasium warns of any other."""
    kind = np.dtype(dtype)
    bounds: list[Any] = [each if isinstance(each, int | float) else np.array(each, kind) for each in (low, high)]
    return spaces.Box(bounds[0], bounds[1], shape, dtype=kind.type)


def reader(space: Space, name: str) -> Callable[[Any], Any]:
    """Return a function that makes what is given an element of the space, which shares no memory with it.

    It raises Outside if that is not in the space. A list counts as an array, an array without
    dimensions as a number, and numbers may have another precision.

    Args:
        name: What the value is called in the error.

    Raises:
        ConfigError: It is a space of another kind than those that travel.
    """
    if isinstance(space, spaces.Dict):
        return _mapping_reader({key: reader(part, f"{name}[{key!r}]") for key, part in space.items()}, name)
    if isinstance(space, spaces.Tuple):
        return _tuple_reader([reader(part, f"{name}[{i}]") for i, part in enumerate(space)], name)
    if isinstance(space, spaces.Discrete):
        return _number_reader(space, name)
    if isinstance(space, spaces.Box):
        return _array_reader(name, space.shape, space.dtype, space.low, space.high)
    if isinstance(space, spaces.MultiDiscrete):
        return _array_reader(name, space.shape, space.dtype, space.start, space.start + space.nvec - 1)
    if isinstance(space, spaces.MultiBinary):
        return _array_reader(name, space.shape, space.dtype, np.int8(0), np.int8(1))
    raise ConfigError(f"{name}: asyncblend knows the spaces {', '.join(_KNOWN)}; got {space!r:.200}")


def _mapping_reader(readers: dict[str, Callable[[Any], Any]], name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or value.keys() != readers.keys():
            has = sorted(value, key=str) if isinstance(value, Mapping) else f"{value!r:.100}"
            raise Outside(f"{name} must have {sorted(readers)}; it is {has}")
        return {key: read_part(value[key]) for key, read_part in readers.items()}

    return read


def _tuple_reader(readers: list[Callable[[Any], Any]], name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise Outside(f"{name} must be {len(readers)} values; it is {value!r:.100}")
        return tuple(read_part(part) for read_part, part in zip(readers, value, strict=True))

    return read


def _number_reader(space: spaces.Discrete, name: str) -> Callable[[Any], Any]:
    make = space.dtype.type
    low, high = int(space.start), int(space.start + space.n) - 1

    def read(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if not isinstance(value, int | np.integer) or not low <= value <= high:
            raise Outside(f"{name} must be a whole number from {low} to {high}; it is {value!r:.100}")
        return make(value)

    return read


def _array_reader(name: str, shape: Any, dtype: Any, low: Any, high: Any) -> Callable[[Any], Any]:
    whole = dtype.kind in "iub"
    # No element of images is outside, and to look would take longer than to copy them.
    all_fit = dtype.kind in "iu" and bool((low == np.iinfo(dtype).min).all() and (high == np.iinfo(dtype).max).all())

    def read(value: Any) -> Any:
        try:
            given = np.asarray(value)
        except Exception as error:  # numpy's of a ragged list, or one of the value's own
            raise Outside(
                f"{name} must be an array of shape {shape}; numpy makes none of {value!r:.100}: {error}"
            ) from error
        if given.shape != shape:
            raise Outside(f"{name} must have shape {shape}; it has {given.shape}")
        if given.dtype.kind not in ("iub" if whole else "iubf"):
            raise Outside(f"{name} must be {dtype}; it is {given.dtype}")
        made = given.astype(dtype)
        if all_fit and given.dtype == dtype:
            return made
        compared = given if whole else made  # a bound has the space's own precision, and whole numbers wrap around
        fits = (compared >= low) & (compared <= high)  # which a NaN does not
        if np.count_nonzero(fits) != fits.size:  # faster than `all` for what is small
            at = tuple(int(i) for i in np.argwhere(~fits)[0])
            least, most = np.broadcast_to(low, shape)[at], np.broadcast_to(high, shape)[at]
            raise Outside(f"{name}{list(at) or ''} is {compared[at]}, which is not from {least} to {most}")
        return made

    return read
