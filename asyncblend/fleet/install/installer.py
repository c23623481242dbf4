"""Which installer puts packages into a Python: pip, or uv beside a Python that has no pip. Standard library only."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def installer(python: str, *, of_pip: Sequence[str] = ()) -> list[str] | None:
    """Return the beginning of the command line that installs packages into a Python: up to the packages' names.

    The Python need have no pip of its own. uv makes environments without one.

    Args:
        of_pip: Options that only pip has.

    Returns:
        None if the Python that runs here has no pip, and there is no uv on the PATH.
    """
    if importlib.util.find_spec("pip") is not None:
        into = [] if python == sys.executable else ["--python", python]
        return [sys.executable, "-m", "pip", *into, "install", *of_pip]
    return ["uv", "pip", "install", "--python", python] if shutil.which("uv") else None
