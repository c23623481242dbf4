"""The names of blendtorch, the origin of asyncblend. Its host code runs with one changed line:

    from asyncblend import blendtorch as bt

    with bt.BlenderLauncher(num_instances=4, script="cube.py", scene="") as launcher:
        recv = bt.Receiver(launcher)
        data = recv(timeoutms=5000)     # {"image": ..., "xy": ..., "btid": 2}

New code should use `asyncblend.BlenderDataset`, whose DataLoader may have workers.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import StreamConfig
from .errors import ConfigError
from .stream.sync import SyncStream
from .stream.sync_frames import SyncFrames

__all__ = ["BlenderLauncher", "Receiver"]


class BlenderLauncher:
    """Launches Blender instances on entering, and closes them on leaving.

    Args:
        num_instances: The number of Blenders.
        scene: The .blend file to open. None or "": Blender's factory scene.
        script: The Python file that runs inside Blender and calls `asyncblend.blender.serve`.
        blend_path: An executable, a folder that holds one, or "bpy". None searches as StreamConfig.blender does.
        instance_args: One sequence of script arguments per instance.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        num_instances: int = 3,
        scene: str | os.PathLike[str] | None = None,
        script: str | os.PathLike[str] = "blender.py",
        blend_path: str | os.PathLike[str] | None = None,
        instance_args: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self._config = StreamConfig(
            script=script,
            scene=scene or None,
            instances=num_instances,
            blender=blend_path,
            script_args=() if instance_args is None else instance_args,
        )
        self._stream: SyncStream | None = None
        self._frames: SyncFrames | None = None

    def __enter__(self) -> BlenderLauncher:
        """Start the Blenders, and return when the first is ready.

        Raises:
            ConfigError: It was entered already, and not left since.
            AsyncblendError: As entering a BlenderStream does.
        """
        if self._stream is not None:
            raise ConfigError("this launcher's Blenders run already; leave its `with` block first, or make another one")
        with contextlib.ExitStack() as undo:
            stream = undo.enter_context(SyncStream(self._config))
            self._frames = stream.frames()
            self._stream = stream
            undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def recv(self, timeoutms: int = -1) -> dict[str, Any]:
        """Return the next sample, as `Receiver` does."""
        if self._frames is None:
            raise ConfigError("use the launcher in a `with` block")
        frame = self._frames.get(None if timeoutms < 0 else timeoutms / 1000)
        own = {
            name: np.array(value) if isinstance(value, np.ndarray) else copy.deepcopy(value)
            for name, value in frame.items()
        }
        return {**own, "btid": frame.instance}


class Receiver:
    """Receives from a launcher's Blenders."""

    def __init__(self, blender_launcher: BlenderLauncher) -> None:
        self._launcher = blender_launcher

    def __call__(self, timeoutms: int = 5000) -> dict[str, Any]:
        """Return the next sample of any Blender: the script's values, with writable arrays, and `btid`, its instance.

        Args:
            timeoutms: Milliseconds to wait at most. A negative number waits forever.

        Raises:
            TimeoutError: Nothing came in time.
            ConfigError: The launcher was not entered.
            StreamClosed: The launcher was closed.
            AsyncblendError: A Blender or a sample failed.
        """
        return self._launcher.recv(timeoutms)

    recv = __call__
