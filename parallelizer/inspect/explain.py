"""Why an array is cut as it is: the sharding, the reason, the runner-up and its price, and what follows from it."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from parallelizer.errors import UnknownPathError
from parallelizer.inspect.facts import KINDS, device_bytes, kinds_of_arguments
from parallelizer.inspect.words import (
    cut_text,
    fold_names,
    folded_labels,
    kind_text,
    reason_text,
    runner_up_text,
    short_source,
    type_text,
)
from parallelizer.plans import Array, Choice, Collective, Plan
from parallelizer.wording import bytes_text
from passes.explain import exact_reason
from passes.ir import Sharding

_DECISIONS = 6
"""How many decisions are explained when a pattern names more."""
_EXACT = 2
"""How many of them are priced anew with everything else free to change (each takes two runs of the solver)."""
_COLLECTIVES = 8


def explain(plan: Plan, path: str) -> str:
    """Why the arrays that `path` names are cut as they are: a whole path, its unique end, the beginning of several, or
    a glob. Raises UnknownPathError with the nearest names."""
    arrays = find(plan, path)
    if len({a.path for a in arrays}) == 1:
        return "\n".join(_one(plan, arrays[0], exact=True))
    kinds = kinds_of_arguments(plan)
    arrays.sort(key=lambda a: KINDS.index(kinds.get(a.path, "batch")))
    keys = [(type_text(a), cut_text(a.sharding), _quick_reason(plan, a)) for a in arrays]
    rows = fold_names([a.path for a in arrays], keys)
    blocks = [[f"{path!r} names {len(arrays)} arrays, {len(rows)} different:"]]
    for n, row in enumerate(rows[:_DECISIONS]):
        first = arrays[row.members[0]]
        blocks.append(_one(plan, first, exact=n < _EXACT, label=row.label))
    if len(rows) > _DECISIONS:
        rest = ", ".join(r.label for r in rows[_DECISIONS : 2 * _DECISIONS])
        more = len(rows) - 2 * _DECISIONS
        blocks.append([f"... and {rest}" + (f", and {more} more" if more > 0 else "") + "; name one to hear about it"])
    return "\n\n".join("\n".join(b) for b in blocks)


def find(plan: Plan, path: str) -> list[Array]:
    """The arguments that a path, its end, its beginning or a glob names; results where no argument does."""
    for known in (plan.inputs, plan.outputs):
        for test in (_is_exactly, _ends_with, _begins_with, _matches):
            found = [a for a in known if test(a.path, path)]
            if found:
                return found
    ends = {a.path.partition("/")[2] for a in plan.inputs}
    new = [a.path for a in plan.outputs if a.path.partition("/")[2] not in ends]
    raise UnknownPathError.of(path, [*(a.path for a in plan.inputs), *new], "explain")


def _is_exactly(path: str, asked: str) -> bool:
    return path == asked


def _ends_with(path: str, asked: str) -> bool:
    return path.endswith("/" + asked)


def _begins_with(path: str, asked: str) -> bool:
    return path.startswith(asked.rstrip("/") + "/")


def _matches(path: str, asked: str) -> bool:
    return fnmatch.fnmatchcase(path, asked) or fnmatch.fnmatchcase(path, "*/" + asked)


def _quick_reason(plan: Plan, array: Array) -> str:
    choice = _choice(plan, array)
    if choice is None:
        return ""
    return f"{choice.reason} {choice.runner_up} {choice.extra_s:.3g}"


def _choice(plan: Plan, array: Array) -> Choice | None:
    return next((c for c in plan.choices if array.path in c.arrays), None)


def _one(plan: Plan, array: Array, exact: bool, label: str = "") -> list[str]:
    """One array's block; `label` stands for several like it, of which `array` is the first."""
    choice = _choice(plan, array)
    name = label or array.path
    lines = [f"{name}  {type_text(array)}"]
    if label and label != array.path:
        lines.append(_row("such as", array.path))
    lines += [_row("cut", _cut(plan, array)), _row("per device", _bytes(plan, array))]
    if choice is None:
        ways = plan.propagation.ways.get(array.path, ()) if plan.propagation is not None else ()
        why = reason_text("propagated", 0) if ways else _without_choice(plan, array)
        return [*lines, _row("why", why), *(_row("", way) for way in ways)]
    lines += _reason(plan, array, choice, exact)
    together = [p for p in choice.arrays if p != array.path]
    if together:
        lines.append(_row("cut alike", ", ".join(folded_labels(together))))
    return [*lines, *_caused(plan, choice)]


