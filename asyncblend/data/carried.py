"""How an error leaves a DataLoader's worker: as itself, with its data and with Blender's traceback first.

torch sends the class of a worker's error and the text that Python would print, and makes a new error of these in the
training process: its message is that text, and its data is lost. So the error is raised as one of a class that is pickled
by value. What arrives in place of the class makes the error itself.
"""

from __future__ import annotations

import contextlib
import copyreg
from collections.abc import Iterator
from typing import Any

from torch.utils.data import get_worker_info

from ..errors import AsyncblendError


@contextlib.contextmanager
def carried() -> Iterator[None]:
    """Let what goes wrong in a worker reach the training process as itself."""
    try:
        yield
    except AsyncblendError as error:
        if get_worker_info() is None or isinstance(type(error), _Carrier):
            raise
        raise _carrier(error) from error.__cause__


class _Carrier(type):
    """The class of an error that is on its way."""

    error: AsyncblendError


def _carrier(error: AsyncblendError) -> AsyncblendError:
    """Return an error that looks like this one, and whose class carries it."""
    kind = type(error)
    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "error": error}
    carrier: Any = _Carrier(kind.__name__, (kind,), about)
    raised: AsyncblendError = carrier.__new__(carrier)  # not called, because a class of a user's may want arguments
    raised.args = (str(error),)
    raised.__dict__.update(error.__dict__)
    return raised


class _Arrived:
    """Takes the place of the class in the training process."""

    def __init__(self, error: AsyncblendError, cause: AsyncblendError | None) -> None:
        self._error, self.__name__ = error, type(error).__name__
        if cause is not None:
            error.__cause__ = cause

    def __call__(self, text: str) -> AsyncblendError:
        self._error.add_note(text.partition("\n")[0])  # which worker it was
        return self._error


def _pickled(carrier: _Carrier) -> tuple[Any, ...]:
    cause = carrier.error.__cause__  # pickle loses it
    return _Arrived, (carrier.error, cause if isinstance(cause, AsyncblendError) else None)


copyreg.dispatch_table[_Carrier] = _pickled  # for torch, which pickles between its own processes
