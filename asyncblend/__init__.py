"""asyncblend: live synthetic data from Blender for PyTorch.

This module runs in Blender's own Python too (3.10 and up), so it imports nothing but the standard library. Each
public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import Load, lazy

if TYPE_CHECKING:
    from .config import RestartPolicy as RestartPolicy
    from .config import StreamConfig as StreamConfig
    from .config import Timeouts as Timeouts
    from .curriculum import Curriculum as Curriculum
    from .data.collate import collate as collate
    from .data.dataset import BlenderDataset as BlenderDataset
    from .data.map import BlenderMapDataset as BlenderMapDataset
    from .data.mixed import MixedDataset as MixedDataset
    from .data.recorded import RecordedDataset as RecordedDataset
    from .errors import AsyncblendError as AsyncblendError
    from .errors import BlenderNotFound as BlenderNotFound
    from .errors import ConfigError as ConfigError
    from .errors import CrashLoop as CrashLoop
    from .errors import EpisodeLost as EpisodeLost
    from .errors import EpisodeOver as EpisodeOver
    from .errors import FleetLost as FleetLost
    from .errors import ForkedProcessError as ForkedProcessError
    from .errors import FrameTimeout as FrameTimeout
    from .errors import InstanceError as InstanceError
    from .errors import InstanceExited as InstanceExited
    from .errors import ProtocolError as ProtocolError
    from .errors import RecordingError as RecordingError
    from .errors import SampleError as SampleError
    from .errors import StartTimeout as StartTimeout
    from .errors import StreamClosed as StreamClosed
    from .errors import WindowClosed as WindowClosed
    from .stream.clips import Clip as Clip
    from .stream.episode import Episode as Episode
    from .stream.frame import Frame as Frame
    from .stream.frames import Frames as Frames
    from .stream.stats import PassStats as PassStats
    from .stream.stats import StreamStats as StreamStats
    from .stream.stream import BlenderStream as BlenderStream
    from .stream.sync import SyncStream as SyncStream
    from .stream.sync_episode import SyncEpisode as SyncEpisode
    from .stream.sync_frames import SyncFrames as SyncFrames
    from .stream.verdict import verdict as verdict

__version__ = "0.1.0"

__all__ = [
    "AsyncblendError",
    "BlenderDataset",
    "BlenderMapDataset",
    "BlenderNotFound",
    "BlenderStream",
    "Clip",
    "ConfigError",
    "CrashLoop",
    "Curriculum",
    "Episode",
    "EpisodeLost",
    "EpisodeOver",
    "FleetLost",
    "ForkedProcessError",
    "Frame",
    "FrameTimeout",
    "Frames",
    "InstanceError",
    "InstanceExited",
    "MixedDataset",
    "PassStats",
    "ProtocolError",
    "RecordedDataset",
    "RecordingError",
    "RestartPolicy",
    "SampleError",
    "StartTimeout",
    "StreamClosed",
    "StreamConfig",
    "StreamStats",
    "SyncEpisode",
    "SyncFrames",
    "SyncStream",
    "Timeouts",
    "WindowClosed",
    "collate",
    "verdict",
]

__getattr__: Load = lazy(
    __name__,
    {
        "config": "RestartPolicy StreamConfig Timeouts",
        "curriculum": "Curriculum",
        "data.collate": "collate",
        "data.dataset": "BlenderDataset",
        "errors": "AsyncblendError BlenderNotFound ConfigError CrashLoop EpisodeLost EpisodeOver FleetLost "
        "ForkedProcessError FrameTimeout InstanceError InstanceExited ProtocolError RecordingError SampleError StartTimeout StreamClosed "
        "WindowClosed",
        "data.map": "BlenderMapDataset",
        "data.mixed": "MixedDataset",
        "data.recorded": "RecordedDataset",
        "stream.clips": "Clip",
        "stream.episode": "Episode",
        "stream.frame": "Frame",
        "stream.frames": "Frames",
        "stream.stats": "PassStats StreamStats",
        "stream.stream": "BlenderStream",
        "stream.sync": "SyncStream",
        "stream.sync_frames": "SyncFrames",
        "stream.sync_episode": "SyncEpisode",
        "stream.verdict": "verdict",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
