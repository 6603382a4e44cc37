"""A planned transfer as text: times and the bound, who sends what to whom, and what cards and links carry."""

from __future__ import annotations

from collections.abc import Sequence

from parallelizer.inspect.words import time_text
from parallelizer.wording import bytes_text
from passes.cross_mesh import Load, Move, Placement, Send

_TASKS, _LOADS = 16, 12
"""How many rows of each table are shown."""


def summary(move: Move, array: str) -> str:
    """The whole plan as plain text; long tables are cut off with a count."""
    lines = [headline(move, array), "", *_bound(move)]
    if move.sends:
        lines += ["", *_tasks(move), "", *_loads(move)]
    return "\n".join(lines)


def headline(move: Move, array: str) -> str:
    """One line: what moves from where to where."""
    return (
        f"{array} ({bytes_text(move.size_bytes)}) from {placement_text(move.source)} to "
        f"{placement_text(move.destination)} on {move.topology.name}"
    )


def placement_text(placement: Placement) -> str:
    """Mesh, cut and devices, as in "x=4 [x, -] on devices 0-3"."""
    mesh = " x ".join(f"{a}={n}" for a, n in placement.axes) or "one device"
    return f"{mesh} {placement.sharding} on devices {_ranges(placement.devices)}"


def _ranges(devices: Sequence[int]) -> str:
    """Ascending runs, as in "0-3, 6"."""
    runs: list[list[int]] = []
    for d in sorted(devices):
        if runs and d == runs[-1][1] + 1:
            runs[-1][1] = d
        else:
            runs.append([d, d])
    shown = [f"{a}-{b}" if b > a else str(a) for a, b in runs[:6]]
    return ", ".join(shown) + (", ..." if len(runs) > 6 else "")


def _bound(move: Move) -> list[str]:
    if not move.sends:
        return ["nothing moves: every device has its block already"]
    return [
        f"simulated    {time_text(move.makespan_s)}",
        f"lower bound  {time_text(move.bound.time_s)}  ({move.bound.reason})",
        f"ratio        {move.ratio:.2f}",
        f"sent         {bytes_text(move.moved_bytes)} in {len(move.sends)} tasks of {move.rounds} pieces each",
    ]


def _tasks(move: Move) -> list[str]:
    rows: list[tuple[str, ...]] = [("task", "from", "to", "block", "bytes", "over", "start", "end", "after")]
    rows += [_task(s) for s in move.sends[:_TASKS]]
    return _table(rows, len(move.sends) - _TASKS, "tasks")


def _task(send: Send) -> tuple[str, ...]:
    block = "[" + ", ".join(f"{a}:{b}" for a, b in send.box) + "]"
    return (
        str(send.id), str(send.sender), str(send.receiver), block, bytes_text(send.size_bytes),
        "network" if send.network else "node", time_text(send.start_s), time_text(send.end_s),
        str(send.after) if send.after >= 0 else "-",
    )  # fmt: skip


def _loads(move: Move) -> list[str]:
    rows: list[tuple[str, ...]] = [("carries", "bytes", "busy", "of the time")]
    busiest = sorted(move.loads, key=lambda load: (-load.busy_s, load.resource))
    for load in busiest[:_LOADS]:
        share = load.busy_s / move.makespan_s if move.makespan_s else 0.0
        rows.append((_resource(load), bytes_text(load.size_bytes), time_text(load.busy_s), f"{share:.0%}"))
    return _table(rows, len(busiest) - _LOADS, "cards and links")


def _resource(load: Load) -> str:
    kind, number, dim = load.resource
    words = kind.split()
    if words[0] == "card":
        return f"network card {number} {words[1]}"
    return f"device {number} {words[1]}" if words[0] == "port" else f"link of device {number}, axis {dim} {words[1]}"


def _table(rows: Sequence[tuple[str, ...]], more: int, what: str) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, f"... and {more} more {what}"] if more > 0 else lines
