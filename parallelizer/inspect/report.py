"""A plan as text: mesh, step time, memory, communication, and how the arguments are cut."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from parallelizer.dims import KINDS, DimCut, PlannedDim, dims_of
from parallelizer.inspect.facts import ArgumentRow, argument_rows, roles, traffic
from parallelizer.inspect.words import (
    broken,
    certificate,
    change_text,
    cut_text,
    kind_text,
    mesh_text,
    percent,
    reason_text,
    runner_up_text,
    short_source,
    time_text,
    type_text,
)
from parallelizer.plans import Plan
from parallelizer.wording import bytes_text

WIDTH = 120
_BAR = 30
_NARROW, _WIDE, _REASON = 28, 36, 22  # columns of array names and reasons
_COLLECTIVES = 12
_ARGUMENTS = 40
_DIMENSIONS = 24
_NOTICED = 0.02  # share of the bytes below which a cut is not mentioned
_MESHES = 8
RULES = "give them one with pz.register_rule (docs/rules.md)"
TRIPS = {
    "user": "loop_trips says so",
    "condition": "its condition allows no more; loop_trips={...} says otherwise",
    "unknown": "nothing is known; say how often with loop_trips={...}",
}


def summary(plan: Plan) -> str:
    """The plan as a text of at most 120 columns, without colours."""
    parts: list[RenderableType] = [_headline(plan), "", *_mesh(plan), *_time(plan), *_memory(plan)]
    parts += [*_communication(plan), *_arguments(plan), *_dimensions(plan), *_search(plan), *_warnings(plan)]
    return rendered(*parts)


def rendered(*parts: RenderableType) -> str:
    """Rich renderables as plain text; square brackets are text, never markup."""
    file = io.StringIO()
    # Without force_jupyter=False, rich shows its text in a notebook by itself and writes nothing into the file.
    console = Console(
        file=file,
        width=WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(Group(*(Text(p) if isinstance(p, str) else p for p in parts)))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")


def table(*columns: str, right: Sequence[str] = (), array_width: int | None = None) -> Table:
    """An open table; columns named in `right` hold numbers, the column "array" keeps its width."""
    out = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        show_edge=False,
        header_style="",
        collapse_padding=True,
    )
    for name in columns:
        least = array_width if name == "array" else None
        most = _REASON if name == "why" else None
        justify: Literal["left", "right"] = "right" if name in right else "left"
        out.add_column(name, justify=justify, overflow="fold", min_width=least, max_width=most)
    return out


def bar(part: float, whole: float, width: int = _BAR) -> str:
    """A bar of `width` characters for the whole; anything visible shows at least a sliver."""
    filled = part / whole * width if whole > 0 else 0.0
    full, eighths = int(filled), int(filled % 1 * 8)
    text = "█" * full + ("" if eighths == 0 else " ▏▎▍▌▋▊▉"[eighths])
    return text or ("▏" if filled > 0.02 else "")


def _headline(plan: Plan) -> str:
    devices, memory = plan.mesh.num_devices, plan.memory.limit_bytes
    return (
        f"{plan.function} on {plan.topology} ({devices} x {plan.mesh.topology.chip.name}), "
        f"mesh {mesh_text(plan.mesh.sizes)}\n{time_text(plan.cost.step_s)} per step, "
        f"{bytes_text(plan.cost.peak_bytes)} of {bytes_text(memory)} per device, {certificate(plan)}"
    )


def _mesh(plan: Plan) -> list[RenderableType]:
    rows = table("axis", "devices", "rides on", "used for", right=("devices",))
    used = roles(plan)
    for axis, size in plan.mesh.sizes.items():
        rows.add_row(axis, str(size), plan.mesh.rides_on(axis), used[axis])
    return ["MESH", rows, ""]


def _time(plan: Plan) -> list[RenderableType]:
    cost = plan.cost
    rows = table("", "time", "of the step", "", right=("time", "of the step"))
    rows.show_header = False
    for name, part in (("computing", cost.compute_s), ("waiting for communication", cost.exposed_communication_s)):
        rows.add_row(name, time_text(part), percent(part, cost.step_s), bar(part, cost.step_s))
    hidden = cost.hidden_communication_s
    rows.add_row("communication hidden behind computing", time_text(hidden), "", "")
    return [f"TIME OF ONE STEP: {time_text(cost.step_s)} (predicted)", rows, ""]


def _memory(plan: Plan) -> list[RenderableType]:
    memory, peak = plan.memory, plan.cost.peak_bytes
    rows = table("", "bytes", "of the limit", "", right=("bytes", "of the limit"))
    rows.show_header = False
    limit = memory.limit_bytes
    for kind, size in memory.by_kind:
        rows.add_row(kind, bytes_text(size), percent(size, limit), bar(size, limit))
        if kind == "arguments":
            for name, part in shown_arguments(plan):
                rows.add_row(f"  {name}", bytes_text(part), percent(part, limit), bar(part, limit))
    rows.add_row("free", bytes_text(limit - peak), percent(limit - peak, limit), "")
    title = f"MEMORY OF ONE DEVICE AT THE PEAK: {bytes_text(peak)} of {bytes_text(limit)} (predicted)"
    return [title, rows, ""]


def shown_arguments(plan: Plan) -> list[tuple[str, int]]:
    """(beginning of the path, bytes), what is below a thousandth of the arguments together."""
    total = sum(size for _, size in plan.memory.by_argument)
    large = [(name, size) for name, size in plan.memory.by_argument if size * 1000 >= total]
    rest = total - sum(size for _, size in large)
    return [*large, ("others", rest)] if rest else large


def _communication(plan: Plan) -> list[RenderableType]:
    listed = traffic(plan)
    if not listed:
        return ["COMMUNICATION: none", ""]
    total = sum(t.total_bytes for t in listed)
    rows = table("total", "kind", "axes", "times", "array", "your line", "why", right=("total", "times"))
    for t in listed[:_COLLECTIVES]:
        c = t.collective
        times = f"{t.count} x {bytes_text(c.size_bytes)}"
        line = short_source(c.source) or "-"
        array = broken(t.array, _NARROW)
        rows.add_row(bytes_text(t.total_bytes), kind_text(c.kind), "*".join(c.axes), times, array, line, c.why)
    rest = listed[_COLLECTIVES:]
    more = f"... and {len(rest)} smaller ones, {bytes_text(sum(t.total_bytes for t in rest))} together" if rest else ""
    count = sum(t.count for t in listed)
    title = f"COMMUNICATION: {count:,} collectives per step, {bytes_text(total)} per device, largest first"
    return [title, rows, *([more] if more else []), ""]


def _arguments(plan: Plan) -> list[RenderableType]:
    every = argument_rows(plan)
    large = sorted(every, key=lambda r: -r.device_bytes)[:_ARGUMENTS]
    rows = table("array", "type", "cut", "optimizer's", "per device", "why", right=("per device",), array_width=_WIDE)
    heading = ""
    for r in every:
        if r not in large:
            continue
        if r.section != heading:
            rows.add_row(heading := r.section)
        name = broken(f"  {r.label}" if r.section else r.label, _WIDE)
        cut = cut_text(r.array.sharding)
        rows.add_row(name, type_text(r.array), cut, r.state or "-", bytes_text(r.device_bytes), why(r))
    rest = len(every) - len(large)
    title = "ARGUMENTS: mesh axes that cut each dimension, major axis first; bytes with the optimizer's arrays"
    return [title, rows, *([f"... and {rest} smaller ones"] if rest else []), ""]


def _dimensions(plan: Plan) -> list[RenderableType]:
    rows = table("dimension", "size", *KINDS, right=("size",))
    shown, rest = shown_dims(plan)
    for d in shown:
        rows.add_row(d.name, f"{d.size:,}", *(_cuts_text(noticed(d.of(kind))) for kind in KINDS))
    if not shown:
        return []
    title = (
        'DIMENSIONS: one axis of the problem each, the mesh axes that cut it (by bytes); pins={"dims": {name: axis}}'
    )
    return [title, rows, *([f"... and {rest} that nothing cuts, or smaller"] if rest else []), ""]


def shown_dims(plan: Plan) -> tuple[tuple[PlannedDim, ...], int]:
    """The dimensions that something cuts (all of them where nothing is cut), and how many others there are."""
    listed = dims_of(plan)
    shown = tuple(d for d in listed if any(c.axes for c in d.cuts)) or listed
    return shown[:_DIMENSIONS], len(listed) - len(shown[:_DIMENSIONS])


def noticed(cuts: Sequence[DimCut]) -> tuple[DimCut, ...]:
    """The three largest cuts, without those of few bytes."""
    return tuple(c for c in cuts if c.share >= _NOTICED)[:3]


def _cuts_text(cuts: Sequence[DimCut]) -> str:
    """ "x", "-" where it is whole, "x 75%, -" where arrays differ."""
    if len(cuts) < 2:
        return ("*".join(cuts[0].axes) or "-") if cuts else ""
    return ", ".join(f"{'*'.join(c.axes) or '-'} {c.share:.0%}" for c in cuts)


def why(row: ArgumentRow) -> str:
    """A row's reason, short: "cheapest by 1.2 ms", of several decisions the closest."""
    if not row.choices:
        return "-"
    c = row.choices[0]
    if c.reason == "cheapest":
        return f"cheapest by {time_text(c.extra_s)}"
    if c.reason == "tied" and c.runner_up is not None:
        return f"tied with {cut_text(c.runner_up)}"
    return "forced by memory" if c.reason == "memory" else c.reason


