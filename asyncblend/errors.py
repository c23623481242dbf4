"""Exceptions raised by asyncblend.

AsyncblendError
├── ConfigError (ValueError)              a wrong option; fix the call
├── BlenderNotFound (FileNotFoundError)   no Blender where we looked
├── InstanceError                         one Blender process: .instance, .log_tail
│   ├── InstanceExited                    it ended before it was asked to: .returncode
│   ├── StartTimeout (TimeoutError)       it was not ready in time
│   ├── FrameTimeout (TimeoutError)       it is alive, but gives no frame or heartbeat
│   └── CrashLoop                         it died too often; __cause__ is the last death
├── SampleError                           a sample could not be made: .index, .traceback
├── RecordingError                        a recording cannot be written or read: .path, .recorded
├── ProtocolError                         the other side sent what we cannot read
├── ForkedProcessError                    a stream of the parent process was used in a forked one
└── StreamClosed                          used after it was closed

Every class can be made from its message alone, with the data as optional keywords, because PyTorch's
DataLoader rebuilds a worker's exception as `type(message)` in the training process.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AsyncblendError",
    "BlenderNotFound",
    "ConfigError",
    "CrashLoop",
    "ForkedProcessError",
    "FrameTimeout",
    "InstanceError",
    "InstanceExited",
    "ProtocolError",
    "RecordingError",
    "SampleError",
    "StartTimeout",
    "StreamClosed",
]


def _rebuild(cls: type[AsyncblendError], message: str, data: dict[str, Any]) -> AsyncblendError:
    error = cls(message)
    error.__dict__.update(data)
    return error


class AsyncblendError(Exception):
    """Base of all errors that asyncblend raises on purpose."""

    command = ""
    """What to type in a shell to mend it; empty if no command is known to help."""
    details = ""
    """Lines that explain it, such as the last output of a program; empty if there are none."""

    def __init__(self, message: str = "", *, command: str = "", details: str = "") -> None:
        super().__init__(message)
        if command:
            self.command = command
        if details:
            self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        # The default passes `args` to __init__ and loses keyword data; OSError's own drops subclasses' data.
        return _rebuild, (type(self), str(self), self.__dict__.copy())


class ConfigError(AsyncblendError, ValueError):
    """An option is wrong. The message names it, its value, and what would be right."""


class BlenderNotFound(AsyncblendError, FileNotFoundError):
    """No usable Blender was found. The message lists where we looked and how to get one."""


class InstanceError(AsyncblendError):
    """Something went wrong with one Blender process."""

    def __init__(
        self,
        message: str = "",
        *,
        instance: int | None = None,
        log_tail: str = "",
        command: str = "",
        details: str = "",
    ) -> None:
        super().__init__(message, command=command, details=details)
        self.instance = instance
        """Number of the Blender instance."""
        self.log_tail = log_tail
        """The last lines that it wrote to its standard output and error."""


class InstanceExited(InstanceError):
    """A Blender process ended before it was asked to."""

    def __init__(
        self,
        message: str = "",
        *,
        instance: int | None = None,
        log_tail: str = "",
        returncode: int | None = None,
    ) -> None:
        super().__init__(message, instance=instance, log_tail=log_tail)
        self.returncode = returncode
        """Exit status; negative is the signal that killed it."""


class StartTimeout(InstanceError, TimeoutError):
    """A Blender process was not ready within `Timeouts.start`."""


class FrameTimeout(InstanceError, TimeoutError):
    """A Blender process gave no frame within `Timeouts.frame`, or no heartbeat within `Timeouts.beat`."""


class CrashLoop(InstanceError):
    """A Blender process died more often than the `RestartPolicy` allows. `__cause__` is its last death."""


class SampleError(AsyncblendError):
    """The user's `sample` function raised, or returned something that cannot travel."""

    def __init__(self, message: str = "", *, index: int | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.index = index
        """Index of the sample."""
        self.traceback = traceback
        """The Python traceback from inside Blender, as text."""


class RecordingError(AsyncblendError):
    """A recording cannot be written, or a part of it is missing or damaged. What is whole stays readable."""

    def __init__(self, message: str = "", *, path: str | None = None, recorded: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        """The shard, or the folder."""
        self.recorded = recorded
        """Samples that are whole in the folder, if it was being written."""


class ProtocolError(AsyncblendError):
    """The other side sent a message that we cannot read, or speaks another protocol version."""


class ForkedProcessError(AsyncblendError):
    """A stream was used in another process than the one that opened it. Make a new stream there."""


class StreamClosed(AsyncblendError):
    """The stream, or this iteration over it, has been closed."""
