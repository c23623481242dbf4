"""Preflight: what a run needs of this process and this machine, checked before anything starts."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import sys
import tempfile

from ..errors import ConfigError
from .discovery import VARIABLE, Blender

_EACH = 8
"""Descriptors of one Blender: two connections, pidfd, shared memory, and both ends of its line until it has started; two
more for a connection that returns."""
_COMMON = 64  # those of the event loop, of the hub, of a launch, and of what the program opens for a moment
_PATIENCE = 5.0  # seconds for a connection to this process itself


def check_descriptors(instances: int) -> None:
    """Raise the soft limit of open files as far as needed, because ZeroMQ aborts the process that runs out of them.

    Raises:
        ConfigError: The hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = _open_files(soft)
    needed = taken + _COMMON + _EACH * instances
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    # More than needed where there is more, as the program itself opens files later.
    wanted = 2 * needed if hard == resource.RLIM_INFINITY else min(2 * needed, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit beside the hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        soft = max(soft, wanted)
    if needed > soft:
        fits = max(0, (soft - taken - _COMMON) // _EACH)
        raise ConfigError(
            f"instances={instances} needs about {needed} open files, {taken} of which this program has already, but "
            f"the limit is {soft}. Raise it before the start (`ulimit -n {needed}` as root, or LimitNOFILE={needed} "
            f"for a service)" + (f", or set instances={fits}" if fits else ", or use fewer instances")
        )


def working_directory() -> str:
    """Return the working directory.

    Raises:
        ConfigError: It is gone.
    """
    try:
        return os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory of this program is gone ({error}): change into one that exists, and start again"
        ) from error


def temporary_folder() -> str:
    """Return the folder for temporary files.

    Raises:
        ConfigError: There is none, or no socket can have a path in it.
    """
    try:
        folder = os.path.abspath(tempfile.gettempdir())
        folder.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the path of the temporary folder, {os.fsencode(folder)!r}, is not UTF-8: set $TMPDIR to another one, such as /tmp"
        ) from error
    except OSError as error:
        raise ConfigError(f"{error}: set $TMPDIR to a folder that can be written to") from error
    return folder


def check_loopback(endpoint: str) -> None:
    """Check that this machine can connect to itself, if the endpoint is there.

    Raises:
        ConfigError: It cannot.
    """
    if not endpoint.startswith("tcp://127."):
        return
    with socket.socket() as here, socket.socket() as there:
        try:
            here.bind(("127.0.0.1", 0))
            here.listen()
            there.settimeout(_PATIENCE)
            there.connect(here.getsockname())
        except OSError as error:
            raise ConfigError(
                f"the path of the temporary folder is too long for a Unix socket, and the loopback interface cannot be "
                f"used ({error}): set $TMPDIR to a folder with a shorter path, such as /tmp"
            ) from error


def check_window(blender: Blender) -> None:
    """Check that a Blender can open a window here, as far as can be known before it starts.

    Raises:
        ConfigError: It is the bpy module, or this program has no screen.
    """
    if blender.kind != "executable":
        raise ConfigError(
            f"show needs a Blender executable, but {blender.path} is the Python of the bpy module, which has no window: "
            f"install Blender, and give its path as the option blender=... or in ${VARIABLE}"
        )
    screens = ("WAYLAND_DISPLAY", "DISPLAY")
    if sys.platform not in ("darwin", "win32") and not any(os.environ.get(name) for name in screens):
        raise ConfigError(
            "show opens Blender's window, but neither $DISPLAY nor $WAYLAND_DISPLAY names a screen: start it from a "
            "desktop, over `ssh -X`, or with a virtual screen (`xvfb-run -a COMMAND`, from Debian's package xvfb)"
        )


def _open_files(limit: int) -> int:
    """Return how many descriptors this process has open; 0 where the system does not tell."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError as error:
            if error.errno == errno.EMFILE:
                return limit
    return 0
