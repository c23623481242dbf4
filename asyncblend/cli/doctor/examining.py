"""Looks at this Python, mends what can be mended, has each Blender examined, and comes to a verdict."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ... import __version__
from ...errors import BlenderNotFound, InstanceError
from ...fleet.discovery import VARIABLE, Blender, all_blenders
from ...fleet.install.embedded import RELEASES, embedded_pythons, make_embedded
from ...fleet.install.packages import cache_folder
from ..live import Waiting
from ..needs import is_missing, pip
from .advice import find, offers, option, take, ways_to_a_blender
from .page import Page
from .rendering import module_version, render

_NEEDED = {"torch": "torch", "numpy": "numpy", "pyzmq": "zmq"}
"""The packages that this Python must have, and the module of each. A stream can be tried without torch."""


async def examine(name: str | None, *, fix: bool, bpy: str | None, page: Page) -> dict[str, Any]:
    """Look at everything, or at one Blender, and print each part as soon as it is known.

    Args:
        name: The option that names a Blender. None looks at all that are found.
        fix: Whether to install the embedded Blender if there is no bpy module. (What an executable's Python lacks is
            installed in any case, because a stream does that.)
        bpy: The release of Blender, a key of `RELEASES`, to install as the embedded one, whatever else is there.

    Returns:
        The report, for `json.dumps`. Later versions may add keys, but keep the meaning of these:

        - asyncblend: the version.
        - ready: whether frames can be streamed to a trainer here.
        - commands: what to type, one after another, to become ready, or to begin.
        - default: what the option `blender` takes for the Blender that is used without it, or None.
        - instead: the option `blender` of another Blender that works, and the command that chooses it; or None.
        - host: this Python, with its packages' versions, and `no_module`, which says why there is no bpy module.
        - blenders: what `render` found out about each.
        - problems: what no Blender is to blame for, each with title, why, details and commands, the nearest way first.
        - fixed: what was installed, each with what, path and commands, which say how to choose it.
        - present: what `bpy` asks for and was here already, in the same form.
        - offers: the releases of Blender that can be installed as an embedded one here, each with release, python (the
          one that it would take) and command. It is empty if one Blender only is looked at.
    """
    host = _host(with_module=name is None and bool(all_blenders()) and not fix)
    report: dict[str, Any] = {"asyncblend": __version__, "host": host}
    report |= {part: [] for part in ("blenders", "problems", "fixed", "present")}
    page.host(host, __version__)

    def add_problem(title: str, why: str, commands: Sequence[str] = (), details: str = "") -> None:
        report["problems"].append({"title": title, "why": why, "details": details, "commands": list(commands)})
        page.problem(report["problems"][-1])

    to_type, after_failed_fix = list(host["commands"]), []
    if bpy is not None or (fix and name in (None, "bpy") and isinstance(find("bpy"), BlenderNotFound)):
        before = list(embedded_pythons())
        try:
            with Waiting("Installing the embedded Blender (bpy, some 350 MB)"):
                python = await make_embedded(None if bpy is None else RELEASES[bpy])
        except InstanceError as error:
            why = str(error).partition("\n")[0].rstrip(":")
            add_problem("The embedded Blender could not be installed", why, [error.command], error.details)
            after_failed_fix = [error.command]
            if bpy is not None:  # that another Blender works is not what was asked for
                to_type += after_failed_fix
        else:
            is_new = python not in before
            what = f"The embedded Blender, bpy {module_version(python)}, is {'installed' if is_new else 'here already'}"
            choose = [] if find(None) == Blender("module", python) else [take(python)]
            part = report["fixed" if is_new else "present"]
            part.append({"what": what, "path": python, "commands": choose})
            page.fixed(part[-1], is_new=is_new)

    report["offers"] = [] if name is not None else await offers()
    chosen, ways = find(name), ways_to_a_blender(name, fix=fix)
    if isinstance(chosen, BlenderNotFound):
        title = "No such Blender" if name or os.environ.get(VARIABLE) else "No Blender"
        add_problem(title, str(chosen), ways)
        to_type += after_failed_fix or ways[:1]
    if missing := [package for package in ("numpy", "pyzmq") if host["packages"][package] is None]:
        add_problem("No Blender was tried", f"that needs {' and '.join(missing)} here")
    else:
        for one in all_blenders() if name is None else [chosen] if isinstance(chosen, Blender) else []:
            with Waiting(f"Rendering a small frame with {option(one)}"):
                report["blenders"].append(await render(one, needed=one == chosen, ways=ways))
            page.blender(report["blenders"][-1])
    report |= _verdict(name, report["blenders"], to_type)
    page.offers(report["offers"])
    page.verdict(report)
    return report


def _host(*, with_module: bool) -> dict[str, Any]:
    packages = {package: _version(package, module) for package, module in (_NEEDED | {"uvloop": "uvloop"}).items()}
    absent = [package for package in _NEEDED if packages[package] is None]
    module = find("bpy")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": packages,
        "cache": str(cache_folder().parent),
        "no_module": module.details if with_module and isinstance(module, BlenderNotFound) else None,
        "commands": [pip(*absent)] if absent else [],
    }


def _version(package: str, module: str) -> str | None:
    try:
        return None if is_missing(module) else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _verdict(name: str | None, blenders: Sequence[dict[str, Any]], to_type: list[str]) -> dict[str, Any]:
    """Return the report's keys ready, commands, default and instead. `to_type` must be typed in any case."""
    default = find(None)
    working = [one for one in blenders if one["works"]]
    failed = next((one for one in blenders if one["needed"] and not one["works"]), None)
    switch = take(working[0]["option"]) if working else ""
    instead = None
    if failed is not None:
        if working and failed["mends"]:
            instead = [working[0]["option"], switch]
        to_type += [switch] if working and not failed["mends"] else failed["commands"][:1]
    if ready := not to_type:
        named = name is not None and find(name) != default
        to_type = [f"asyncblend demo --blender {shlex.quote(name)}" if name and named else "asyncblend demo"]
    return {
        "ready": ready,
        "commands": list(dict.fromkeys(to_type)),
        "default": option(default) if isinstance(default, Blender) else None,
        "instead": instead,
    }
