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
    """What it is called: fake, bpy or Blender."""
    blender: str | None
    """The stream's option."""
    script: str
    """What is in the file of the stream's option."""
    length: int
    """Samples in a pass, at most. Long, since at the end of a pass all wait for a Blender that hangs at its last one."""
    rate: float
    """Frames a second, roughly: a short run has shorter passes, so that there are some."""
    between: float
    """Mean seconds from one fault to the next."""
    patience: float
    """Seconds without a frame, or to recover, after which something hangs."""
    timeouts: ab.Timeouts

    def config(self, folder: Path, *, instances: int, seed: int, seconds: float) -> ab.StreamConfig:
        """The stream's, with the script in `folder`. Its length is that of a pass."""
        script = folder / "soak_scene.py"
        script.write_text(self.script)
        return ab.StreamConfig(
            script=script,
            blender=self.blender,
            instances=instances,
            seed=seed,
            length=min(self.length, max(50, round(self.rate * seconds / 6))),
            params=scene.params,
            # Neither an instance nor a sample is to blame for deaths that come from outside.
            restart=ab.RestartPolicy(
                max_restarts=1_000_000, max_sample_deaths=1_000_000, backoff=0.02, max_backoff=0.2
            ),
            timeouts=self.timeouts,
        )


def fakes(folder: Path) -> Fleet:
    """Small processes that speak the real protocol, and render nothing. Their executable goes into `folder`."""
    return Fleet(
        name="fake",
        blender=str(fake_blender(folder)),
        script=scene.FAKE,
        length=10_000,
        rate=1000.0,
        between=0.6,
        patience=30.0,
        timeouts=ab.Timeouts(start=20.0, beat=1.5, frame=10.0),
    )


def real(blender: str | None) -> Fleet:
    """The Blender that the stream's option asks for.

    Raises:
        BlenderNotFound: there is none.
    """
    return Fleet(
        name="bpy" if find_blender(blender).kind == "module" else "Blender",
        blender=blender,
        script=scene.REAL,
        length=2000,
        rate=100.0,
        between=2.0,
        patience=120.0,
        timeouts=ab.Timeouts(start=90.0, beat=3.0, frame=60.0),
    )
