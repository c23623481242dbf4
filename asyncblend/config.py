"""StreamConfig and its parts: plain, frozen, validated data. Nothing is looked up or started here."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

from .checks import check_path, check_seconds, check_whole, options_checked
from .errors import ConfigError

Params = (
    Mapping[str, Any]
    | Callable[[int], Mapping[str, Any]]
    | Iterator[Mapping[str, Any]]
    | AsyncIterator[Mapping[str, Any]]
)
PathLike = str | os.PathLike[str]


class Elsewhere(Protocol):
    """Where Blenders run if not on this machine: `asyncblend.ray.Cluster`."""

    def place(self, config: StreamConfig, first: int) -> Any:
        """Return a `Place` for this config's Blenders, which are numbered from `first` on."""


_MODELS = (".fbx", ".glb", ".gltf", ".obj", ".ply", ".stl", ".usd", ".usda", ".usdc", ".usdz")
_MOST_PREFETCHED = 1000  # the leases of a Blender must fit into the header of one message


def check_params(params: Params) -> Params:
    """Check the option `params`, and return it.

    Raises:
        ConfigError: It is nothing that params can be drawn from.
    """
    if isinstance(params, Mapping) or callable(params) or any(hasattr(params, n) for n in ("__next__", "__anext__")):
        return params
    makes = {name: f"; {name}() makes one of it" for name in ("iter", "aiter") if hasattr(params, f"__{name}__")}
    raise ConfigError(
        f"params must be a mapping, a callable(index) -> mapping, or an iterator or asynchronous iterator of mappings; "
        f"got {params!r:.100}{'' if isinstance(params, str | bytes) else ''.join(makes.values())}"
    )


@options_checked
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for a Blender, in seconds. `math.inf` waits forever."""

    start: float = 120.0
    """From the launch until the script calls `bl.serve`."""

    beat: float = 30.0
    """Between two heartbeats. A thread inside Blender sends them, so a missing one means a stopped process."""

    frame: float = 300.0
    """For one sample, from the lease to the frame. The time in which Blender waits for a lease does not count."""

    stop: float = 5.0
    """For Blender to end by itself when it is asked to. Then its process group is killed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_seconds(f"Timeouts.{field.name}", getattr(self, field.name), zero=field.name == "stop")


