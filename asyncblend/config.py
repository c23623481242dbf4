"""StreamConfig and its parts: plain, frozen, validated data. No work is done here."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .errors import ConfigError

__all__ = ["Params", "RestartPolicy", "StreamConfig", "Timeouts", "check_whole", "cores", "resolve"]

Params = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]
PathLike = str | os.PathLike[str]
T = TypeVar("T")


def _options_checked(cls: type[T]) -> type[T]:
    """Let a wrong keyword raise a ConfigError that names the right one, instead of a bare TypeError."""
    init = cls.__init__
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}

    @functools.wraps(init)
    def __init__(self: T, **options: Any) -> None:
        for name in options.keys() - names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options are: {', '.join(sorted(names))}"
            raise ConfigError(f"{cls.__name__} has no option {name!r}; {hint}")
        if missing := required - options.keys():
            raise ConfigError(f"{cls.__name__} needs {' and '.join(sorted(missing))}")
        init(self, **options)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


def check_whole(name: str, value: object, at_least: int) -> None:
    """
    Raises:
        ConfigError: it is not a whole number, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} must be a whole number, at least {at_least}; got {value!r}")


def _seconds(name: str, value: object, *, zero: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or math.isnan(value) or value < 0 or (value == 0 and not zero):  # type: ignore[arg-type,operator]
        raise ConfigError(f"{name} must be {'zero or more' if zero else 'positive'} seconds; got {value!r}")


def _path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{name} must be a path; got {value!r}")


@_options_checked
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for a Blender, in seconds. `math.inf` waits for ever."""

    start: float = 120.0
    """From the launch until the script calls `bl.serve`."""

    beat: float = 30.0
    """Between two heartbeats, which a thread inside Blender sends: the process lives."""

    frame: float = 300.0
    """For one sample, from the lease to the frame: the script makes progress. Waiting for a lease never counts."""

    stop: float = 5.0
    """For Blender to end by itself once asked to, then its process group is killed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _seconds(f"Timeouts.{field.name}", getattr(self, field.name), zero=field.name == "stop")


@_options_checked
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a Blender that died is started again. Each delay doubles: `backoff`, `2 * backoff`, ... up to `max_backoff`.

    A script that does not load, a Blender that cannot be executed, or another protocol version is never retried.
    """

    max_restarts: int = 5
    """Restarts of one instance allowed within `window`; one more death is a `CrashLoop`. 0: never restart."""

    window: float = 60.0
    """Seconds that a death is remembered for."""

    backoff: float = 0.25
    """Seconds before the first restart."""

    max_backoff: float = 10.0
    """Longest delay, in seconds."""

    jitter: float = 0.1
    """Each delay is made longer by up to this share of it, at random, so that instances do not start in step."""

    min_instances: int | None = None
    """Go on with that many when others died too often. None: with all or not at all."""

    max_sample_deaths: int = 3
    """Blenders that one sample may kill before it is given up as bad (`StreamConfig.on_bad_sample`)."""

    def __post_init__(self) -> None:
        check_whole("RestartPolicy.max_restarts", self.max_restarts, 0)
        _seconds("RestartPolicy.window", self.window)
        _seconds("RestartPolicy.backoff", self.backoff, zero=True)
        _seconds("RestartPolicy.max_backoff", self.max_backoff, zero=True)
        _seconds("RestartPolicy.jitter", self.jitter, zero=True)
        if self.min_instances is not None:
            check_whole("RestartPolicy.min_instances", self.min_instances, 1)
        check_whole("RestartPolicy.max_sample_deaths", self.max_sample_deaths, 1)


@_options_checked
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """What to render, with how many Blenders, in which order. Frozen plain data; picklable if `params` is.

    Raises:
        ConfigError: an option is unknown, missing or wrong. Paths are looked at only when a stream starts.
    """

    script: PathLike
    """Python file that runs inside Blender and calls `bl.serve(sample)`."""

    scene: PathLike | None = None
    """.blend file to open first. None: Blender's factory scene (a cube, a camera, a light)."""

    script_args: Sequence[Any] = ()
    """The script's `sys.argv[1:]`: strings, or one sequence of strings per instance."""

    instances: int = 4
    """Blender processes."""

    blender: PathLike | None = None
    """An executable, a folder that holds one, or "bpy" for the pip module.
    None: $ASYNCBLEND_BLENDER, else `blender` on the PATH, else the bpy module."""

    seed: int = 0
    """Sample i is a function of (seed, i, params) alone."""

    length: int | None = None
    """Number of samples. None: endless."""

    start: int = 0
    """First index of the stream. A shard's indices count from here."""

    ordered: bool = False
    """Deliver by index instead of by arrival."""

    shard: tuple[int, int] = (0, 1)
    """(k, n): this stream owns the indices k, k + n, k + 2n, ..."""

    params: Params | None = None
    """Mapping, or callable(index) -> mapping, evaluated when the index is leased; `task.params` in the script.
    The callable runs in the thread of the event loop: it must be quick, and thread-safe if the bridge is used."""

    queue_size: int = 16
    """Places: frames rendering, in flight and queued never exceed it. Also the bound of host memory."""

    prefetch: int = 2
    """Leases that one instance may hold, so that it never waits for the host between two samples."""

    shared_memory: bool = True
    """Let large arrays travel in memory that is shared with each Blender, where the system can; else over the socket.
    Frames that are held while this process forks keep their memory until their Blender ends."""

    restart: RestartPolicy = RestartPolicy()
    """What to do when a Blender dies."""

    timeouts: Timeouts = Timeouts()
    """How long to wait for what."""

    on_bad_sample: str = "raise"
    """"raise" a SampleError for a sample that raises or kills its Blenders, or "skip" it, log it, and count it."""

    max_frames_per_instance: int | None = None
    """Replace a Blender after so many frames: its memory grows. One at a time; the others go on meanwhile."""

    max_rss: int | None = None
    """Replace a Blender whose resident memory exceeds this, in bytes."""

    threads: int | str | None = "auto"
    """Threads that each Blender renders with. "auto": the cores that this process may use, shared out among the
    instances. None: as the scene has it."""

    gpus: Sequence[int | str] | None = None
    """Devices to render on with Cycles, as CUDA_VISIBLE_DEVICES numbers them: instance i gets the one at place i, and
    so on in turns. None: the CPU, or what the scene and the user's preferences say."""

    logs: PathLike | None = None
    """Folder to keep each Blender's latest output in, at most 1 MiB, as `instance-<number>.log`. None: kept only for
    errors."""

    factory_startup: bool = True
    """Ignore the user's Blender preferences, add-ons and start-up file, so that runs are alike everywhere."""

    first_instance: int = 0
    """Number of the first instance; the dataset's workers share one numbering."""

    def __post_init__(self) -> None:
        _path("script", self.script)
        if self.scene is not None:
            _path("scene", self.scene)
        if self.blender is not None:
            _path("blender", self.blender)
        check_whole("instances", self.instances, 1)
        check_whole("first_instance", self.first_instance, 0)
        check_whole("seed", self.seed, 0)
        check_whole("start", self.start, 0)
        if self.length is not None:
            check_whole("length", self.length, 0)
        check_whole("queue_size", self.queue_size, 1)
        check_whole("prefetch", self.prefetch, 1)
        for name in ("max_frames_per_instance", "max_rss"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.logs is not None:
            _path("logs", self.logs)
        if self.on_bad_sample not in ("raise", "skip"):
            raise ConfigError(f"on_bad_sample must be 'raise' or 'skip'; got {self.on_bad_sample!r}")
        if isinstance(self.threads, str) and self.threads != "auto":
            raise ConfigError(f'threads must be a whole number, "auto" or None; got {self.threads!r}')
        if self.threads not in ("auto", None):
            check_whole("threads", self.threads, 1)
        self._check_gpus()
        self._check_script_args()
        self._check_shard()
        if not (self.params is None or isinstance(self.params, Mapping) or callable(self.params)):
            raise ConfigError(f"params must be a mapping or a callable(index) -> mapping; got {self.params!r}")
        for name, kind in (
            ("ordered", bool),
            ("factory_startup", bool),
            ("shared_memory", bool),
            ("restart", RestartPolicy),
            ("timeouts", Timeouts),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} must be a {kind.__name__}; got {getattr(self, name)!r}")

    def _check_gpus(self) -> None:
        gpus = self.gpus
        if gpus is None:
            return
        good = isinstance(gpus, Sequence) and not isinstance(gpus, str) and len(gpus) > 0
        if not good or not all(isinstance(one, int | str) and not isinstance(one, bool) for one in gpus):
            raise ConfigError(f"gpus must be a sequence of devices, such as [0, 1]; got {gpus!r}")

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
        if not isinstance(shard, tuple) or len(shard) != 2:
            raise ConfigError(f"shard must be a pair (k, n); got {shard!r}")
        check_whole("shard's n", shard[1], 1)
        check_whole("shard's k", shard[0], 0)
        if shard[0] >= shard[1]:
            raise ConfigError(f"shard (k, n) needs k < n; got {shard!r}")

    def args_of(self, instance: int) -> tuple[str, ...]:
        """`sys.argv[1:]` of the script in that instance (its number, from `first_instance` on)."""
        args = self.script_args
        if args and not isinstance(args[0], str | os.PathLike):
            args = args[instance - self.first_instance]
        return tuple(os.fspath(a) for a in args)

    def threads_each(self) -> int | None:
        """Threads of each instance; None: as the scene has it."""
        if isinstance(self.threads, str):
            return max(1, cores() // self.instances)
        return self.threads

    def gpu_of(self, instance: int) -> str | None:
        """The device of that instance (its number, from `first_instance` on), if `gpus` are given."""
        return None if self.gpus is None else str(self.gpus[instance % len(self.gpus)])


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve(config: StreamConfig | None, options: Mapping[str, Any]) -> StreamConfig:
    """A config from a config, single options, or both; the options override the config.

    Raises:
        ConfigError: as StreamConfig does, or `config` is none.
    """
    if config is None:
        return StreamConfig(**options)
    if not isinstance(config, StreamConfig):
        raise ConfigError(f"config must be a StreamConfig; got {config!r} (options are passed by name)")
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return StreamConfig(**{**own, **options})
