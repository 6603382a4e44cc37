"""Why a group is cut as it is: what else was possible, and what it would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from passes.ir import Sharding
from passes.price import Priced
from passes.solve import solve

Form = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to cut a value, and what the whole step would cost more (seconds of the linear price)."""

    sharding: Sharding
    extra_s: float


@dataclass(frozen=True, slots=True)
class Reason:
    """kind: "pinned" | "only legal" | "cheapest" | "tied" | "memory". `runner_up` is None when there is no other way.

    `exact` says whether the runner-up's price lets everything else decide anew, or keeps all other choices.
    """

    kind: str
    runner_up: Alternative | None
    exact: bool = False


def reason(priced: Priced, choice: Sequence[int], value: int, pinned: bool, adjacent: dict[int, list[int]]) -> Reason:
    """The reason for the sharding of `value`, other choices kept; `adjacent` comes from `adjacency`."""
    place = priced.program.grouping.place(value)
    if place is None or pinned:
        return Reason("pinned" if pinned else "only legal", None)
    node = priced.order.index(place.group)
    forms = forms_of(priced, value)
    costs = conditional_costs(priced, choice, node, adjacent)
    mine = forms[choice[node]]
    others = [i for i, f in enumerate(forms) if f != mine and np.isfinite(costs[i])]
    if not others:
        return Reason("only legal", None)
    best = min(others, key=lambda i: (costs[i], i))
    extra = float(costs[best] - costs[choice[node]])
    runner_up = Alternative(Sharding(forms[best]), extra)
    if extra < 0:
        return Reason("memory", runner_up)  # cheaper by itself: only the memory limit forbids it
    return Reason("cheapest" if extra > 1e-12 else "tied", runner_up)


def exact_reason(priced: Priced, choice: Sequence[int], value: int, pinned: bool, time_limit_s: float = 10.0) -> Reason:
    """As `reason`, but everything else decides anew under the restriction that `value` is cut otherwise."""
    place = priced.program.grouping.place(value)
    quick = reason(priced, choice, value, pinned, adjacency(priced))
    if place is None or quick.runner_up is None:
        return quick
    node = priced.order.index(place.group)
    forms = forms_of(priced, value)
    costs = priced.problem.node_costs[node].astype(float).copy()
    costs[[i for i, f in enumerate(forms) if f == forms[choice[node]]]] = np.inf
    changed = replace(
        priced.problem, node_costs=(*priced.problem.node_costs[:node], costs, *priced.problem.node_costs[node + 1 :])
    )
    solution = solve(changed, time_limit_s=time_limit_s)
    if solution.choice is None:
        return Reason("memory" if priced.problem.memory_limit is not None else "only legal", None, True)
    extra = solution.cost - total_cost(priced, choice)
    runner_up = Alternative(Sharding(forms[solution.choice[node]]), float(extra))
    free = solve(replace(priced.problem, memory_limit=None), time_limit_s=time_limit_s)
    if (
        free.choice is not None
        and forms[free.choice[node]] != forms[choice[node]]
        and free.cost < total_cost(priced, choice) * (1 - 1e-9)
    ):
        return Reason("memory", runner_up, True)
    return Reason("cheapest" if extra > 1e-12 else "tied", runner_up, True)


def forms_of(priced: Priced, value: int) -> list[Form]:
    """The sharding of a value under each strategy of its group."""
    place = priced.program.grouping.place(value)
    assert place is not None
    return [tuple(s.classes[c] if c >= 0 else () for c in place.dims) for s in priced.strategies[place.group]]


def adjacency(priced: Priced) -> dict[int, list[int]]:
    """Edges (by index) of every node."""
    out: dict[int, list[int]] = {}
    for i, e in enumerate(priced.problem.edges):
        out.setdefault(e.u, []).append(i)
        out.setdefault(e.v, []).append(i)
    return out


def conditional_costs(priced: Priced, choice: Sequence[int], node: int, adjacent: dict[int, list[int]]) -> np.ndarray:
    """Cost of every strategy of one node, all others as chosen."""
    costs = priced.problem.node_costs[node].astype(float).copy()
    for i in adjacent.get(node, ()):
        e = priced.problem.edges[i]
        row_of = e.row_of if e.row_of is not None else np.arange(e.matrix.shape[0])
        col_of = e.col_of if e.col_of is not None else np.arange(e.matrix.shape[1])
        costs += e.matrix[row_of, col_of[choice[e.v]]] if e.u == node else e.matrix[row_of[choice[e.u]], col_of]
    return costs


def total_cost(priced: Priced, choice: Sequence[int]) -> float:
    cost = sum(float(c[s]) for c, s in zip(priced.problem.node_costs, choice, strict=True))
    for e in priced.problem.edges:
        r = choice[e.u] if e.row_of is None else int(e.row_of[choice[e.u]])
        c = choice[e.v] if e.col_of is None else int(e.col_of[choice[e.v]])
        cost += float(e.matrix[r, c])
    return cost
