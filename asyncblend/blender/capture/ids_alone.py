"""The settings with which Cycles renders nothing but the ids of objects, whatever the scene's own engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import changed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def ids_alone(scene: Any, view_layer: Any) -> AbstractContextManager[None]:
    """Have a render within the `with` block show the object at each pixel's centre, as cheaply as Cycles can.

    That is one sample without motion blur and depth of field. No compositor, sequencer, Freestyle or stamp runs: none
    of them changes an id, and a File Output node would write its file once more.
    """
    render, cycles = scene.render, scene.cycles
    return changed(
        [
            (render, "engine", "CYCLES"),
            (render, "use_motion_blur", False),
            (render, "use_compositing", False),
            (render, "use_sequencer", False),
            (render, "use_freestyle", False),
            (render, "use_stamp", False),
            (cycles, "samples", 1),
            (view_layer, "samples", 0),  # otherwise they replace the scene's
            (cycles, "use_sample_subset", False),  # Cycles writes ids with the first sample alone
            (cycles, "sample_offset", 0),
            (cycles, "use_adaptive_sampling", False),
            (cycles, "use_denoising", False),
            (cycles, "pixel_filter_type", "BOX"),
            (cycles, "filter_width", 0.01),
            (cycles, "max_bounces", 0),
            (getattr(getattr(scene.camera, "data", None), "dof", None), "use_dof", False),
        ]
    )
