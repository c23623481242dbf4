"""Which passes there are: their friendly names, Blender's own, and the settings that switch them on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = ["FRIENDLY", "Pass", "enabled", "find", "missing", "wanted"]


class _Kind(NamedTuple):
    own: tuple[str, ...]  # what Blender calls it, in its older and newer versions
    switch: str  # of the view layer, with dots


FRIENDLY = {
    "combined": _Kind(("Combined",), "use_pass_combined"),
    "depth": _Kind(("Depth",), "use_pass_z"),
    "mist": _Kind(("Mist",), "use_pass_mist"),
    "position": _Kind(("Position",), "use_pass_position"),
    "normal": _Kind(("Normal",), "use_pass_normal"),
    "vector": _Kind(("Vector",), "use_pass_vector"),
    "uv": _Kind(("UV",), "use_pass_uv"),
    "object_index": _Kind(("IndexOB", "Object Index"), "use_pass_object_index"),
    "material_index": _Kind(("IndexMA", "Material Index"), "use_pass_material_index"),
    "albedo": _Kind(("DiffCol", "Diffuse Color"), "use_pass_diffuse_color"),
    "diffuse_direct": _Kind(("DiffDir", "Diffuse Direct"), "use_pass_diffuse_direct"),
    "diffuse_indirect": _Kind(("DiffInd", "Diffuse Indirect"), "use_pass_diffuse_indirect"),
    "glossy_color": _Kind(("GlossCol", "Glossy Color"), "use_pass_glossy_color"),
    "glossy_direct": _Kind(("GlossDir", "Glossy Direct"), "use_pass_glossy_direct"),
    "glossy_indirect": _Kind(("GlossInd", "Glossy Indirect"), "use_pass_glossy_indirect"),
    "transmission_color": _Kind(("TransCol", "Transmission Color"), "use_pass_transmission_color"),
    "transmission_direct": _Kind(("TransDir", "Transmission Direct"), "use_pass_transmission_direct"),
    "transmission_indirect": _Kind(("TransInd", "Transmission Indirect"), "use_pass_transmission_indirect"),
    "volume_direct": _Kind(("VolumeDir", "Volume Direct"), "cycles.use_pass_volume_direct"),
    "volume_indirect": _Kind(("VolumeInd", "Volume Indirect"), "cycles.use_pass_volume_indirect"),
    "emission": _Kind(("Emit", "Emission"), "use_pass_emit"),
    "environment": _Kind(("Env", "Environment"), "use_pass_environment"),
    "ambient_occlusion": _Kind(("AO", "Ambient Occlusion"), "use_pass_ambient_occlusion"),
    "shadow": _Kind(("Shadow",), "use_pass_shadow"),
    "shadow_catcher": _Kind(("Shadow Catcher",), "cycles.use_pass_shadow_catcher"),
    "sample_count": _Kind(("Debug Sample Count", "Sample Count"), "cycles.pass_debug_sample_count"),
    "denoising_normal": _Kind(("Denoising Normal",), "cycles.denoising_store_passes"),
    "denoising_albedo": _Kind(("Denoising Albedo",), "cycles.denoising_store_passes"),
    "denoising_depth": _Kind(("Denoising Depth",), "cycles.denoising_store_passes"),
}
"""By friendly name. Which of them there are depends on the engine and on Blender's version."""

_BY_OWN = {own: kind for kind in FRIENDLY.values() for own in kind.own}
_CRYPTOMATTE = {
    "CryptoObject": "use_pass_cryptomatte_object",
    "CryptoMaterial": "use_pass_cryptomatte_material",
    "CryptoAsset": "use_pass_cryptomatte_asset",
}


class Pass(NamedTuple):
    """A pass that was asked for."""

    name: str
    """As it was asked for; the key in the result."""
    own: tuple[str, ...]
    """What Blender may call it."""
    switch: str
    """The view layer's property that switches it on; "" for none: an AOV, or what is already there."""


def wanted(names: Sequence[str]) -> list[Pass]:
    """The passes of these names, friendly or Blender's own.

    Raises:
        ConfigError: no sequence of names, or the name of the image itself.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"passes must be a sequence of names, such as ('depth',), got {names!r}")
    found = []
    for name in dict.fromkeys(names):
        if name == "image":
            raise ConfigError("passes: 'image' is always there; the pass of that kind is 'combined'")
        kind = FRIENDLY.get(name) or _BY_OWN.get(name)
        if kind is not None:
            found.append(Pass(name, kind.own, kind.switch))
        else:
            found.append(Pass(name, (name,), _CRYPTOMATTE.get(name[:-2], "")))
    return found


def find(asked: Pass, there: Collection[str]) -> str | None:
    """Which of the passes that are there it is."""
    return next((own for own in asked.own if own in there), None)


def missing(name: str, asked: Pass, engine: str, there: Collection[str], labels: Collection[str]) -> ConfigError:
    """The error for a pass that is not there even after all switches are on.

    Args:
        name: what the user asked for: the pass, or a label that is made of it.
        asked: the pass.
        engine: the scene's render engine.
        there: what passes there are, by Blender's own names.
        labels: all names of labels.
    """
    if name in labels or asked.switch:
        if engine != "CYCLES":
            return ConfigError(
                f"engine {engine} has no pass {name!r}; Cycles has it: set scene.render.engine = 'CYCLES'"
            )
        return ConfigError(f"the Cycles of this Blender has no pass {name!r}")
    own = sorted(pass_name for pass_name in there if pass_name not in _BY_OWN)
    raw = [friendly for friendly in FRIENDLY if friendly not in labels]
    return ConfigError(
        f"no pass {name!r}. Labels are {', '.join(labels)}; passes of Cycles are {', '.join(raw)}"
        + (f"; this view layer also has {', '.join(own)}" if own else "")
        + ". An AOV must be added to the view layer first"
    )


@contextlib.contextmanager
def enabled(view_layer: Any, passes: Sequence[Pass]) -> Iterator[None]:
    """Have the view layer render these passes; afterwards its switches are as before."""
    changed = []
    try:
        for switch in dict.fromkeys(asked.switch for asked in passes):
            *path, name = switch.split(".")
            owner = view_layer
            for part in path:
                owner = getattr(owner, part, None)
            # Only what is off is touched: a change makes Blender evaluate the scene anew.
            if name and getattr(owner, name, None) is False:
                setattr(owner, name, True)
                changed.append((owner, name))
        yield
    finally:
        for owner, name in changed:
            setattr(owner, name, False)
