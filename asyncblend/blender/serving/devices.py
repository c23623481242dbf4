"""What this Blender renders on: how many threads, and which GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ...errors import ConfigError

__all__ = ["counting_cores", "render_on"]

_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")  # the fastest first, of those that are for one card


@contextlib.contextmanager
def counting_cores(threads: int | None, instance: int) -> Iterator[None]:
    """Where the bpy module is imported: have its thread pool (TBB) count as many cores as there are to be threads.

    TBB looks once, at the process's affinity. If it finds more cores than Cycles may use, it has a thread for each of
    them, and those without work spin: measured with bpy 4.5, two cores and threads=1, a frame took twice the processor
    time. Afterwards all threads may run on all cores again. An executable is told by `--threads`.
    """
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    first = instance * threads  # each instance on cores of its own, as all may start at once
    os.sched_setaffinity(0, {cores[(first + i) % len(cores)] for i in range(threads)})
    try:
        yield
    finally:
        for thread in os.listdir("/proc/self/task"):  # those that were started meanwhile inherited it
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), cores)


def render_on(threads: int | None, *, gpu: bool) -> None:
    """Set it for every scene that there is, and for those of each file that the script opens later.

    Args:
        threads: for rendering on the CPU; None: as the scene has it.
        gpu: let Cycles render on the GPUs that can be seen.

    Raises:
        ConfigError: there is no GPU that Cycles can use.
    """
    import bpy
    from bpy.app.handlers import persistent

    @persistent  # type: ignore[misc,untyped-decorator,unused-ignore]
    def apply(*_: object) -> None:
        if gpu:
            _enable_gpu()  # a script's read_factory_settings undoes it
        for scene in bpy.data.scenes:
            if threads is not None:
                scene.render.threads_mode, scene.render.threads = "FIXED", threads
            if gpu:
                scene.cycles.device = "GPU"

    apply()
    bpy.app.handlers.load_post.append(apply)


def _enable_gpu() -> None:
    """Background Blenders start with no device chosen. The choice is of this process, and not saved."""
    import bpy

    preferences = bpy.context.preferences.addons["cycles"].preferences
    seen = []
    for kind in _KINDS:
        try:
            preferences.compute_device_type = kind
        except TypeError:  # this build has no such kind
            continue
        seen.append(kind)
        preferences.get_devices()
        devices = [device for device in preferences.devices if device.type == kind]
        if devices:
            for device in preferences.devices:
                device.use = device.type == kind
            return
    raise ConfigError(
        f"gpus are given, but Cycles of Blender {bpy.app.version_string} finds no GPU that it can use "
        f"(it looked for {', '.join(seen) or 'none: this build is for the CPU'}); leave gpus out to render on the CPU"
    )
