"""seed_everything: makes a sample a function of (seed, index) alone."""

from __future__ import annotations

import hashlib
import random
import struct
import sys

import numpy as np

__all__ = ["seed_everything"]

_MAX = 2**31 - 1  # the largest seed that Cycles and mathutils take


def seed_everything(seed: int, index: int) -> None:
    """Seed every global source of randomness that a scene script may meet; `Task.rng` needs none of them.

    These are `random`, `numpy.random`'s global state and, when bpy is loaded, `mathutils.noise` and the noise seed of
    Cycles in every scene. bpy is not imported for this: without it (a fake Blender, a test) there is nothing to seed.

    Args:
        seed: seed of the stream, not negative.
        index: index of the sample, not negative.

    Raises:
        ValueError: a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be non-negative; got {seed} and {index}")
    # A hash, not numpy's SeedSequence: as good for this, and ten times as fast. It is done for each sample.
    words = struct.unpack("<8Q", hashlib.blake2b(b"%d %d" % (seed, index)).digest())
    random.seed(words[0] << 64 | words[1])
    np.random.seed(words[2] & 0xFFFFFFFF)
    if "bpy" in sys.modules:
        _seed_blender(noise=1 + words[4] % _MAX, cycles=words[5] % (_MAX + 1))


def _seed_blender(noise: int, cycles: int) -> None:
    import bpy
    from mathutils import noise as mathutils_noise

    mathutils_noise.seed_set(noise)  # never 0, which would mean the clock
    for scene in bpy.data.scenes:
        settings = getattr(scene, "cycles", None)  # absent where the Cycles add-on is off
        if settings is not None:
            settings.seed = cycles
            scene.update_tag()  # with render.use_persistent_data a new seed alone may go unnoticed
