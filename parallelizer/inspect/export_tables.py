"""What the exported module says about arguments and results: tables by path, and how the result is put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from parallelizer.inspect.export_text import WIDTH, broken
from parallelizer.inspect.export_values import spec, value
from parallelizer.plans import Array, Plan
from parallelizer.tracer import Traced

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Row:
    """Leaves that are alike: `pattern` has `*` for a number in which their paths differ, `count` of them."""

    pattern: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    count: int


def folded(arrays: Sequence[Array]) -> list[Row]:
    """One row per leaf, identical layers (paths that differ in a number, all else equal) as one, in order."""
    groups: dict[str, list[Array]] = {}
    for a in arrays:
        groups.setdefault(_NUMBER.sub("*", a.path), []).append(a)
    rows: list[Row] = []
    for members in groups.values():
        alike = {(a.shape, a.dtype, spec(a.spec)) for a in members}
        if len(members) > 1 and len(alike) == 1:
            first = members[0]
            rows.append(
                Row(_pattern([a.path for a in members]), first.shape, first.dtype, spec(first.spec), len(members))
            )
        else:
            rows += [Row(a.path, a.shape, a.dtype, spec(a.spec), 1) for a in members]
    return rows


def _pattern(paths: Sequence[str]) -> str:
    """The common text of the paths, `*` for the numbers in which they differ."""
    numbers = [_NUMBER.findall(p) for p in paths]
    differ = [len({n[i] for n in numbers}) > 1 for i in range(len(numbers[0]))]
    parts = _NUMBER.split(paths[0])
    out = parts[0]
    for i, rest in enumerate(parts[1:]):
        out += ("*" if differ[i] else numbers[0][i]) + rest
    return out


def table(name: str, arrays: Sequence[Array]) -> list[str]:
    """The table as source."""
    lines = [f"{name} = ["]
    for r in folded(arrays):
        note = f"  # {r.count} of them" if r.count > 1 else ""
        row = f"({value(r.pattern)}, {r.shape}, {value(r.dtype)}, {r.spec})"
        rows = [row] if len(row) + len(note) < WIDTH - 5 else broken(row, WIDTH - 4)
        lines += [f"    {line}" for line in rows]
        lines[-1] += f",{note}"
    return [*lines, "]"]


def same_as(plan: Plan) -> dict[str, str]:
    """Results that are next step's arguments, and so cut alike: beginning of the result's path -> argument."""
    if plan.graph is None:
        return {}
    out: dict[str, str] = {}
    for o, i in plan.graph.carried.items():
        name, _, rest = plan.graph.input_paths[i].partition("/")
        path = plan.graph.output_paths[o]
        out[path[: len(path) - len(rest)].rstrip("/") if rest else path] = name
    return out


def results_table(plan: Plan, same: Mapping[str, str]) -> list[str]:
    """The results that are no arguments of the next step."""
    carried = plan.graph.carried if plan.graph is not None else {}
    lines = table("RESULTS", [a for i, a in enumerate(plan.outputs) if i not in carried])
    return [*lines, f"SAME_AS = {{{', '.join(f'{value(k)}: {value(v)}' for k, v in same.items())}}}"]


def argument_names(traced: Traced) -> list[str]:
    """The dynamic arguments in order, keywords last, as Python names."""
    args, kwargs = jax.tree.unflatten(traced.in_tree, range(traced.in_tree.num_leaves))
    call = traced.call
    positional = [n for i, n in enumerate(call.names) if i not in call.static_argnums][: len(args)]
    return [re.sub(r"\W", "_", n) for n in (*positional, *sorted(kwargs))]


def result_text(plan: Plan, traced: Traced) -> str | None:
    """An expression that puts the result together from `leaves` and the arguments' structures.

    Next step's arguments have the structure of this step's. None where the result has a node of a class of the user's
    that no argument has.
    """
    graph = plan.need_traced()[1]
    args, kwargs = jax.tree.unflatten(traced.in_tree, range(traced.in_tree.num_leaves))
    names = argument_names(traced)
    trees = [*args, *(kwargs[k] for k in sorted(kwargs))]
    whole = {}
    for name, tree in zip(names, trees, strict=True):
        leaves, structure = jax.tree.flatten(tree)
        if leaves:
            whole[tuple(leaves)] = (name, structure)
    result = jax.tree.unflatten(traced.out_tree, range(traced.out_tree.num_leaves))
    return _put_together(result, graph.carried, whole)


def _put_together(
    tree: Any, carried: Mapping[int, int], whole: Mapping[tuple[int, ...], tuple[str, Any]]
) -> str | None:
    leaves, structure = jax.tree.flatten(tree)
    argument = whole.get(tuple(carried.get(i, -1) for i in leaves))
    if leaves and argument is not None and argument[1] == structure:
        return f"like({argument[0]}, leaves[{leaves[0]}:{leaves[-1] + 1}])"
    if type(tree) is int:
        return f"leaves[{tree}]"
    if tree is None:
        return "None"
    if type(tree) not in (tuple, list, dict):
        return None
    children = list(tree.values()) if isinstance(tree, dict) else list(tree)
    texts = [_put_together(c, carried, whole) for c in children]
    if any(t is None for t in texts):
        return None
    parts = [t for t in texts if t is not None]
    if isinstance(tree, dict):
        if not all(isinstance(k, str | int) for k in tree):
            return None
        return "{" + ", ".join(f"{value(k)}: {t}" for k, t in zip(tree, parts, strict=True)) + "}"
    if isinstance(tree, list):
        return f"[{', '.join(parts)}]"
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
