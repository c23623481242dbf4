"""What `asyncblend doctor` does: look at this side, mend what can be mended, and have each Blender render.

Each Blender is tried the way a training run uses it: a stream of one instance and one sample.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import RestartPolicy, StreamConfig, Timeouts
from ...errors import AsyncblendError, BlenderNotFound, CrashLoop, InstanceError
from ...fleet.discovery import VARIABLE, Blender, all_blenders, find_blender
from ...fleet.install.embedded import MODULES, make_embedded, site_packages
from ...fleet.install.packages import cache_folder
from .advice import apt, by_hand, option, pip, ways_to_a_blender
from .findings import Finding, Findings, Fixed, Host, Part, Problem, Verdict
from .libraries import debian_package, missing_libraries, named_libraries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["examine"]

_PROBE = Path(__file__).parents[2] / "blender" / "serving" / "probe.py"
_OLDEST = (3, 4)
_NEEDED = ("torch", "numpy", "pyzmq")
_TO_TRY = ("numpy", "pyzmq")
"""Of those, what a stream needs."""
_SHOWN_LINES = 8
"""Lines of a log that are shown where we do not know better."""


async def examine(
    name: str | None,
    *,
    fix: bool,
    show: Callable[[Part], None],
    working: Callable[[str], AbstractContextManager[Any]],
) -> Findings:
    """Look at everything, or at one Blender.

    Args:
        name: the option that names a Blender; None for all that are found.
        fix: install the embedded Blender if there is no bpy module. (What an executable's Python lacks is installed
            in any case: a stream does that.)
        show: called with each part as soon as it is known, the verdict last.
        working: makes a context manager for the time that something takes, from words for it.
    """
    examination = _Examination(name, show)
    fixing = None
    host = _host(with_module=name is None and bool(all_blenders()) and not fix)
    examination.add(host)
    if fix and name in (None, "bpy") and not _has_module():
        with working("Installing the embedded Blender (bpy, some 350 MB)"):
            fixing = await _embed()
        examination.add(fixing)
    failed_fix = fixing if isinstance(fixing, Problem) else None

    chosen = None
    to_type = [*host.commands]
    try:
        chosen = find_blender(name)
    except BlenderNotFound as error:
        title = "No such Blender" if name or os.environ.get(VARIABLE) else "No Blender"
        ways = ways_to_a_blender(str(error), name, fix=fix)
        examination.add(Problem(title=title, why=str(error), commands=ways))
        to_type += (failed_fix.commands if failed_fix else ways)[:1]

    if missing := [package for package in _TO_TRY if host.packages[package] is None]:
        why = f"that needs {' and '.join(missing)} here"
        examination.add(Problem(title="No Blender was tried", why=why))
    else:
        for one in _to_try(chosen, name):
            with working(f"Rendering a small frame with {_name(one)}"):
                finding = await _examine(one, name, chosen, fix=fix)
            examination.add(finding)
    return examination.judged(chosen, to_type)


class _Examination:
    """The parts so far; each is shown when it comes."""

    def __init__(self, name: str | None, show: Callable[[Part], None]) -> None:
        self._name, self._show = name, show
        self._parts: list[Part] = []

    def add(self, part: Part) -> None:
        self._parts.append(part)
        self._show(part)

    def judged(self, chosen: Blender | None, to_type: list[str]) -> Findings:
        """What it amounts to. `to_type`: before the chosen Blender can be used at all."""
        blenders = [part for part in self._parts if isinstance(part, Finding)]
        working = [one for one in blenders if not one.why]
        failed = next((one for one in blenders if one.needed and one.why), None)
        instead = None
        if failed is not None and working:
            other = f"export {VARIABLE}={shlex.quote(working[0].option)}"
            if failed.mends:
                instead = (_name(working[0].blender), other)
            to_type += failed.commands[:1] if failed.mends else [other]
        elif failed is not None:
            to_type += failed.commands[:1]
        ready = chosen is not None and not to_type
        if ready:
            named = self._name is not None and chosen != _default()
            to_type = [f"asyncblend demo --blender {shlex.quote(self._name or '')}" if named else "asyncblend demo"]
        verdict = Verdict(ready=ready, commands=list(dict.fromkeys(to_type)), instead=instead)
        self.add(verdict)
        default = _default()
        return Findings(
            host=next(part for part in self._parts if isinstance(part, Host)),
            problems=[part for part in self._parts if isinstance(part, Problem)],
            fixed=[part for part in self._parts if isinstance(part, Fixed)],
            blenders=blenders,
            verdict=verdict,
            default=None if default is None else option(default),
        )


def _to_try(chosen: Blender | None, name: str | None) -> list[Blender]:
    if name is None:
        return all_blenders()
    return [] if chosen is None else [chosen]


def _default() -> Blender | None:
    try:
        return find_blender(None)
    except BlenderNotFound:
        return None


def _name(blender: Blender) -> str:
    """In a sentence."""
    if _is_embedded(blender):
        return "the embedded Blender"
    return "the bpy module" if blender.kind == "module" else blender.path


def _is_embedded(blender: Blender) -> bool:
    return blender.kind == "module" and blender.path != sys.executable


def _has_module() -> bool:
    """Whether "bpy" is something here, the embedded one too."""
    try:
        find_blender("bpy")
    except BlenderNotFound:
        return False
    return True


# -- the host -------------------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    """Of an installed distribution. Nothing is imported: torch would take seconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host(*, with_module: bool) -> Host:
    packages = {package: _version(package) for package in (*_NEEDED, "uvloop")}
    absent = [package for package in _NEEDED if packages[package] is None]
    return Host(
        python=platform.python_version(),
        executable=sys.executable,
        packages=packages,
        cache=str(cache_folder().parent),
        no_module=_why_no_module() if with_module else None,
        commands=[pip(*absent)] if absent else [],
    )


