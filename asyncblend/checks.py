"""Checks of options: each raises a ConfigError that says what is wrong, with the value, and what would be right."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")
_MAX_BITS = 1023  # of a whole number, so that it is a float too; Python itself writes none of more than 14,000


def options_checked(cls: type[T]) -> type[T]:
    """Let a wrong keyword of a dataclass raise a ConfigError that names the right one, instead of a bare TypeError."""
    init = cls.__init__
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}

    @functools.wraps(init)
    def __init__(self: T, **options: Any) -> None:
        check_names(cls.__name__, options, names)
        if missing := required - options.keys():
            raise ConfigError(f"{cls.__name__} needs {' and '.join(sorted(missing))}")
        init(self, **options)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


def check_names(owner: str, given: Iterable[str], names: Collection[str]) -> None:
    """Check keywords by their names.

    Raises:
        ConfigError: One is unknown. The message suggests the right one.
    """
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options are: {', '.join(sorted(names))}"
            raise ConfigError(f"{owner} has no option {name!r}; {hint}")


def check_whole(name: str, value: object, at_least: int) -> None:
    """Check an option that is a whole number.

    Raises:
        ConfigError: It is something else, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} must be a whole number, at least {at_least}; got {_shown(value)}")
    if _is_long(value):
        raise ConfigError(f"{name} must be a whole number of at most {_MAX_BITS} bits; got {_shown(value)}")


def _shown(value: object) -> str:
    """Return a value for an error's message, with its type where that is why it is wrong: numpy's numbers look like others."""
    if isinstance(value, int) and _is_long(value):
        return f"a whole number of {value.bit_length()} bits"
    kind = type(value)
    return repr(value) if kind.__module__ == "builtins" else f"{value!r}, a {kind.__module__}.{kind.__qualname__}"


def _is_long(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > _MAX_BITS


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    """Check an option that is a duration in seconds, which may be infinite.

    Raises:
        ConfigError: It is something else, negative, or 0 without `zero`.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and not _is_long(value)
    if not good or math.isnan(value) or value < 0 or (value == 0 and not zero):  # type: ignore[arg-type,operator]
        raise ConfigError(f"{name} must be {'zero or more' if zero else 'positive'} seconds; got {_shown(value)}")


def check_path(name: str, value: object) -> None:
    """Check an option that is a path.

    Raises:
        ConfigError: It is something else, or empty.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{name} must be a path; got {value!r}")
