"""Which installer puts packages into a Python: pip, or uv beside a Python that has no pip. Standard library only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


_UNKNOWN = "0.0"
_FOR_OTHERS = (23, 2)  # an older pip does not run in Python 3.12 and later; that of Debian 12 is 23.0


def installer(python: str, *, of_pip: Sequence[str] = ()) -> list[str] | None:
    """Return the beginning of the command line that installs packages into a Python: up to the packages' names.

    The Python need have no pip of its own. uv makes environments without one.

    Args:
        of_pip: Options that only pip has.

    Returns:
        None if the Python that runs here has no pip, or none that can do it, and there is no uv on the PATH.
    """
    pip = _pip()
    if pip and python == sys.executable:
        return [python, "-m", "pip", "install", *of_pip]
    if pip >= _FOR_OTHERS:
        return [sys.executable, "-m", "pip", "--python", python, "install", *of_pip]
    return ["uv", "pip", "install", "--python", python] if shutil.which("uv") else None


def _pip() -> tuple[int, ...]:
    """Return the first two numbers of the version of the pip here; none if there is no pip."""
    if importlib.util.find_spec("pip") is None:
        return ()
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:  # one that was put here by hand
        version = _UNKNOWN
    return tuple(int(number) for number in (version or _UNKNOWN).split(".")[:2] if number.isdigit())
