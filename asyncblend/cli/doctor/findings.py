"""What `asyncblend doctor` finds out, as data: for the page, and as JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ... import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...fleet.discovery import Blender

__all__ = ["Finding", "Findings", "Fixed", "Host", "Part", "Problem", "Verdict"]


@dataclass(frozen=True, kw_only=True)
class Host:
    """What there is on this side."""

    python: str
    executable: str
    """Path of the Python that runs here."""
    packages: Mapping[str, str | None]
    """Versions; None for what is not installed."""
    cache: str
    """Where packages for Blenders and the embedded Blender are, or would be."""
    no_module: str | None
    """Why there is no bpy module, where that matters."""
    commands: Sequence[str]
    """What to type before the main job can run."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is no single Blender's fault."""

    title: str
    why: str
    details: str = ""
    commands: Sequence[str] = ()
    """What to type about it, the nearest way first."""


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What `--fix` has done."""

    what: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found out about one Blender."""

    blender: Blender
    option: str
    """What the option `blender` takes for it."""
    embedded: bool = False
    """Whether it is a module in an environment of its own."""
    default: bool = False
    """Whether it is taken where no option says otherwise."""
    needed: bool = False
    """Whether it is the one in question: the named one, else the default."""
    version: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """If it rendered: its python, numpy, pyzmq, pyzmq_origin ("own", "host" or "cache"), engines, denoiser, egl, the
    frame's width and height, frame_seconds to render it and start_seconds until it was ready."""
    notes: Sequence[tuple[str, str]] = ()
    """Though it rendered: what is not as it could be, with a label."""
    installed: Sequence[str] = ()
    """Packages that were installed for its Python just now."""
    why: str = ""
    """Why it did not render, in a line; "" if it did."""
    details: str = ""
    commands: Sequence[str] = ()
    """What to type about that, or about the notes, the best first."""
    mends: bool = False
    """Whether the first command is known to help."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the main job can run, and what to type now."""

    ready: bool
    commands: Sequence[str]
    """One after another, if it is not ready; else what to begin with."""
    instead: tuple[str, str] | None = None
    """Another Blender that works, and the command that takes it."""


Part = Host | Problem | Fixed | Finding | Verdict


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it."""

    host: Host
    problems: Sequence[Problem]
    fixed: Sequence[Fixed]
    blenders: Sequence[Finding]
    verdict: Verdict
    default: str | None
    """What the option `blender` takes for the Blender that is taken without it; None if there is none."""

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`. Keys are added, but never change their meaning."""
        host = self.host
        return {
            "asyncblend": __version__,
            "ready": self.verdict.ready,
            "commands": list(self.verdict.commands),
            "default": self.default,
            "host": {
                "python": host.python,
                "executable": host.executable,
                "packages": dict(host.packages),
                "cache": host.cache,
                "no_module": host.no_module,
                "commands": list(host.commands),
            },
            "blenders": [_blender_as_json(one) for one in self.blenders],
            "problems": [
                {"title": one.title, "why": one.why, "details": one.details, "commands": list(one.commands)}
                for one in self.problems
            ],
            "fixed": [{"what": one.what, "path": one.path} for one in self.fixed],
        }


def _blender_as_json(one: Finding) -> dict[str, Any]:
    return {
        "kind": one.blender.kind,
        "path": one.blender.path,
        "option": one.option,
        "found": one.blender.found,
        "embedded": one.embedded,
        "default": one.default,
        "works": not one.why,
        "version": one.version or None,
        "facts": dict(one.facts) if not one.why else None,
        "notes": [f"{label}: {text}" for label, text in one.notes],
        "installed": list(one.installed),
        "why": one.why or None,
        "details": one.details,
        "commands": list(one.commands),
    }
