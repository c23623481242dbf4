"""seed_everything: makes a sample a function of (seed, index) alone."""

from __future__ import annotations

import hashlib
import random
import struct
import sys

import numpy as np

_MAX = 2**31 - 1  # the largest seed that Cycles and mathutils take


def seed_everything(seed: int, index: int) -> None:
    """Seed every global source of randomness that a scene script may use; `Task.rng` needs none of them.

    These are `random`, the global state of `numpy.random` and, when bpy is loaded, `mathutils.noise` and the noise seed
    of Cycles in every scene. Does not import bpy: without it, as in a fake Blender, there is nothing more to seed.

    Raises:
        ValueError: The seed of the stream or the index of the sample is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be non-negative; got {seed} and {index}")
    # This is done for each sample, and numpy's SeedSequence would take ten times as long as a hash.
    words = struct.unpack("<8Q", hashlib.blake2b(b"%d %d" % (seed, index)).digest())
    random.seed(words[0] << 64 | words[1])
    np.random.seed(words[2] & 0xFFFFFFFF)
    if "bpy" not in sys.modules:
        return
    import bpy
    from mathutils import noise

    noise.seed_set(1 + words[4] % _MAX)  # never 0, which would mean the clock
    for scene in bpy.data.scenes:
        settings = getattr(scene, "cycles", None)  # absent where the Cycles add-on is off
        if settings is not None:
            settings.seed = words[5] % (_MAX + 1)
            scene.update_tag()  # with render.use_persistent_data a new seed alone may go unnoticed