@options_checked
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a Blender that crashed is started again. Delays double: `backoff`, `2 * backoff`, ... up to `max_backoff`.

    A script that does not load, a Blender that cannot be executed, or another protocol version is never retried. Nor is
    one whose window the user closed.
    """

    max_restarts: int = 5
    """Restarts of one instance that are allowed within `window`. One more crash is a `CrashLoop`. 0: never restart."""

    window: float = 60.0
    """Seconds for which a crash is remembered."""

    backoff: float = 0.25
    """Seconds before the first restart."""

    max_backoff: float = 10.0
    """Longest delay, in seconds."""

    jitter: float = 0.1
    """Each delay is longer by a random share of itself, up to this one, so that instances do not start in step."""

    min_instances: int | None = None
    """Go on with at least that many instances when others crashed too often. None: all instances are needed."""

    max_sample_deaths: int = 3
    """Blenders that one sample may kill. Then it is a bad sample (`StreamConfig.on_bad_sample`).

    It is one only after it killed a Blender that held no other sample. So it may take one Blender more."""

    def __post_init__(self) -> None:
        check_whole("RestartPolicy.max_restarts", self.max_restarts, 0)
        check_seconds("RestartPolicy.window", self.window)
        check_seconds("RestartPolicy.backoff", self.backoff, zero=True)
        check_seconds("RestartPolicy.max_backoff", self.max_backoff, zero=True)
        check_seconds("RestartPolicy.jitter", self.jitter, zero=True)
        if self.min_instances is not None:
            check_whole("RestartPolicy.min_instances", self.min_instances, 1)
        check_whole("RestartPolicy.max_sample_deaths", self.max_sample_deaths, 1)


@options_checked
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """What to render, with how many Blenders, in which order. Frozen plain data, which can be pickled if `params` can.

    Raises:
        ConfigError: An option is unknown, missing or wrong. Whether paths exist is checked when a stream starts.
    """

    script: PathLike = ""
    """Python file that runs inside Blender and calls `bl.serve(sample)`. It may be left out if `fleet` is given."""

    fleet: str | None = None
    """Name of a fleet that runs already, on Ray: `asyncblend.ray.start` keeps it warm. No Blender is started then. What
    makes the samples is the fleet's: `script`, `scene`, `script_args`, `seed`, `blender`, `factory_startup` and
    `autoexec`. Whichever of them is given here too must be the same there, files by their content; without a `script`,
    those at their defaults are taken from the fleet. So are `instances`, and all that is about running Blenders. The
    rest is this program's own: `length`, `start`, `ordered`, `shard`, `params`, `queue_size`, `prefetch`,
    `on_bad_sample`. None: a fleet of this program's own."""

    scene: PathLike | None = None
    """.blend file to open first. None: Blender's factory scene (a cube, a camera, a light)."""

    script_args: Sequence[Any] = ()
    """The script's `sys.argv[1:]`: strings, or one sequence of strings per instance."""

    instances: int = 4
    """Blender processes."""

    blender: PathLike | None = None
    """An executable or a command on the PATH, a folder that holds one, "bpy" for the pip module, or the Python of another
    environment that has the module. None: $ASYNCBLEND_BLENDER, else `blender` on the PATH, else the bpy module."""

    seed: int = 0
    """Sample i is a function of (seed, i, params) alone."""

    length: int | None = None
    """Number of samples. None: endless."""

    start: int = 0
    """First index of the stream."""

    ordered: bool = False
    """Deliver by index instead of by arrival."""

    shard: tuple[int, int] | None = None
    """(k, n): this stream has the indices start + k, start + k + n, start + k + 2n, ...
    None: all of them; in a BlenderDataset, the share of the rank in `torch.distributed`."""

    params: Params | None = None
    """What a script gets as `task.params`. They are drawn when an index is leased:

    - a mapping: the same for all samples, as it is at that moment;
    - a callable(index) -> mapping;
    - an iterator of mappings, whose `next` is called at each lease, in the order of the leases;
    - an asynchronous iterator of mappings: awaited in the event loop when a Blender has room, one mapping at a time.
      Leases wait for it, nothing else does. Closing the stream cancels what is awaited.

    A sample that is rendered again after a crash keeps its params. A pass whose iterator ends before its indices ends
    after the samples that were drawn. What the user's code raises is raised to the consumer, after the frames of all
    samples that were leased before. Callables and iterators run in the thread of the event loop: they must be quick,
    and thread-safe if a SyncStream or a dataset is used. Passes without params of their own share those of the config.

    Params with `state_dict()` and `load_state_dict()`, such as a Curriculum, become part of the state of a stream or
    dataset. `state_dict()` must return what JSON can hold, and is called between two draws, or while one is awaited. A
    state saved with an iterator without these methods cannot be loaded: that is a ConfigError."""

    queue_size: int = 16
    """Slots: frames rendering, in flight and queued never exceed it. It bounds the host's memory."""

    prefetch: int = 2
    """Samples that one instance may hold, so that it never waits for the host between two."""

    shared_memory: bool = True
    """Let large arrays travel in memory that is shared with each Blender, where the system has it (Linux), instead of
    over the socket. Frames that are held while this process forks keep their memory until their Blender ends."""

    restart: RestartPolicy = RestartPolicy()
    """What to do when a Blender dies."""

    timeouts: Timeouts = Timeouts()
    """How long to wait for what."""

    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What to do about a sample that raises or kills its Blenders: "raise" a SampleError, or "skip", log and count it."""

    max_frames_per_instance: int | None = None
    """Replace a Blender after so many frames, because its memory grows. One at a time; the others go on meanwhile."""

    max_rss: int | None = None
    """Replace a Blender whose resident memory exceeds this, in bytes."""

    threads: int | Literal["auto"] | None = "auto"
    """Threads that each Blender renders with. "auto": the cores that this process may use, shared out among the
    instances. None: as the scene has it."""

    show: bool = False
    """Open Blender's own window, in which the scene can be watched and edited while it streams. It needs `instances=1`,
    a screen, and a Blender executable, as the bpy module has no window. Closing the window ends the stream with
    `WindowClosed`."""

    gpus: Sequence[int | str] | None = None
    """Devices to render on with Cycles, as CUDA_VISIBLE_DEVICES numbers them. Instances get them in turns.
    None: the CPU, or what the scene and the user's preferences say."""

    cluster: Elsewhere | None = None
    """Machines that the Blenders run on: an `asyncblend.ray.Cluster`. None: this one."""

    logs: PathLike | None = None
    """Folder to keep each Blender's latest output in, at most 1 MiB, as `instance-<number>.log`. None: kept only for
    errors."""

    factory_startup: bool = True
    """Ignore the user's Blender preferences, add-ons and start-up file, so that runs are alike everywhere."""

    autoexec: bool = True
    """Let Blender execute the Python in a .blend file: expressions of drivers, and text blocks that register themselves.
    The scene is trusted as the script is. False: what needs them stands still, and a warning in the log names one."""

    def __post_init__(self) -> None:
        if self.fleet is not None and (not isinstance(self.fleet, str) or not self.fleet):
            raise ConfigError(f"fleet must be the name of a fleet, such as 'cubes'; got {self.fleet!r}")
        if self.script == "" and self.fleet is None:
            raise ConfigError("StreamConfig needs script, a path, unless it names a fleet; got script=''")
        for name in ("script", "scene", "blender", "logs"):
            if getattr(self, name) != StreamConfig.__dataclass_fields__[name].default:
                check_path(name, getattr(self, name))
        if (suffix := os.path.splitext(script := str(os.fspath(self.script)))[1].lower()) == ".blend":
            raise ConfigError(
                f"{script} is a scene, not a script: give the script, and scene={script!r} (--scene {script})"
            )
        if suffix in _MODELS:
            raise ConfigError(
                f"{script} is a model, not a script: give script='model.py', script_args=[{script!r}] (model.py -- {script})"
            )
        for name, least in {"instances": 1, "seed": 0, "start": 0, "queue_size": 1, "prefetch": 1}.items():
            check_whole(name, getattr(self, name), least)
        for name, least in {"length": 0, "max_frames_per_instance": 1, "max_rss": 1}.items():
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)
        if self.start + (self.length or 0) >= sys.maxsize:
            raise ConfigError(f"start and length must end below 2**63; got {self.start} and {self.length}")
        if self.prefetch > _MOST_PREFETCHED:
            raise ConfigError(f"prefetch must be at most {_MOST_PREFETCHED}; got {self.prefetch}")
        if self.on_bad_sample not in ("raise", "skip"):
            raise ConfigError(f"on_bad_sample must be 'raise' or 'skip'; got {self.on_bad_sample!r}")
        if isinstance(self.threads, str) and self.threads != "auto":
            raise ConfigError(f'threads must be a whole number, "auto" or None; got {self.threads!r}')
        if self.threads not in ("auto", None):
            check_whole("threads", self.threads, 1)
        self._check_gpus()
        self._check_cluster()
        self._check_script_args()
        self._check_shard()
        if self.params is not None:
            check_params(self.params)
        flags = dict.fromkeys(("ordered", "factory_startup", "autoexec", "shared_memory", "show"), bool)
        for name, kind in {**flags, "restart": RestartPolicy, "timeouts": Timeouts}.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} must be a {kind.__name__}; got {getattr(self, name)!r}")
        if self.show and self.instances != 1:
            raise ConfigError(f"show opens the window of one Blender: set instances=1; got instances={self.instances}")

    def _check_gpus(self) -> None:
        gpus = self.gpus
        if gpus is None:
            return
        good = isinstance(gpus, Sequence) and not isinstance(gpus, str) and len(gpus) > 0
        if not good or not all(isinstance(one, int | str) and not isinstance(one, bool) for one in gpus):
            raise ConfigError(f"gpus must be a sequence of devices, such as [0, 1]; got {gpus!r}")

    def _check_cluster(self) -> None:
        if self.cluster is None:
            return
        if not hasattr(self.cluster, "place"):
            raise ConfigError(f"cluster must be an asyncblend.ray.Cluster; got {self.cluster!r}")
        if self.fleet is not None:
            raise ConfigError(f"fleet={self.fleet!r} has its Blenders already: give either a fleet or a cluster")
        if self.gpus is not None:
            raise ConfigError(
                f"gpus={self.gpus!r}: the cluster says which GPUs a Blender has; give it num_gpus=1 instead"
            )
        if self.show:
            raise ConfigError("show opens a window on this machine, and Blenders of a cluster run on others")

    def _check_script_args(self) -> None:
        args = self.script_args
        if isinstance(args, str) or not isinstance(args, Sequence):
            raise ConfigError(f"script_args must be a sequence of strings, or one per instance; got {args!r}")
        nested = [a for a in args if not isinstance(a, str | os.PathLike)]
        if not nested:
            return
        if len(nested) != len(args) or len(args) != self.instances:
            raise ConfigError(
                f"script_args must be strings only, or one sequence of strings for each of the "
                f"{self.instances} instances; got {args!r}"
            )
        for own in args:
            if not isinstance(own, Sequence) or not all(isinstance(a, str | os.PathLike) for a in own):
                raise ConfigError(f"each instance's script_args must be a sequence of strings; got {own!r}")

    def _check_shard(self) -> None:
        shard = self.shard
        if shard is None:
            return
        if not isinstance(shard, tuple) or len(shard) != 2:
            raise ConfigError(f"shard must be a pair (k, n); got {shard!r}")
        check_whole("shard's n", shard[1], 1)
        check_whole("shard's k", shard[0], 0)
        if shard[0] >= shard[1]:
            raise ConfigError(f"shard (k, n) needs k < n; got {shard!r}")

    def args_of(self, place: int) -> tuple[str, ...]:
        """Return `sys.argv[1:]` of the script in the instance at that place, from 0 on."""
        args = self.script_args
        if args and not isinstance(args[0], str | os.PathLike):
            args = args[place]
        return tuple(os.fspath(a) for a in args)

    def threads_each(self) -> int | None:
        """Return the number of threads of each instance. None: as the scene has it."""
        if isinstance(self.threads, str):
            return max(1, cores() // self.instances)
        return self.threads

    def gpu_of(self, instance: int) -> str | None:
        """Return the device of the instance of that number, if `gpus` are given."""
        return None if self.gpus is None else str(self.gpus[instance % len(self.gpus)])


class StreamOptions(TypedDict, total=False):
    """StreamConfig's fields as keywords, for `BlenderStream(**options)` and `BlenderDataset(**options)`."""

    script: PathLike
    fleet: str | None
    scene: PathLike | None
    script_args: Sequence[Any]
    instances: int
    blender: PathLike | None
    seed: int
    length: int | None
    start: int
    ordered: bool
    shard: tuple[int, int] | None
    params: Params | None
    queue_size: int
    prefetch: int
    shared_memory: bool
    restart: RestartPolicy
    timeouts: Timeouts
    on_bad_sample: Literal["raise", "skip"]
    max_frames_per_instance: int | None
    max_rss: int | None
    threads: int | Literal["auto"] | None
    show: bool
    gpus: Sequence[int | str] | None
    cluster: Elsewhere | None
    logs: PathLike | None
    factory_startup: bool
    autoexec: bool


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve(config: StreamConfig | None, options: Mapping[str, Any]) -> StreamConfig:
    """Return a config made of a config, single options, or both. Options override the config.

    Raises:
        ConfigError: An option is wrong, or `config` is no StreamConfig.
    """
    if config is None:
        return StreamConfig(**options)
    if not isinstance(config, StreamConfig):
        raise ConfigError(f"config must be a StreamConfig; got {config!r} (options are passed by name: script=...)")
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return StreamConfig(**{**own, **options})
