"""Fakes or real Blenders: how they start, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncblend as ab
from asyncblend.fleet.discovery import find_blender
from asyncblend.testing import fake_blender

from . import scene

__all__ = ["Fleet", "fakes", "real"]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What differs between fakes and real Blenders, which start and render so much slower."""

    name: str
    """The name of one Blender: "fake", "bpy" or "Blender"."""
    blender: str | None
    """The option `blender` of the stream."""
    script: str
    """The text of the script."""
    length: int
    """Samples in a pass, at most. Many, because at the end of a pass its consumer waits for a Blender that hangs."""
    rate: float
    """Frames in a second, roughly. A short run has shorter passes, so that there are several."""
    between: float
    """Mean seconds from one fault to the next."""
    patience: float
    """Seconds without a frame, or to recover, after which something hangs."""
    timeouts: ab.Timeouts

    def config(self, folder: Path, *, instances: int, seed: int, seconds: float) -> ab.StreamConfig:
        """Write the script into `folder`, and return the stream's options. `length` is that of a pass."""
        script = folder / "soak_scene.py"
        script.write_text(self.script)
        return ab.StreamConfig(
            script=script,
            blender=self.blender,
            instances=instances,
            seed=seed,
            length=min(self.length, max(50, round(self.rate * seconds / 12))),
            params=scene.params,
            # Neither an instance nor a sample is to blame for crashes that come from outside.
            restart=ab.RestartPolicy(
                max_restarts=1_000_000, max_sample_deaths=1_000_000, backoff=0.02, max_backoff=0.2
            ),
            timeouts=self.timeouts,
        )


def fakes(folder: Path) -> Fleet:
    """Return the fleet of fakes, which speak the real protocol and render nothing. `folder` gets their executable."""
    return Fleet(
        name="fake",
        blender=str(fake_blender(folder)),
        script=scene.FAKE,
        length=10_000,
        rate=1000.0,
        between=0.6,
        patience=30.0,
        timeouts=ab.Timeouts(start=20.0, beat=1.5, frame=4.0),
    )


def real(blender: str | None) -> Fleet:
    """Return the fleet of real Blenders that the option `blender` asks for.

    Raises:
        BlenderNotFound: There is no Blender.
    """
    return Fleet(
        name="bpy" if find_blender(blender).kind == "module" else "Blender",
        blender=blender,
        script=scene.REAL,
        length=2000,
        rate=100.0,
        between=2.0,
        patience=120.0,
        timeouts=ab.Timeouts(start=90.0, beat=3.0, frame=15.0),
    )
