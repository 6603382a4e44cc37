"""What a plan says in its reader's terms: kinds of arguments, what each mesh axis does, like things in one row.

Everything here comes from the plan's data fields, so that a plan read from a file tells the same as a fresh one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallelizer.inspect.words import cut_text, fold_names, percent, short_source
from parallelizer.plans import Array, Choice, Collective, Plan

KINDS = ("parameters", "optimizer state", "other state", "batch")
# Names that optimisers give to what they keep per parameter (optax, flax, and people).
_OPTIMIZER = frozenset({"opt_state", "optimizer", "opt", "mu", "nu", "momentum", "velocity", "trace", "ema"})
_BITS = re.compile(r"(\d+)")
_NOTICED = 0.05  # share of the parameters below which an axis is not said to cut them


# ---- communication ----
@dataclass(frozen=True, slots=True)
class Traffic:
    """Like collectives of one line of code together: `count` times `size_bytes` per step; `array` in words."""

    collective: Collective
    array: str
    count: int

    @property
    def total_bytes(self) -> int:
        return self.collective.size_bytes * self.count


def traffic(plan: Plan) -> tuple[Traffic, ...]:
    """The collectives, those of identical layers and of one line of code together, the largest total first."""
    listed = plan.collectives
    names = array_names(plan)
    keys = [(c.kind, c.axes, c.size_bytes, c.source, c.why) for c in listed]
    rows = [
        Traffic(listed[r.members[0]], r.label, sum(listed[i].count for i in r.members))
        for r in fold_names([names[c.array, c.source] for c in listed], keys)
    ]
    return tuple(sorted(rows, key=lambda t: -t.total_bytes))


def array_names(plan: Plan) -> dict[tuple[str, str], str]:
    """(array, source) of every collective -> what to call it: an argument without its root, or an operation's result.

    Values that are cut with an argument carry its name; where that is the optimizer's, the parameter's says more.
    """
    kinds = kinds_of_arguments(plan)
    roots = {root(a.path) for a in plan.inputs if kinds[a.path] != "batch"}
    out = {}
    for c in plan.collectives:
        name = c.array
        if name in kinds:
            together = [p for p in same_decision(plan, name) if kinds.get(p) == "parameters"]
            if kinds[name] != "parameters" and len(together) == 1:
                name = together[0]
            out[c.array, c.source] = name.partition("/")[2] if len(roots) == 1 and root(name) in roots else name
        else:
            what, _, where = name.partition(" at ")
            line = short_source(c.source).partition(" (")[0]
            out[c.array, c.source] = (what if where in (line, "") else name) or "carried by a loop"
    return out


def same_decision(plan: Plan, path: str) -> tuple[str, ...]:
    """The arguments that are cut together with `path`, itself included."""
    return next((c.arrays for c in plan.choices if path in c.arrays), (path,))


# ---- arguments ----
def carried_roots(plan: Plan) -> frozenset[str]:
    """Arguments that come back in the result with the same leaves, or are donated: training state."""
    outputs = {a.path: (a.shape, a.dtype) for a in plan.outputs}
    prefixes = {""} | {f"{p.split('/')[0]}/" for p in outputs}
    leaves: dict[str, list[Array]] = {}
    for a in plan.inputs:
        leaves.setdefault(root(a.path), []).append(a)
    out = {root(plan.inputs[i].path) for i in plan.donated}
    for name, arrays in leaves.items():
        inside = [(a.path[len(name) + 1 :], (a.shape, a.dtype)) for a in arrays]
        if all(path for path, _ in inside) and any(
            all(outputs.get(prefix + path) == what for path, what in inside) for prefix in prefixes
        ):
            out.add(name)
    return frozenset(out)


def root(path: str) -> str:
    return path.split("/")[0]


def kinds_of_arguments(plan: Plan) -> dict[str, str]:
    """Path -> "parameters", "optimizer state", "other state" (counters) or "batch"."""
    state = carried_roots(plan)
    out = {}
    for a in plan.inputs:
        parts = a.path.split("/")
        if parts[0] not in state:
            out[a.path] = "batch"
        elif not a.shape and "params" not in parts:
            out[a.path] = "other state"
        else:
            out[a.path] = "optimizer state" if any(p in _OPTIMIZER for p in parts) else "parameters"
    return out


def itemsize(dtype: str) -> int:
    """Bytes of an element by numpy's name of its type ("bfloat16" is 2, "bool" 1, a key counts its words)."""
    if dtype.startswith("key"):
        return 8
    bits = _BITS.search(dtype)
    return 1 if bits is None else max(1, int(bits[1]) // 8)


def device_bytes(array: Array, sizes: Mapping[str, int]) -> int:
    """Bytes of one device's block."""
    shape = array.shape if array.sharding is None else array.sharding.local_shape(array.shape, sizes)
    return math.prod(shape) * itemsize(array.dtype)


@dataclass(frozen=True, slots=True)
class ArgumentRow:
    """Like arguments in one line. `label` is without the `section` that heads them; `state` says how the optimizer's
    arrays of these parameters are cut: "same", another cut, or "" without any. The bytes are of all `paths` on one
    device, the optimizer's included; `choices` are the decisions behind them, the closest first."""

    section: str
    label: str
    array: Array
    kind: str
    paths: tuple[str, ...]
    state: str
    device_bytes: int
    choices: tuple[Choice, ...]


def argument_rows(plan: Plan) -> tuple[ArgumentRow, ...]:
    """The arguments, parameters first with their optimizer state beside them, identical layers in one row."""
    kinds = kinds_of_arguments(plan)
    kept = _optimizer_arrays(plan, kinds)
    theirs = {a.path for arrays in kept.values() for a in arrays}
    choices = {p: c for c in plan.choices for p in c.arrays}
    rows = []
    for kind in KINDS:
        arrays = [a for a in plan.inputs if kinds[a.path] == kind and a.path not in theirs]
        states = [_state_text(a, kept.get(a.path, ())) for a in arrays]
        keys = [(a.shape, a.dtype, cut_text(a.sharding), s) for a, s in zip(arrays, states, strict=True)]
        section = common_start([a.path for a in arrays])
        for r in fold_names([a.path for a in arrays], keys):
            members = [arrays[i] for i in r.members]
            every = [a for m in members for a in (m, *kept.get(m.path, ()))]
            decided = {id(choices[m.path]): choices[m.path] for m in members if m.path in choices}
            rows.append(
                ArgumentRow(
                    section,
                    r.label[len(section) :],
                    members[0],
                    kind,
                    tuple(m.path for m in members),
                    states[r.members[0]],
                    sum(device_bytes(a, plan.mesh.sizes) for a in every),
                    tuple(sorted(decided.values(), key=lambda c: c.extra_s)),
                )
            )
    return tuple(rows)


def common_start(paths: Sequence[str]) -> str:
    """The leading components that all paths share ("state/params/"), never a whole path."""
    parts = [p.split("/")[:-1] for p in paths]
    n = 0
    while parts and all(len(p) > n and p[n] == parts[0][n] for p in parts):
        n += 1
    return "".join(f"{p}/" for p in parts[0][:n]) if parts else ""


def _optimizer_arrays(plan: Plan, kinds: Mapping[str, str]) -> dict[str, tuple[Array, ...]]:
    """Parameter -> the optimizer's arrays of its shape whose paths end like its own."""
    parameters = [a for a in plan.inputs if kinds[a.path] == "parameters"]
    by_end: dict[tuple[str, tuple[int, ...]], list[Array]] = {}
    for p in parameters:
        by_end.setdefault((p.path.split("/")[-1], p.shape), []).append(p)
    out: dict[str, tuple[Array, ...]] = {}
    for a in plan.inputs:
        same = by_end.get((a.path.split("/")[-1], a.shape), []) if kinds[a.path] == "optimizer state" else []
        if same and a.shape:
            best = max(same, key=lambda p: _common_end(p.path, a.path))
            out[best.path] = (*out.get(best.path, ()), a)
    return out


def _common_end(a: str, b: str) -> int:
    n = 0
    for x, y in zip(reversed(a.split("/")), reversed(b.split("/")), strict=False):
        if x != y:
            break
        n += 1
    return n


def _state_text(array: Array, kept: Sequence[Array]) -> str:
    if not kept:
        return ""
    cuts = list(dict.fromkeys(cut_text(a.sharding) for a in kept))
    return "same" if cuts == [cut_text(array.sharding)] else " and ".join(cuts)


# ---- what axes are for ----
def roles(plan: Plan) -> dict[str, str]:
    """Mesh axis -> what it is used for, in the field's words, judged by what it cuts and what is gathered back.

    "data": the batch's leading dimension; "fsdp": parameters that are gathered before use; "tensor": parameters used
    as they are cut; "sequence": a later dimension of the batch, or of activations of the batch's shape.
    """
    kinds = kinds_of_arguments(plan)
    gathered = {
        (path, axis)
        for c in plan.collectives
        if c.kind == "all_gather" and c.op != -1
        for path in same_decision(plan, c.array)
        for axis in c.axes
    }
    return {axis: _role(plan, kinds, axis, gathered) for axis in plan.mesh.axis_names}


def _role(plan: Plan, kinds: Mapping[str, str], axis: str, gathered: set[tuple[str, str]]) -> str:
    words = []
    batch = [a for a in plan.inputs if kinds[a.path] == "batch" and a.sharding is not None]
    if any(a.shape and axis in a.sharding.dims[0] for a in batch if a.sharding):
        words.append("data")
    if any(axis in d for a in batch if a.sharding for d in a.sharding.dims[1:]) or _cuts_sequence(plan, batch, axis):
        words.append("sequence")
    total, cut, back = 0, 0, 0
    for a in plan.inputs:
        if kinds[a.path] == "parameters":
            size = math.prod(a.shape) * itemsize(a.dtype)
            here = a.sharding is not None and axis in a.sharding.axes
            total, cut = total + size, cut + size * here
            back += size * (here and (a.path, axis) in gathered)
    for name, part in (("fsdp", back), ("tensor", cut - back)):
        if part > _NOTICED * total:
            words.append(name if part > (1 - _NOTICED) * total else f"{name} ({percent(part, total)} of parameters)")
    if not any(w.startswith("tensor") for w in words) and _gathers_activations(plan, kinds, axis):
        words.append("tensor in part")
    state = [a for a in plan.inputs if kinds[a.path] == "optimizer state"]
    kept = sum(math.prod(a.shape) for a in state)
    kept_cut = sum(math.prod(a.shape) for a in state if a.sharding is not None and axis in a.sharding.axes)
    if kept_cut > 0.5 * kept and cut < 0.5 * total:
        words.append("sharded optimizer state")
    return " + ".join(words) or _other_use(plan, axis)


def _gathers_activations(plan: Plan, kinds: Mapping[str, str], axis: str) -> bool:
    """Whether intermediate arrays are gathered over `axis`, as where parameters are used as they are cut."""
    inside = [c for c in plan.collectives if axis in c.axes and c.op != -1]
    gathered = sum(c.total_bytes for c in inside if c.kind == "all_gather" and c.array not in kinds)
    return gathered > _NOTICED * sum(c.total_bytes for c in inside)


def _cuts_sequence(plan: Plan, batch: Sequence[Array], axis: str) -> bool:
    """Whether activations shaped (examples, positions, features) are cut over `axis` along their positions."""
    starts = {(a.shape[0], n) for a in batch if len(a.shape) > 1 for n in (a.shape[1], a.shape[1] - 1)}
    return any(len(c.shape) == 3 and c.shape[:2] in starts and axis in c.sharding.dims[1] for c in plan.choices)


def _other_use(plan: Plan, axis: str) -> str:
    cut = any(axis in s.axes for s in plan.layout.values.values())
    return "activations" if cut else "nothing is cut over it"
