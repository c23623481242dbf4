"""Public names that are imported when they are first used (PEP 562). Used on both sides."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Load", "lazy"]

Load = Callable[[str], Any]
"""A module's `__getattr__`."""


def lazy(package: str, homes: Mapping[str, str], modules: Sequence[str] = ()) -> Load:
    """Return a `__getattr__` for a package, which imports a name when it is first used and keeps it in the package.

    Args:
        package: The package.
        homes: By submodule, the names that are imported from it, with blanks between them. None of them may be the
            name of a submodule, because importing that submodule would replace the name.
        modules: Submodules that are public names themselves.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")  # the import itself keeps it in the package
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
