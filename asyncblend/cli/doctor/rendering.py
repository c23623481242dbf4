"""Has one Blender render a small frame, the way a training run uses it, or finds out why it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...config import RestartPolicy, StreamConfig, Timeouts
from ...errors import AsyncblendError, BlenderNotFound, CrashLoop, InstanceError, SampleError
from ...fleet.discovery import Blender
from ...fleet.install.embedded import RELEASES, site_packages
from ...fleet.install.packages import cache_folder
from ...fleet.pythons import module_of
from ..needs import pip
from .advice import apt, by_hand, find, is_embedded, option
from .libraries import debian_package, missing_libraries

_PROBE = Path(__file__).parents[2] / "blender" / "serving" / "probe.py"
_OLDEST = (3, 4)
_NAMED_LIBRARY = re.compile(r"(lib\S+?\.so[.\d]*): cannot open shared object file")  # what the loader says at its end
_LOG_LINES = 8  # how many of a log are shown where its meaning is not known


async def render(blender: Blender, *, needed: bool, ways: Sequence[str]) -> dict[str, Any]:
    """Have a Blender render one sample, and return what was found out about it. Nothing is raised.

    Args:
        needed: Whether the verdict depends on this Blender.
        ways: What to type to get another Blender.

    Returns:
        - kind, path, found: as `Blender` has them.
        - option: what the option `blender` takes for it.
        - embedded: whether it is the module in the environment that `doctor --fix` makes.
        - default: whether it is used where no option names another one.
        - needed, works: whether it is needed, and whether it rendered.
        - version: None if it is not known.
        - facts: if it rendered, its python, numpy, pyzmq, pyzmq_origin ("own", the "host"'s or our "cache"), engines, denoiser,
          egl, the frame's width and height, frame_seconds to render it, and start_seconds until it was ready.
        - notes: what could be better although it rendered, as "label: text".
        - installed: the packages that were installed for its Python just now.
        - why, details: why it did not render, in one line, and what a program printed about it.
        - commands: what to type about that, or about the notes, the best first.
        - mends: whether the first of these is known to help.
    """
    named = {"option": option(blender), "embedded": is_embedded(blender), "default": blender == find(None)}
    empty: dict[str, Any] = {"version": None, "facts": None, "notes": [], "installed": [], "why": None, "details": ""}
    found = {**asdict(blender), **named, **empty, "needed": needed, "works": False, "commands": [], "mends": False}
    once, patient = RestartPolicy(max_restarts=0), Timeouts(start=120.0, frame=120.0, stop=2.0)
    config = StreamConfig(script=_PROBE, blender=option(blender), length=1, instances=1, restart=once, timeouts=patient)
    packages = _installed_packages()
    start = time.perf_counter()
    try:
        from ...stream.stream import BlenderStream  # fails where the host's own numpy or pyzmq is broken

        async with BlenderStream(config) as stream:
            started = time.perf_counter() - start
            facts = dict(await anext(aiter(stream)))
    except (AsyncblendError, ImportError, OSError) as error:
        return found | await _diagnose(blender, error, ways)
    if "blender" not in facts:  # a fake of the tests, which answers with values of its own
        return found | {"why": "this is no Blender: it does not run scripts", "commands": ways}
    facts["height"], facts["width"], _ = facts.pop("image").shape
    facts["frame_seconds"], facts["start_seconds"] = facts.pop("seconds"), started
    facts["pyzmq_origin"] = _origin(blender, facts.pop("pyzmq_file"))
    installed = [" ".join(info.stem.split("-")[:2]) for info in sorted(_installed_packages() - packages)]
    found |= {"works": True, "version": facts.pop("blender"), "facts": facts, "installed": installed}
    return found | _notes(blender, facts)


def _notes(blender: Blender, facts: Mapping[str, Any]) -> dict[str, Any]:
    notes, commands = [], []
    if facts["denoiser"] is False:
        notes.append("denoiser: none: set scene.cycles.use_denoising = False in scripts")
    if not facts["egl"]:
        notes.append("libEGL.so.1: missing: EEVEE and Workbench need it without a screen, Cycles does not")
        commands.append(apt(debian_package("libEGL.so.1")))
    if blender.path == sys.executable and (pin := _broken_numpy_pin()):
        numpy = importlib.metadata.version("numpy")
        notes.append(f"numpy: bpy {module_version(blender.path)} is made for {pin}, here is {numpy}")
        commands.append(pip(pin))
        # Or the numpy stays, and Blender gets an environment of its own.
        here = sys.version_info[:2]
        commands += [f"asyncblend doctor --bpy {name}" for name, version in RELEASES.items() if version == here]
    return {"notes": notes, "commands": commands}


async def _diagnose(blender: Blender, error: BaseException, ways: Sequence[str]) -> dict[str, Any]:
    """Say why a Blender failed, and what to type."""
    if isinstance(error, CrashLoop) and error.__cause__ is not None:
        error = error.__cause__  # it names the crash itself; our config allows no restart, which is of no interest
    log = error.log_tail if isinstance(error, InstanceError) else ""
    printed = re.search(r"^Blender ((\d+)\.(\d+)\S*)", log, re.MULTILINE)
    version, binary = await _version_and_binary(blender)
    version = version or (printed and printed[1])

    if libraries := sorted({*await missing_libraries(binary), *_NAMED_LIBRARY.findall(log)}):
        what = "shared library is" if len(libraries) == 1 else "shared libraries are"
        why, command = f"{what} missing: {', '.join(libraries)}", apt(*sorted(set(map(debian_package, libraries))))
        details = "" if shutil.which("apt-get") else "The names of the packages are Debian's and Ubuntu's."
        return {"version": version, "why": why, "details": details, "commands": [command], "mends": True}
    if printed and (int(printed[2]), int(printed[3])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return {"version": version, "why": f"it is too old: asyncblend needs {oldest} or later", "commands": ways}
    details, command = (error.details, error.command) if isinstance(error, AsyncblendError) else ("", "")
    printed_last = error.traceback if isinstance(error, SampleError) else log
    details = details or "\n".join(printed_last.splitlines()[-_LOG_LINES:])
    why = re.sub(r"^Blender 0 ", "it ", str(error).partition("\n")[0]).rstrip(".:")
    commands = [command or by_hand(blender)]
    return {"version": version, "why": why, "details": details, "commands": commands, "mends": bool(command)}


def _installed_packages() -> set[Path]:
    return set(cache_folder().glob("*/*.dist-info"))


def _origin(blender: Blender, file: str) -> str:
    """Return whose pyzmq a file is: the Blender's "own", the "host"'s, or from our "cache"."""
    in_cache = Path(file).resolve().is_relative_to(cache_folder().resolve())
    return "host" if blender.path == sys.executable else "cache" if in_cache else "own"


def _broken_numpy_pin() -> str | None:
    """Return what the installed bpy asks of numpy, if that is below 2 and the installed numpy is not."""
    numpy = int(importlib.metadata.version("numpy").partition(".")[0])
    try:
        needs = importlib.metadata.requires("bpy") or []
    except importlib.metadata.PackageNotFoundError:  # this bpy was not installed by pip
        return None
    pins = [need.replace(" ", "") for need in needs if re.match(r"numpy\b.*<\s*2(\.0)*\s*(,|$)", need)]
    return pins[0] if pins and numpy >= 2 else None


def module_version(python: str) -> str | None:
    """Return the version of a Python's bpy module, without starting it."""
    folders = sys.path if python == sys.executable else [str(site_packages(python))]
    return next((found.version for found in importlib.metadata.distributions(name="bpy", path=folders)), None)


async def _version_and_binary(blender: Blender) -> tuple[str | None, str]:
    """Return the version of a module, if it is known, and the file that is linked with shared libraries, or ""."""
    if blender.kind == "executable":
        return None, blender.path
    if is_embedded(blender):
        found = next((site_packages(blender.path) / "bpy").glob("__init__*.so"), "")
        return module_version(blender.path), str(found)
    if blender.path == sys.executable:
        spec = importlib.util.find_spec("bpy")
        return module_version(blender.path), (spec and spec.origin) or ""
    try:
        module = await module_of(blender.path)
    except BlenderNotFound:  # the stream's error has said why
        return None, ""
    return module.version or None, module.file