def _why_no_module() -> str | None:
    """Discovery's own words, with the Pythons that there are wheels for."""
    try:
        find_blender("bpy")
    except BlenderNotFound as error:
        return str(error).partition("\n")[0].partition(": ")[2]
    return None


async def _embed() -> Fixed | Problem:
    try:
        python = await make_embedded()
    except InstanceError as error:
        head, _, rest = str(error).partition("\n")
        details, command, cure = rest, "", ""
        if "type:\n" in rest:
            details, _, command = rest.partition("To install by hand, type:\n")
        elif "$ASYNCBLEND_CACHE" in rest:
            cure = "export ASYNCBLEND_CACHE=FOLDER    (with a folder that you may write to)"
        elif quoted := re.search(r"`([^`]+)`", rest):
            cure = f"{quoted[1]}    (with Python {' or '.join(f'{a}.{b}' for a, b in MODULES)} on the PATH)"
        return Problem(
            title="The embedded Blender could not be installed",
            why=head.rstrip(":"),
            details=details.strip(),
            commands=[command or cure],
        )
    return Fixed(what=f"The embedded Blender, bpy {_module_version(python)}, is installed", path=python)


# -- one Blender ----------------------------------------------------------------------------------------------------


async def _examine(blender: Blender, name: str | None, chosen: Blender | None, *, fix: bool) -> Finding:
    """Have it render. Its troubles are in the finding.

    Args:
        name: the option that named it.
        chosen: the Blender in question.
        fix: whether `--fix` has been tried.
    """
    about: dict[str, Any] = {
        "blender": blender,
        "option": option(blender),
        "embedded": _is_embedded(blender),
        "default": blender == _default(),
        "needed": blender == chosen,
    }
    config = StreamConfig(
        script=_PROBE,
        blender=about["option"],
        length=1,
        instances=1,
        restart=RestartPolicy(max_restarts=0),
        timeouts=Timeouts(start=120.0, frame=120.0, stop=2.0),
    )
    packages = _packages()
    start = time.perf_counter()
    try:
        from ...stream.stream import BlenderStream  # imports numpy and zmq, which may be what is missing

        async with BlenderStream(config) as stream:
            started = time.perf_counter() - start
            facts = dict(await anext(stream))
    except (AsyncblendError, ImportError, OSError) as error:
        cause = error.__cause__ if isinstance(error, CrashLoop) and error.__cause__ else error
        tail = cause.log_tail if isinstance(cause, InstanceError) else ""
        libraries = await missing_libraries(_binary(blender)) + named_libraries(tail)
        ways = ways_to_a_blender("", name, fix=fix)
        return Finding(**about, **_diagnose(blender, cause, tail, sorted(set(libraries)), ways))
    if "blender" not in facts:  # a fake one, with samples of its own
        why, ways = "this is no Blender: it does not run scripts", ways_to_a_blender("", name, fix=fix)
        return Finding(**about, why=why, commands=ways)
    notes, commands = _notes(blender, facts)
    return Finding(
        **about,
        version=facts["blender"],
        facts=_facts(blender, facts, started),
        notes=notes,
        commands=commands,
        installed=[_distribution(path) for path in sorted(_packages() - packages)],
    )


def _facts(blender: Blender, probed: Mapping[str, Any], started: float) -> dict[str, Any]:
    """The probe's, in the order in which they are told."""
    height, width, _ = probed["image"].shape
    same = {name: probed[name] for name in ("engines", "denoiser", "egl")}
    return {
        "python": probed["python"],
        "numpy": probed["numpy"],
        "pyzmq": probed["pyzmq"],
        "pyzmq_origin": _origin(blender, probed["pyzmq_file"]),
        **same,
        "width": width,
        "height": height,
        "frame_seconds": probed["seconds"],
        "start_seconds": started,
    }


