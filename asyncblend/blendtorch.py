"""The names of blendtorch, from which asyncblend comes: its host code runs with one changed line.

    from asyncblend import blendtorch as bt

    with bt.BlenderLauncher(num_instances=4, script="cube.py", scene="") as launcher:
        recv = bt.Receiver(launcher)
        data = recv(timeoutms=5000)     # {"image": ..., "xy": ..., "btid": 2}

New code wants `asyncblend.BlenderDataset`, whose DataLoader may have workers.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from .config import StreamConfig
from .errors import StreamClosed
from .stream.bridge import Bridge, Pass

__all__ = ["BlenderLauncher", "Receiver"]


class BlenderLauncher:
    """Launches Blender instances on entering, and closes them on leaving.

    Args:
        num_instances: how many.
        scene: .blend file to open; None or "" for Blender's factory scene.
        script: Python file that runs inside Blender and calls `asyncblend.blender.serve`.
        blend_path: an executable, a folder that holds one, or "bpy"; None looks around as StreamConfig.blender does.
        instance_args: one sequence of script arguments per instance.

    Raises:
        ConfigError: an argument is wrong.
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
        self._bridge: Bridge | None = None
        self._frames: Pass | None = None

    def __enter__(self) -> BlenderLauncher:
        """Start the Blenders; returns when the first is ready.

        Raises:
            AsyncblendError: as entering a BlenderStream does.
        """
        self._bridge = Bridge(self._config)
        self._frames = self._bridge.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._bridge is not None
        self._bridge.close()

    def recv(self, timeoutms: int = -1) -> dict[str, Any]:
        """As Receiver's."""
        if self._frames is None:
            raise StreamClosed("use the launcher in a `with` block")
        frame = self._frames.get(None if timeoutms < 0 else timeoutms / 1000)
        return {**{name: _own(value) for name, value in frame.items()}, "btid": frame.instance}


class Receiver:
    """Receives from a launcher's Blenders."""

    def __init__(self, blender_launcher: BlenderLauncher) -> None:
        self._launcher = blender_launcher

    def __call__(self, timeoutms: int = 5000) -> dict[str, Any]:
        """The next sample of any Blender: the script's values, arrays writable, and `btid`, the instance's number.

        Args:
            timeoutms: milliseconds to wait at most; negative: for ever.

        Raises:
            TimeoutError: nothing came in time.
            StreamClosed: the launcher is not open.
            AsyncblendError: a Blender or a sample failed.
        """
        return self._launcher.recv(timeoutms)

    recv = __call__


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else copy.deepcopy(value)
