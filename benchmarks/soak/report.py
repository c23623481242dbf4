"""What was measured: figures for programs, a table for people, a row for a README, and the problems."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from .faults import ENDING, FEW, GARBAGE, HOST
from .run import Run

__all__ = ["figures", "markdown", "problems", "table", "title"]


def title(run: Run) -> str:
    """Return what ran, and how long it was meant to run."""
    return f"{_fleet(run)}, {run.seconds / 60:g} min"


def _fleet(run: Run) -> str:
    """Return the number, kind and version of the Blenders."""
    count, name = run.config.instances, run.fleet.name
    if run.version is not None:
        return f"{count} {name} {run.version}"
    return f"{count} {name}{'s' if count > 1 and name != 'bpy' else ''}"


def problems(run: Run, left: list[str]) -> list[str]:
    """Return a sentence for everything that went wrong."""
    found = [] if run.failure is None else [run.failure]
    if run.recoveries.open:
        found.append(f"{run.recoveries.open} faults after which the instance did not come back")
    for consumer, ledger in run.ledgers.items():
        counts = ledger.counts
        for name, count in (
            ("frames lost", counts.lost),
            ("duplicates", counts.duplicates),
            ("frames with wrong content", counts.wrong),
        ):
            if count:
                found.append(f"the {consumer} consumer: {count} {name}")
        found += [f"the {consumer} consumer: {detail}" for detail in ledger.details]
        if not counts.frames:
            found.append(f"the {consumer} consumer: no frame at all")
    for name, trend in run.memory.trends().items():
        if not trend.flat:
            found.append(f"the memory of {name} grew from {trend.early:.0f} to {trend.late:.0f} MiB")
    return found + run.hosts.problems + [f"left behind: {what}" for what in left]


def figures(run: Run, left: list[str]) -> dict[str, Any]:
    """Return all that was measured, as `json.dumps` takes it."""
    total, stats, samples = run.total, run.stream.stats(), run.memory.samples
    return {
        "fleet": _fleet(run),
        "kind": run.fleet.name,
        "version": run.version,
        "instances": run.config.instances,
        "seed": run.config.seed,
        "minutes": round(run.took / 60, 1),
        "seconds": round(run.took, 1),
        "closing_seconds": round(run.closing, 2),
        **total._asdict(),
        "frames_per_second": round(total.frames / max(run.took, 1e-9), 1),
        "consumers": {name: ledger.counts._asdict() for name, ledger in run.ledgers.items()},
        "faults": run.chaos.counts,
        "garbage_messages": run.chaos.messages,
        "few_descriptors": {"refused": run.hosts.refused, "served": run.hosts.served},
        "recovery_seconds": {kind: _times(seconds) for kind, seconds in run.recoveries.seconds.items() if seconds},
        "gone_seconds": _times(run.hosts.gone) if run.hosts.gone else None,
        "lives_ended": run.recoveries.hits,
        "hit_again": run.recoveries.hit_again,
        "not_recovered": run.recoveries.open,
        "restarts": stats.restarts,
        "stale": stats.stale,
        "bad_messages": stats.bad_messages,
        "refused": stats.refused,
        "memory_mib": {
            name: {"second_quarter": round(trend.early, 1), "last_quarter": round(trend.late, 1), "flat": trend.flat}
            for name, trend in run.memory.trends().items()
        },
        "memory_over_time": {
            "seconds": [round(sample.at, 1) for sample in samples],
            "host_mib": [round(sample.host, 1) for sample in samples],
            "fleet_mib": [round(sample.fleet, 1) for sample in samples],
        },
        "left": left,
    }


def _times(seconds: list[float]) -> dict[str, float]:
    return {"count": len(seconds), "median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)}


def markdown(f: dict[str, Any]) -> list[str]:
    """Return the lines of a Markdown table with one column. `f` has the figures."""
    host = f["memory_mib"]["the host"]
    cells = {
        "fleet": f["fleet"],
        "minutes": f"{f['minutes']:g}",
        "frames": f"{f['frames']:,}",
        **{f"faults: {kind}": str(count) for kind, count in f["faults"].items()},
        **{name: f"**{f[name]}**" for name in ("lost", "duplicates", "wrong")},
        "left behind": f"**{len(f['left'])}**",
        **{f"recovery after {kind}: median, worst": _both(f["recovery_seconds"].get(kind)) for kind in ENDING},
        f"Blenders of a {HOST} gone after: median, worst": _both(f["gone_seconds"]),
        "host memory, second and last quarter": f"{host['second_quarter']:.0f} → {host['last_quarter']:.0f} MiB",
    }
    heading, *lines = (f"| {name} | {cell} |" for name, cell in cells.items())
    return [heading, "|---|---|", *lines]


def _both(times: dict[str, float] | None) -> str:
    return f"{times['median']:.2f} s, {times['worst']:.2f} s" if times else "none"


def table(f: dict[str, Any], title: str) -> Table:
    """Return the figures as a table for a terminal."""
    table = Table(title=f"Soak of {title}", show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column()
    table.add_row("frames delivered", f"{f['frames']:,} ({f['frames_per_second']:,.0f}/s)")
    for name, own in f["consumers"].items():
        bad = ", ".join(f"{own[what]} {what}" for what in ("lost", "duplicates", "wrong"))
        about = f"{own['frames']:,} frames in {own['passes']} passes, {own['cancelled']} of them cancelled; {bad}"
        table.add_row(f"the {name} consumer", about)
    for name in ("lost", "duplicates", "wrong"):
        label = "wrong content" if name == "wrong" else name
        table.add_row(label, str(f[name]), style="bold red" if f[name] else "bold green")
    few = f["few_descriptors"]
    more = {
        GARBAGE: f" ({f['garbage_messages']} messages)",
        FEW: f" ({few['refused']} hosts refused to begin, {few['served']} got all frames)",
    }
    for kind, count in f["faults"].items():
        table.add_row(f"faults: {kind}", f"{count}{more.get(kind, '')}")
    times = {f"recovery after {kind}": own for kind, own in f["recovery_seconds"].items()}
    if f["gone_seconds"]:
        times[f"Blenders of a {HOST} gone after"] = f["gone_seconds"]
    for name, own in times.items():
        table.add_row(name, f"median {own['median']:.2f} s, worst {own['worst']:.2f} s of {own['count']}")
    if f["hit_again"]:
        table.add_row("hit again before", str(f["hit_again"]))
    table.add_row("not recovered", str(f["not_recovered"]))
    others = f["restarts"] - f["lives_ended"]
    table.add_row("restarts", f"{f['restarts']}{f', {others} without such a fault' if others > 0 else ''}")
    table.add_row("stale frames dropped", str(f["stale"]))
    table.add_row("bad messages dropped", str(f["bad_messages"]))
    table.add_row("connections refused", str(f["refused"]))
    for name, own in f["memory_mib"].items():
        table.add_row(
            f"memory of {name}",
            f"{own['second_quarter']:.0f} MiB in the second quarter, {own['last_quarter']:.0f} in the last: "
            f"{'flat' if own['flat'] else 'NOT FLAT'}",
            style="" if own["flat"] else "bold red",
        )
    table.add_row("closed in", f"{f['closing_seconds']:.2f} s")
    table.add_row("left behind", ", ".join(f["left"]) or "nothing")
    return table