def _notes(blender: Blender, facts: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """What is not as it could be, though it renders, and the commands about it."""
    notes, commands = [], []
    if facts["denoiser"] is False:
        notes.append(("denoiser", "none: set scene.cycles.use_denoising = False in scripts"))
    if not facts["egl"]:
        missing = "missing: EEVEE and Workbench need it without a screen, Cycles does not"
        notes.append(("libEGL.so.1", missing))
        commands.append(apt(debian_package("libEGL.so.1")))
    if blender.kind == "module" and not _is_embedded(blender) and (pin := _broken_numpy_pin()):
        notes.append(("numpy", f"bpy {_version('bpy')} is made for {pin}, here is {_version('numpy')}"))
        commands.append(pip(pin))
    return notes, commands


def _diagnose(
    blender: Blender, error: BaseException, tail: str, libraries: Sequence[str], ways: Sequence[str]
) -> dict[str, Any]:
    """From an error and the end of a log to words and commands, as fields of a Finding.

    Args:
        ways: what to type for another Blender.
    """
    head, _, rest = str(error).partition("\n")
    printed = re.search(r"^Blender (\d+)\.(\d+)\S*", tail, re.MULTILINE)
    version = printed[0].removeprefix("Blender ") if printed else ""
    if blender.kind == "module":
        version = _module_version(blender.path)

    def finding(why: str, details: str, commands: Sequence[str], *, mends: bool = False) -> dict[str, Any]:
        return {"version": version, "why": why, "details": details, "commands": commands, "mends": mends}

    if libraries:
        what = "shared library is" if len(libraries) == 1 else "shared libraries are"
        details = "" if shutil.which("apt-get") else "The names of the packages are Debian's and Ubuntu's."
        packages = sorted({debian_package(soname) for soname in libraries})
        return finding(f"{what} missing: {', '.join(libraries)}", details, [apt(*packages)], mends=True)
    if type(error) is InstanceError:  # its Python lacks packages, and they could not be installed
        details, _, command = rest.partition("To install by hand, type:\n")
        if quoted := re.search(r"Type `([^`]+)`", head):
            command = quoted[1]
        elif "$ASYNCBLEND_CACHE" in rest:
            command = "export ASYNCBLEND_CACHE=FOLDER    (with a folder that you may write to)"
        return finding(head.rstrip(":"), details.strip(), [command or by_hand(blender)], mends=bool(command))
    if "it has no module bpy" in tail:
        return finding(tail.splitlines()[-1], "", ways)
    if printed and (int(printed[1]), int(printed[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return finding(f"it is too old: asyncblend needs {oldest} or later", "", ways)
    why = re.sub(r"^Blender 0 ", "it ", head).rstrip(".:")
    shown = "\n".join((tail or rest).splitlines()[-_SHOWN_LINES:])
    return finding(why, shown, [by_hand(blender)])


def _packages() -> set[Path]:
    """What is installed for Blenders' Pythons."""
    return set(cache_folder().glob("*/*.dist-info"))


def _distribution(info: Path) -> str:
    name, _, version = info.stem.partition("-")
    return f"{name} {version}"


def _origin(blender: Blender, file: str) -> str:
    """Whose pyzmq it is: "own", of the "host"'s Python, or from our "cache"."""
    if blender.kind == "module" and not _is_embedded(blender):
        return "host"
    mine = Path(file).resolve().is_relative_to(cache_folder().resolve())
    return "cache" if mine else "own"


def _broken_numpy_pin() -> str | None:
    """What the installed bpy asks of numpy, if that is below 2 and the installed numpy is not."""
    try:
        needs = importlib.metadata.requires("bpy") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    version = _version("numpy") or "0"
    for need in needs:
        if re.match(r"numpy\b.*<\s*2(\.0)*\s*(,|$)", need) and int(version.partition(".")[0]) >= 2:
            return need.replace(" ", "")
    return None


def _module_version(python: str) -> str:
    """Of the bpy module of a Python, without starting it."""
    if python == sys.executable:
        return _version("bpy") or ""
    for found in importlib.metadata.distributions(name="bpy", path=[str(site_packages(python))]):
        return found.version
    return ""


def _binary(blender: Blender) -> str:
    """What is linked with shared libraries."""
    if blender.kind == "executable":
        return blender.path
    if _is_embedded(blender):
        return str(next((site_packages(blender.path) / "bpy").glob("__init__*.so"), ""))
    spec = importlib.util.find_spec("bpy")
    return (spec and spec.origin) or ""