def _row(title: str, text: str) -> str:
    return f"  {title:<11}{text}"


def _cut(plan: Plan, array: Array) -> str:
    sharding, sizes = array.sharding, plan.mesh.sizes
    if sharding is None or not sharding.axes:
        return "whole: every device holds all of it"
    parts = []
    for dim, (n, axes) in enumerate(zip(array.shape, sharding.dims, strict=True)):
        if axes:
            over = " and ".join(f"{a}={sizes[a]}" for a in axes)
            blocks = plan.mesh.size(axes)
            parts.append(f"dimension {dim} ({n:,}) over {over} into {blocks:,} blocks of {-(-n // blocks):,}")
    return f"{sharding}: " + ", ".join(parts)


def _bytes(plan: Plan, array: Array) -> str:
    sizes = plan.mesh.sizes
    mine = device_bytes(array, sizes)
    copies = plan.mesh.num_devices // (1 if array.sharding is None else array.sharding.cut(sizes))
    whole = mine if array.sharding is None else mine * array.sharding.cut(sizes)
    held = f", on {copies:,} devices each" if copies > 1 else ""
    return f"{bytes_text(mine)} of {bytes_text(whole)}{held}"


def _without_choice(plan: Plan, array: Array) -> str:
    if not array.shape:
        return "a single number is on every device"
    tail = array.path.partition("/")[2]
    came = next((a for a in plan.inputs if tail and a.path.partition("/")[2] == tail and a.shape == array.shape), None)
    if came is not None and came is not array:
        return f"the next step's {came.path}: it leaves the step cut as that came"
    return "no decision is recorded for it: it follows from what it is computed from"


@dataclass(frozen=True, slots=True)
class _Answer:
    kind: str
    runner_up: Sharding | None
    extra_s: float
    exact: bool


def _reason(plan: Plan, array: Array, choice: Choice, exact: bool) -> list[str]:
    searched = exact and plan.mode == "search"
    answer = (searched and _priced_anew(plan, array, choice)) or _Answer(
        choice.reason, choice.runner_up, choice.extra_s, False
    )
    lines = [_row("why", reason_text(answer.kind, plan.memory.limit_bytes))]
    if plan.propagation is not None:
        lines += [_row("", way) for way in plan.propagation.ways.get(array.path, ())]
    if answer.kind == "pinned":
        for pattern, spec in plan.pins.items():
            if any(_ends_with(p, pattern) or _matches(p, pattern) or p == pattern for p in choice.arrays):
                lines.append(_row("", f"pin {pattern} = {spec}"))
    if answer.runner_up is not None:
        lines.append(
            _row("runner-up", runner_up_text(answer.runner_up, answer.extra_s, plan.objective_s, answer.exact))
        )
    return lines


def _priced_anew(plan: Plan, array: Array, choice: Choice) -> _Answer | None:
    """The runner-up with everything else free to change; None for a plan that has not its search at hand."""
    if plan.live is None or plan.graph is None or array.path not in plan.graph.input_paths:
        return None
    value = plan.graph.inputs[plan.graph.input_paths.index(array.path)]
    why = exact_reason(plan.live.priced, plan.live.choice, value, choice.reason == "pinned")
    other = why.runner_up
    return _Answer(why.kind, other.sharding if other else None, other.extra_s if other else 0.0, why.exact)


def _caused(plan: Plan, choice: Choice) -> list[str]:
    """Collectives that move the decision's arrays, largest first."""
    inputs = kinds_of_arguments(plan)
    found = [c for c in plan.collectives if c.array in choice.arrays]
    if not found:
        return [_row("moves", "nothing: every use takes it as it is cut")] if choice.arrays[0] in inputs else []
    total = sum(c.total_bytes for c in found)
    lines = [_row("moves", f"{bytes_text(total)} per device and step:")]
    for c in found[:_COLLECTIVES]:
        lines.append(_row("", _collective(c)))
    if len(found) > _COLLECTIVES:
        rest = sum(c.total_bytes for c in found[_COLLECTIVES:])
        lines.append(_row("", f"... and {len(found) - _COLLECTIVES} more, {bytes_text(rest)}"))
    return lines


def _collective(c: Collective) -> str:
    where = f" at {short_source(c.source)}" if c.source else ""
    size = f"{c.count} x {bytes_text(c.size_bytes)}"
    return f"{kind_text(c.kind)} over {'*'.join(c.axes)}, {size}{where}: {c.why}"
