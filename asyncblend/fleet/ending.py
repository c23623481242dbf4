"""Ending: how the life of a Blender ended, as an error for the caller, and whether another life may do better."""

from __future__ import annotations

from typing import NamedTuple

from ..config import Timeouts
from ..errors import FrameTimeout, InstanceError, InstanceExited, StartTimeout, WindowClosed
from ..wire.launch import Report
from .instance import Cause, Instance

_SIGKILL = 9  # what the system sends where memory is short
_SLOW = (
    "; where a sample takes so long, give it more time, or lower the samples and the resolution (EEVEE without a GPU takes "
    "minutes for its first frame)"
)
_LINES = 40  # of the output in an error's message; its `log_tail` has more


class Ending(NamedTuple):
    """How one life ended."""

    cause: Cause
    error: InstanceError  # Raised if it was the last life
    report: Report = Report()


def why_it_ended(instance: Instance, status: int, log_tail: str, report: Report, timeouts: Timeouts) -> Ending:
    """Judge by the exit status (a negative one is a signal) and by what the Blender left."""
    cause: Cause = "crash"
    if report.lost and instance.condemned is None:
        text = f"Blender {instance.number} was lost: {report.lost}"
        return Ending(cause, InstanceError(text, instance=instance.number, log_tail=log_tail), report)
    if report.packages is not None:
        cause = "needs_packages"
    elif report.window_closed and instance.condemned is None:
        text = f"the user closed the window of Blender {instance.number}, which ends the stream"
        closed = WindowClosed(text, instance=instance.number, log_tail=log_tail, returncode=status)
        return Ending("fatal", closed, report)
    elif report.script_failed and instance.condemned is None:
        cause = "fatal"
    return Ending(cause, _error(instance, status, log_tail, timeouts), report)


def cannot_start(number: int, error: OSError) -> Ending:
    """Judge a process that the operating system refused: out of descriptors, processes, memory or disk. It may pass."""
    lost = str(error) if isinstance(error, ConnectionError) else ""  # the machine is gone
    text = f"Blender {number} could not be started: {error}"
    return Ending("crash", InstanceError(text, instance=number), Report(lost=lost))


def still_missing(number: int, ending: Ending) -> Ending:
    """Judge a Blender whose packages were installed, and which does not find them."""
    report, tail = ending.report, ending.error.log_tail
    text = (
        f"{' and '.join(report.packages or ())} for Blender's Python {report.python} are in {report.folder}, "
        f"but Blender {number} does not find them there; is it shut off from that folder?"
    )
    return Ending("fatal", InstanceError(text, instance=number, log_tail=tail), report)


def _error(instance: Instance, status: int, log_tail: str, timeouts: Timeouts) -> InstanceError:
    name, number = f"Blender {instance.number}", instance.number
    last = "\n".join(log_tail.splitlines()[-_LINES:])
    output = f"\nIts last output:\n{last}" if last else "\nIt wrote nothing."
    if instance.condemned == "start":
        text = f"{name} did not call serve within {timeouts.start:g} s (timeouts.start).{output}"
        return StartTimeout(text, instance=number, log_tail=log_tail)
    if instance.condemned in ("beat", "frame"):
        what = "sent no heartbeat" if instance.condemned == "beat" else "made no frame"
        limit = getattr(timeouts, instance.condemned)
        text = f"{name} {what} for {limit:g} s (timeouts.{instance.condemned}) and was killed"
        text += f"{_SLOW if instance.condemned == 'frame' else ''}.{output}"
        return FrameTimeout(text, instance=number, log_tail=log_tail)
    if instance.condemned is not None:
        text = f"{name} {instance.condemned} and was killed.{output}"
        return InstanceError(text, instance=number, log_tail=log_tail)
    how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
    when = "while it served" if instance.served else "before it was ready"
    if status == -_SIGKILL:
        when += " (is memory short?)"
    return InstanceExited(f"{name} {how} {when}.{output}", instance=number, log_tail=log_tail, returncode=status)