def _search(plan: Plan) -> list[RenderableType]:
    rows = table("mesh", "step", "against the best", "search", "", right=("step", "against the best", "search"))
    tried = sorted(plan.tried, key=lambda t: t.cost_s)
    for t in tried[:_MESHES]:
        chosen = dict(t.mesh) == plan.mesh.sizes
        note = f"chosen; no layout below {time_text(plan.bound)}, {certificate(plan)}" if chosen else ""
        if plan.mode == "propagate":
            note = "the annotations' mesh"
        if t.status != "optimal":
            note = "; ".join(n for n in (note, "not searched to the end") if n)
        against = "-" if chosen else change_text(plan.cost.step_s, t.cost_s)
        rows.add_row(mesh_text(t.mesh), time_text(t.cost_s), against, time_text(t.search_s), note)
    more = [f"... and {len(tried) - _MESHES} dearer ones"] if len(tried) > _MESHES else []
    title = f"MESHES TRIED in {time_text(plan.search_s)}; steps are simulated, or (not the best) priced with all hidden"
    return [title, rows, *more]


def _warnings(plan: Plan) -> list[RenderableType]:
    out: list[RenderableType] = []
    if plan.pins:
        rows = table("array", "cut")
        for pattern, spec in plan.pins.items():
            rows.add_row(pattern, spec)
        out += ["", "PINNED BY THE USER", rows]
    if plan.propagation is not None and plan.propagation.forced:
        rows = table("price", "kind", "axes", "times", "array", "your line", right=("price", "times"))
        for f in plan.propagation.forced[:_COLLECTIVES]:
            times = f"{f.count} x {bytes_text(f.size_bytes)}"
            line = short_source(f.source) or "-"
            rows.add_row(
                time_text(f.time_s), kind_text(f.kind), "*".join(f.axes), times, broken(f.array, _NARROW), line
            )
        out += ["", "RESHARDS THAT PROPAGATION FORCES: no annotation asks for them", rows]
    if plan.unknown:
        rows = table("operation", "times", "first at", right=("times",))
        for name, count, where in plan.unknown:
            rows.add_row(name, str(count), short_source(where))
        out += ["", f"OPERATIONS WITHOUT A RULE: not cut, their cost is not known; {RULES}", rows]
    if plan.loops:
        rows = table("loop", "priced as", "because", right=("priced as",))
        for loop in plan.loops:
            rows.add_row(short_source(loop.source) or "-", f"{loop.trips} x", TRIPS[loop.why])
        out += ["", "LOOPS WHOSE LENGTH THE PROGRAM DOES NOT SAY", rows]
    return out


def reason_of(row: ArgumentRow, plan: Plan) -> str:
    """A row's reason in words, of several decisions the closest."""
    if not row.choices:
        return "a single number is on every device" if not row.array.shape else "it follows from other choices"
    c = row.choices[0]
    text = reason_text(c.reason, plan.memory.limit_bytes)
    if c.runner_up is None:
        return text
    return f"{text}; next best {runner_up_text(c.runner_up, c.extra_s, plan.objective_s)}"
