"""Exceptions raised by asyncblend.

AsyncblendError
├── ConfigError (ValueError)              an option or argument is wrong
├── BlenderNotFound (FileNotFoundError)   there is no Blender where we looked
├── InstanceError                         one Blender process failed: .instance, .log_tail
│   ├── InstanceExited                    it ended before it was asked to: .returncode
│   │   └── WindowClosed                  its user closed its window
│   ├── StartTimeout (TimeoutError)       it was not ready in time
│   ├── FrameTimeout (TimeoutError)       it sent no frame, or no heartbeat, in time
│   └── CrashLoop                         it crashed too often; __cause__ is the last crash
├── SampleError                           a sample could not be made: .index, .traceback
├── EpisodeOver                           a step was asked of an episode that has ended
├── EpisodeLost                           the Blender of an episode died, and it is not replayed: .step
├── FleetLost                             the fleet that a stream is attached to has ended: .fleet
├── RecordingError                        a recording cannot be written or read: .path, .offset, .recorded
├── ProtocolError                         the other side sent a message that cannot be read
├── ForkedProcessError                    a stream was used in a forked copy of its process
└── StreamClosed                          a stream or pass was used after it was closed

Every class can be made from its message alone, and takes its data as optional keywords, because PyTorch's
DataLoader rebuilds the exception of a worker as `type(message)` in the training process.
"""

from __future__ import annotations

from typing import Any

NOBODY_STEPS = "the script serves an environment, and nobody takes its steps"
"""Is in the message of a SampleError if that is why a stream has no episodes."""


def _rebuild(cls: type[AsyncblendError], message: str, data: dict[str, Any]) -> AsyncblendError:
    error = cls(message)
    error.__dict__.update(data)
    return error


class AsyncblendError(Exception):
    """The base of all errors that asyncblend raises."""

    command: str = ""
    """What to type in a shell to mend it; empty if no command is known to help."""
    details: str = ""
    """Lines that explain it, such as the last output of a program; empty if there are none."""

    def __init__(self, message: str = "", *, command: str = "", details: str = "") -> None:
        super().__init__(message)
        if command:
            self.command = command
        if details:
            self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ loses the keyword data, and OSError's loses attributes of subclasses.
        return _rebuild, (type(self), str(self), self.__dict__.copy())


class ConfigError(AsyncblendError, ValueError):
    """An option or argument is wrong. The message names it, its value, and what would be right."""


class BlenderNotFound(AsyncblendError, FileNotFoundError):
    """No usable Blender was found. The message says where we looked and how to get one."""


class InstanceError(AsyncblendError):
    """A Blender process failed."""

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
        """The end of its standard output and error, up to 16 kB."""


class InstanceExited(InstanceError):
    """A Blender process ended before it was asked to."""

    def __init__(
        self, message: str = "", *, instance: int | None = None, log_tail: str = "", returncode: int | None = None
    ) -> None:
        super().__init__(message, instance=instance, log_tail=log_tail)
        self.returncode = returncode
        """Its exit status. A negative one is the signal that killed it."""


class WindowClosed(InstanceExited):
    """The user closed the window of the Blender that `StreamConfig.show` asked for. It is not started again."""


class StartTimeout(InstanceError, TimeoutError):
    """A Blender process did not call serve within `Timeouts.start`."""


class FrameTimeout(InstanceError, TimeoutError):
    """A Blender process sent no frame within `Timeouts.frame`, or no heartbeat within `Timeouts.beat`."""


class CrashLoop(InstanceError):
    """An instance crashed more often than the `RestartPolicy` allows. `__cause__` is the error of the last crash."""


class SampleError(AsyncblendError):
    """The script's `sample` raised, returned what cannot travel, or its sample killed too many Blenders."""

    def __init__(self, message: str = "", *, index: int | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.index = index
        """Index of the sample."""
        self.traceback = traceback
        """The Python traceback from inside Blender, as text."""


class EpisodeOver(AsyncblendError):
    """A step was asked of an episode that has ended: the script's generator has returned, or it was closed."""


class EpisodeLost(AsyncblendError):
    """The Blender of an episode died, and the episode has more steps than were to be replayed. Begin another one."""

    def __init__(self, message: str = "", *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        """The number of steps that had been made."""


class FleetLost(AsyncblendError):
    """The fleet that a stream is attached to has ended: it was stopped, its node was lost, or it does not answer."""

    def __init__(self, message: str = "", *, fleet: str = "") -> None:
        super().__init__(message)
        self.fleet = fleet
        """Its name."""


class RecordingError(AsyncblendError):
    """A recording cannot be written, or a part of it is missing or damaged. Its whole samples stay readable."""

    def __init__(
        self, message: str = "", *, path: str | None = None, offset: int | None = None, recorded: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        """Path of the shard, or of the folder."""
        self.offset = offset
        """Where the shard is damaged, in bytes from its beginning, if that is known."""
        self.recorded = recorded
        """The number of whole samples in the folder, if it was being written."""


class ProtocolError(AsyncblendError):
    """The other side sent a message that cannot be read, or speaks another protocol version."""


class ForkedProcessError(AsyncblendError):
    """A stream was used in a forked copy of the process that opened it. Make a new stream there."""


class StreamClosed(AsyncblendError):
    """The stream, or this pass over it, has been closed."""
