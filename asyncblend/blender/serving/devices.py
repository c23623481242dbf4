"""What this Blender renders on: how many threads, and which GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ...errors import ConfigError

_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")  # if a card supports several, the fastest comes first


@contextlib.contextmanager
def counting_cores(threads: int | None, instance: int) -> Iterator[None]:
    """Let the bpy module, imported inside this context, count only as many cores as it may have threads.

    Its thread pool (TBB) looks at the process's affinity once. If it finds more cores than Cycles may use, it makes a
    thread for each of them, and those without work spin: measured with bpy 4.5, two cores and threads=1, a frame took
    twice the processor time. Afterwards all threads may run on all cores again. An executable has `--threads` for this.
    """
    if threads is None or not hasattr(os, "sched_setaffinity"):  # macOS has no affinity
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    first = instance * threads  # each instance has cores of its own, as all may start at once
    os.sched_setaffinity(0, {cores[(first + i) % len(cores)] for i in range(threads)})
    try:
        yield
    finally:
        for thread in os.listdir("/proc/self/task"):  # threads that were started meanwhile inherited the affinity
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), cores)


def render_on(threads: int | None, *, gpu: bool) -> None:
    """Choose what to render on, for every present scene and for those of each file that the script opens later.

    Args:
        threads: How many threads render on the CPU. None: as the scene says.
        gpu: Whether Cycles renders on the GPUs that it can see.

    Raises:
        ConfigError: There is no GPU that Cycles can use.
    """
    import bpy
    from bpy.app.handlers import persistent

    @persistent  # type: ignore[misc,untyped-decorator,unused-ignore]
    def apply(*_: object) -> None:
        if gpu:
            _enable_gpu()  # again, as a script's read_factory_settings undoes it
        for scene in bpy.data.scenes:
            if threads is not None:
                scene.render.threads_mode, scene.render.threads = "FIXED", threads
            if gpu:
                scene.cycles.device = "GPU"

    apply()
    bpy.app.handlers.load_post.append(apply)


def _enable_gpu() -> None:
    """Enable the GPUs of the fastest kind. A background Blender starts with none; the choice is not saved."""
    import bpy

    preferences = bpy.context.preferences.addons["cycles"].preferences
    seen = []
    for kind in _KINDS:
        try:
            preferences.compute_device_type = kind
        except TypeError:  # this build has no such kind
            continue
        seen.append(kind)
        # Of this kind alone, because looking for the others would load their drivers too. The preferences may list
        # devices that are no longer there: with one of those Cycles would render on the CPU, and not say so.
        present = preferences.get_devices_for_type(kind)
        for device in preferences.devices:
            device.use = device.type == kind
        if any(device.type == kind for device in present):
            return
    raise ConfigError(
        f"gpus are given, but Cycles of Blender {bpy.app.version_string} finds no GPU that it can use "
        f"(it looked for {', '.join(seen) or 'none: this build is for the CPU'}); leave gpus out to render on the CPU"
    )
