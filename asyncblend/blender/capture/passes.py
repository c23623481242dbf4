"""The passes of Blender: their friendly names, Blender's own names, and the settings that switch them on."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError
from .settings import changed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from contextlib import AbstractContextManager


class Pass(NamedTuple):
    """A pass that was asked for."""

    name: str  # the name by which it was asked for, which is its key in the result
    own_names: tuple[str, ...]  # what older and newer versions of Blender call it
    switch: str  # the view layer's property that switches it on, with dots; "" for an AOV or what is always there


_FRIENDLY = {
    entry[0]: Pass(*entry)
    for entry in [
        ("combined", ("Combined",), "use_pass_combined"),
        ("depth", ("Depth",), "use_pass_z"),
        ("mist", ("Mist",), "use_pass_mist"),
        ("position", ("Position",), "use_pass_position"),
        ("normal", ("Normal",), "use_pass_normal"),
        ("vector", ("Vector",), "use_pass_vector"),
        ("uv", ("UV",), "use_pass_uv"),
        ("object_index", ("IndexOB", "Object Index"), "use_pass_object_index"),
        ("material_index", ("IndexMA", "Material Index"), "use_pass_material_index"),
        ("albedo", ("DiffCol", "Diffuse Color"), "use_pass_diffuse_color"),
        ("diffuse_direct", ("DiffDir", "Diffuse Direct"), "use_pass_diffuse_direct"),
        ("diffuse_indirect", ("DiffInd", "Diffuse Indirect"), "use_pass_diffuse_indirect"),
        ("glossy_color", ("GlossCol", "Glossy Color"), "use_pass_glossy_color"),
        ("glossy_direct", ("GlossDir", "Glossy Direct"), "use_pass_glossy_direct"),
        ("glossy_indirect", ("GlossInd", "Glossy Indirect"), "use_pass_glossy_indirect"),
        ("transmission_color", ("TransCol", "Transmission Color"), "use_pass_transmission_color"),
        ("transmission_direct", ("TransDir", "Transmission Direct"), "use_pass_transmission_direct"),
        ("transmission_indirect", ("TransInd", "Transmission Indirect"), "use_pass_transmission_indirect"),
        ("volume_direct", ("VolumeDir", "Volume Direct"), "cycles.use_pass_volume_direct"),
        ("volume_indirect", ("VolumeInd", "Volume Indirect"), "cycles.use_pass_volume_indirect"),
        ("emission", ("Emit", "Emission"), "use_pass_emit"),
        ("environment", ("Env", "Environment"), "use_pass_environment"),
        ("ambient_occlusion", ("AO", "Ambient Occlusion"), "use_pass_ambient_occlusion"),
        ("shadow", ("Shadow",), "use_pass_shadow"),
        ("shadow_catcher", ("Shadow Catcher",), "cycles.use_pass_shadow_catcher"),
        ("sample_count", ("Debug Sample Count", "Sample Count"), "cycles.pass_debug_sample_count"),
        ("denoising_normal", ("Denoising Normal",), "cycles.denoising_store_passes"),
        ("denoising_albedo", ("Denoising Albedo",), "cycles.denoising_store_passes"),
        ("denoising_depth", ("Denoising Depth",), "cycles.denoising_store_passes"),
    ]
}
"""By friendly name. Which of them exist depends on the engine and on Blender's version."""

_BY_OWN_NAME = {own: known for known in _FRIENDLY.values() for own in known.own_names}
_CRYPTOMATTES = ("CryptoObject", "CryptoMaterial", "CryptoAsset")  # with two digits behind: CryptoObject00


def passes_named(names: Iterable[str]) -> list[Pass]:
    """Return the passes with these names, friendly or Blender's own, each once."""
    try:
        each: list[Any] = [] if isinstance(names, str) else list(names)  # once, as it may be an iterator
    except TypeError:
        each = [names]
    if isinstance(names, str) or not all(isinstance(name, str) for name in each):
        raise ConfigError(f"passes must be a sequence of names, such as ('depth',), got {names!r}")
    found = []
    for name in dict.fromkeys(map(str, each)):
        if name == "image":
            raise ConfigError("passes: 'image' is always there; the pass of that kind is 'combined'")
        known = _FRIENDLY.get(name) or _BY_OWN_NAME.get(name)
        if known is None:
            kind = name[:-2].removeprefix("Crypto").lower()
            known = Pass(name, (name,), f"use_pass_cryptomatte_{kind}" if name[:-2] in _CRYPTOMATTES else "")
        found.append(known._replace(name=name))
    return found


def is_object_index(name: str) -> bool:
    return _FRIENDLY["object_index"] in (_FRIENDLY.get(name), _BY_OWN_NAME.get(name))


def unavailable(
    name: str, wanted: Pass, engine: str, available: Collection[str], labels: Collection[str]
) -> ConfigError:
    """Return the error for a pass that does not exist even with all switches on.

    `name` is what the user asked for: the pass, or a label that is made from it. `available` has Blender's own names of
    the passes that do exist, and `labels` the names of all labels.
    """
    if name in labels or wanted.switch:
        if engine != "CYCLES":
            return ConfigError(
                f"engine {engine} has no pass {name!r}; Cycles has it: set scene.render.engine = 'CYCLES'"
            )
        return ConfigError(f"the Cycles of this Blender has no pass {name!r}")
    own = sorted(pass_name for pass_name in available if pass_name not in _BY_OWN_NAME)
    raw = [friendly for friendly in _FRIENDLY if friendly not in labels]
    return ConfigError(
        f"no pass {name!r}. Labels are {', '.join(labels)}; passes of Cycles are {', '.join(raw)}"
        + (f"; this view layer also has {', '.join(own)}" if own else "")
        + ". An AOV must be added to the view layer first"
    )


def passes_enabled(view_layer: Any, passes: Sequence[Pass]) -> AbstractContextManager[None]:
    """Have the view layer render these passes within the `with` block."""
    changes = []
    for switch in dict.fromkeys(wanted.switch for wanted in passes):
        *path, name = switch.split(".")
        owner = functools.reduce(lambda found, part: getattr(found, part, None), path, view_layer)
        changes.append((owner, name, True))
    return changed(changes)
