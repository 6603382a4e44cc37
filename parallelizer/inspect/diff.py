"""What differs between two plans: mesh, time, memory, shardings and communication."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType

from parallelizer.inspect.report import rendered, table
from parallelizer.inspect.words import (
    broken,
    change_text,
    cut_text,
    fold_names,
    kind_text,
    mesh_text,
    time_text,
    type_text,
)
from parallelizer.plans import Array, Plan
from parallelizer.wording import bytes_text

_ROWS = 40
_ARRAY = 44


def diff(plan: Plan, other: Plan) -> str:
    """What differs from `plan` to `other`, as text of at most 120 columns."""
    parts: list[RenderableType] = [*_program(plan, other), *_mesh(plan, other), *_cost(plan, other)]
    parts += [*_shardings(plan, other), *_communication(plan, other)]
    return rendered(*parts)


def _program(plan: Plan, other: Plan) -> list[RenderableType]:
    same = plan.graph_hash == other.graph_hash
    what = "the same program" if same else "different programs or shapes"
    if plan.function == other.function:
        return [f"{plan.function}: {what}", ""]
    return [f"{plan.function} -> {other.function}: {what}", ""]


def _mesh(plan: Plan, other: Plan) -> list[RenderableType]:
    rows = table("", "before", "after")
    facts = [
        ("topology", plan.topology, other.topology),
        ("mesh", mesh_text(plan.mesh.sizes), mesh_text(other.mesh.sizes)),
        ("memory limit", bytes_text(plan.memory.limit_bytes), bytes_text(other.memory.limit_bytes)),
        ("pins", _pins(plan), _pins(other)),
        *((f"{a} rides on", *_rides(plan, other, a)) for a in {**plan.mesh.sizes, **other.mesh.sizes}),
    ]
    changed = [f for f in facts if f[1] != f[2]]
    for name, before, after in changed:
        rows.add_row(name, before, after)
    return [rows, ""] if changed else ["topology, mesh, memory limit and pins are the same", ""]


def _rides(plan: Plan, other: Plan, axis: str) -> tuple[str, str]:
    before, after = (p.mesh.rides_on(axis) if axis in p.mesh.sizes else "-" for p in (plan, other))
    return before, after


def _pins(plan: Plan) -> str:
    return ", ".join(f"{pattern} {spec}" for pattern, spec in plan.pins.items()) or "none"


def _cost(plan: Plan, other: Plan) -> list[RenderableType]:
    rows = table("", "before", "after", "change", "", right=("before", "after", "change"))
    times = (
        ("step", plan.cost.step_s, other.cost.step_s),
        ("computing", plan.cost.compute_s, other.cost.compute_s),
        ("waiting for communication", plan.cost.exposed_communication_s, other.cost.exposed_communication_s),
        ("hidden communication", plan.cost.hidden_communication_s, other.cost.hidden_communication_s),
        ("price that was minimised", plan.objective_s, other.objective_s),
    )
    for name, before, after in times:
        rows.add_row(name, time_text(before), time_text(after), *_change(before, after))
    sizes = [("peak memory", plan.cost.peak_bytes, other.cost.peak_bytes)]
    mine, theirs = dict(plan.memory.by_kind), dict(other.memory.by_kind)
    sizes += [(f"  {kind}", mine.get(kind, 0), theirs.get(kind, 0)) for kind in {**mine, **theirs}]
    for name, small, large in sizes:
        rows.add_row(name, bytes_text(small), bytes_text(large), *_change(small, large))
    if plan.cost == other.cost and plan.memory == other.memory and plan.objective_s == other.objective_s:
        return [f"COST: the same, {time_text(plan.cost.step_s)} and {bytes_text(plan.cost.peak_bytes)}", ""]
    return ["COST: predicted, per step and device", rows, ""]


def _change(before: float, after: float) -> tuple[str, str]:
    """The change in percent, and as a factor where it is large."""
    ratio = after / before if before else 0.0
    factor = f"{ratio:.3g} x" if ratio >= 2 else f"1 / {1 / ratio:.3g}" if 0 < ratio <= 0.5 else ""
    return change_text(before, after), factor


def _shardings(plan: Plan, other: Plan) -> list[RenderableType]:
    mine, theirs = _arrays(plan), _arrays(other)
    both = [p for p in mine if p in theirs]
    changed = [p for p in both if _text(mine[p]) != _text(theirs[p])]
    lines: list[RenderableType] = []
    if changed:
        rows = table("array", "before", "after", array_width=_ARRAY)
        pairs = [(_text(mine[p]), _text(theirs[p])) for p in changed]
        folded = fold_names(changed, pairs)
        for r in folded[:_ROWS]:
            rows.add_row(broken(r.label, _ARRAY), *pairs[r.members[0]])
        more = [f"... and {len(folded) - _ROWS} more rows"] if len(folded) > _ROWS else []
        lines += [f"SHARDINGS: {len(changed)} of {len(both)} arguments are cut otherwise", rows, *more, ""]
    elif both:
        lines += [f"SHARDINGS: all {len(both)} arguments are cut alike", ""]
    for title, here, there in (("only before", mine, theirs), ("only after", theirs, mine)):
        missing = [p for p in here if p not in there]
        if missing:
            labels = [r.label for r in fold_names(missing, [None] * len(missing))]
            rest = f" and {len(labels) - _ROWS} more" if len(labels) > _ROWS else ""
            lines += [f"arguments {title}: {', '.join(labels[:_ROWS])}{rest}", ""]
    return lines


def _arrays(plan: Plan) -> dict[str, Array]:
    return {a.path: a for a in plan.inputs}


def _text(array: Array) -> str:
    return f"{type_text(array)} {cut_text(array.sharding)}"


def _communication(plan: Plan, other: Plan) -> list[RenderableType]:
    mine, theirs = _totals(plan), _totals(other)
    keys = sorted({**mine, **theirs}, key=lambda k: -max(mine.get(k, (0, 0))[1], theirs.get(k, (0, 0))[1]))
    if not keys:
        return ["COMMUNICATION: none in either"]
    if mine == theirs:
        return ["COMMUNICATION: the same"]
    rows = table("kind", "axes", "before", "after", "change", "", right=("before", "after", "change"))
    for kind, axes in keys:
        before, after = mine.get((kind, axes), (0, 0)), theirs.get((kind, axes), (0, 0))
        rows.add_row(kind_text(kind), axes, _times(before), _times(after), *_change(before[1], after[1]))
    before_all, after_all = (sum(size for _, size in t.values()) for t in (mine, theirs))
    rows.add_row("all", "", bytes_text(before_all), bytes_text(after_all), *_change(before_all, after_all))
    return ["COMMUNICATION: times and bytes per step and device", rows]


def _totals(plan: Plan) -> Mapping[tuple[str, str], tuple[int, int]]:
    """(kind, axes) -> (how many, bytes) per step; the order of axes does not matter to how much moves."""
    out: dict[tuple[str, str], tuple[int, int]] = {}
    for c in plan.collectives:
        key = (c.kind, "*".join(sorted(c.axes)))
        count, size = out.get(key, (0, 0))
        out[key] = (count + c.count, size + c.total_bytes)
    return out


def _times(pair: tuple[int, int]) -> str:
    count, size = pair
    return f"{count:,} x, {bytes_text(size)}" if count else "-"
