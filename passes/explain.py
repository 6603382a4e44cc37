"""Why a group is cut as it is: what else was possible, and what it would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from passes.ir import Sharding
from passes.likeness import place_of
from passes.price import Priced
from passes.question import whole_problem
from passes.solve import choice_cost, solve

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


def reason(priced: Priced, choice: Sequence[int], value: int, pinned: bool) -> Reason:
    """The reason for the sharding of `value`, other choices kept."""
    place = priced.program.grouping.place(value)
    if place is None or pinned:
        return Reason("pinned" if pinned else "only legal", None)
    mine, options = choice[priced.number[place.group]], priced.strategies[place.group]
    costs = conditional_costs(priced, choice, place.group)
    coded = priced.pricer.coded(options)
    _, form = coded.distinct([coded.of(c) for c in place.dims if c >= 0])
    costs_of_others = np.where(form == form[mine], np.inf, costs)
    best = int(np.argmin(costs_of_others))
    if not np.isfinite(costs_of_others[best]):
        return Reason("only legal", None)
    extra = float(costs[best] - costs[mine])
    runner_up = Alternative(Sharding(tuple(options[best].classes[c] if c >= 0 else () for c in place.dims)), extra)
    if extra < 0:
        return Reason("memory", runner_up)  # cheaper by itself: only the memory limit forbids it
    return Reason("cheapest" if extra > 1e-12 else "tied", runner_up)


def exact_reason(priced: Priced, choice: Sequence[int], value: int, pinned: bool, time_limit_s: float = 10.0) -> Reason:
    """As `reason`, but everything else decides anew under the restriction that `value` is cut otherwise."""
    place = priced.program.grouping.place(value)
    quick = reason(priced, choice, value, pinned)
    if place is None or quick.runner_up is None:
        return quick
    node = priced.number[place.group]
    forms = forms_of(priced, value)
    problem = whole_problem(priced)
    costs = problem.node_costs[node].astype(float).copy()
    costs[[i for i, f in enumerate(forms) if f == forms[choice[node]]]] = np.inf
    changed = replace(problem, node_costs=(*problem.node_costs[:node], costs, *problem.node_costs[node + 1 :]))
    solution = solve(changed, time_limit_s=time_limit_s)
    if solution.choice is None:
        return Reason("memory" if problem.memory_limit is not None else "only legal", None, True)
    now = choice_cost(problem, choice)
    extra = solution.cost - now
    runner_up = Alternative(Sharding(forms[solution.choice[node]]), float(extra))
    free = solve(replace(problem, memory_limit=None), time_limit_s=time_limit_s)
    if free.choice is not None and forms[free.choice[node]] != forms[choice[node]] and free.cost < now * (1 - 1e-9):
        return Reason("memory", runner_up, True)
    return Reason("cheapest" if extra > 1e-12 else "tied", runner_up, True)


def forms_of(priced: Priced, value: int) -> list[Form]:
    """The sharding of a value under each strategy of its group."""
    place = priced.program.grouping.place(value)
    assert place is not None
    return [tuple(s.classes[c] if c >= 0 else () for c in place.dims) for s in priced.strategies[place.group]]


def conditional_costs(priced: Priced, choice: Sequence[int], group: int) -> np.ndarray:
    """Cost of every strategy of one group, all others as chosen."""
    costs = priced.node_s(group).astype(float)
    for w in priced.wants_of.get(group, ()):
        matrix, row_of, col_of = priced.pair(w)
        source = place_of(priced.program, w).group
        if source == group:
            costs = costs + matrix[row_of, col_of[choice[priced.number[w.consumer]]]]
        else:
            costs = costs + matrix[row_of[choice[priced.number[source]]], col_of]
    return costs
