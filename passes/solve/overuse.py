"""The least peak of memory over all choices of finite cost: by how much an infeasible problem misses its limit.

Bisection between a peak that every choice reaches and the smallest peak of a choice found. A limit is refuted by
presolve or by HiGHS on what presolve leaves; most often the first limit tried, the sum of every node's least at the
fullest time, can be met and presolve alone shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .core import Core, Infeasible
from .dual import ascend, first_price, new_dual
from .exact import milp_entries, solve_milp
from .flat import flatten
from .presolve import presolve
from .problem import IMPOSSIBLE, Problem, evaluate
from .search import new_walker, walk

# The largest program that HiGHS is given here, in variables; beyond it a limit is only tried by search.
_MILP_ENTRIES = 300_000
# Fractions of bytes: the least peak is found to this share.
_SHARE = 1e-9
_TURNS = 60
_MOVES = 400


@dataclass(frozen=True, slots=True)
class LeastPeak:
    """`choice` [nodes] has the smallest `peak` found, None if no choice has finite cost; no choice stays below `bound`.

    The two are equal (up to `1e-9` for usages that are not whole bytes) when there was time to prove it.
    """

    choice: tuple[int, ...] | None
    peak: float
    bound: float


def least_peak(problem: Problem, deadline: float, seed: int = 0) -> LeastPeak:
    """Minimise the peak, costs ignored apart from impossible entries; at `deadline` (monotonic) what there is."""
    free = replace(
        problem,
        node_costs=tuple(np.where(c >= IMPOSSIBLE, np.inf, 0.0) for c in problem.node_costs),
        edges=tuple(replace(e, matrix=m) for e, m in zip(problem.edges, _bare(problem), strict=True)),
    )
    try:
        reduced = presolve(free, check_room=False)
    except Infeasible:
        return LeastPeak(None, math.inf, math.inf)
    limit = 0.0 if problem.memory_limit is None else problem.memory_limit
    low = max(0.0, limit - float(reduced.core.room.min(initial=limit)))
    choice = tuple(int(s) for s in reduced.restore(_lean(reduced.core, seed, deadline)))
    found = evaluate(free, choice)
    if found.cost == math.inf:
        return LeastPeak(None, math.inf, low)
    whole = all((m.usage % 1 == 0).all() for m in problem.memory)
    high, target, first = found.peak_bytes, low, True
    while high > low and (whole or high - low > _SHARE * high):
        if not first and time.monotonic() > deadline:
            break
        first = False
        better, refuted = _meet(replace(free, memory_limit=target), deadline, seed)
        if better is not None and (peak := evaluate(free, better).peak_bytes) < high:
            choice, high = better, peak
        if high > target:
            if not refuted:
                break  # neither met nor refuted: a smaller step would not be decided either
            low = target + 1 if whole else target
        target = _between(low, high, whole)
    return LeastPeak(choice, high, min(low, high))


def _between(low: float, high: float, whole: bool) -> float:
    middle = low + (high - low) / 2
    return float(math.floor(middle)) if whole else middle


def _bare(problem: Problem) -> Sequence[np.ndarray]:
    """Every edge's matrix with nothing but impossible entries; shared ones stay shared."""
    bare: dict[int, np.ndarray] = {}
    for e in problem.edges:
        if id(e.matrix) not in bare:
            bare[id(e.matrix)] = np.where(e.matrix >= IMPOSSIBLE, np.inf, 0.0)
    return [bare[id(e.matrix)] for e in problem.edges]


def _meet(problem: Problem, deadline: float, seed: int) -> tuple[tuple[int, ...] | None, bool]:
    """(a choice that aims at the limit, None if there is none at all; whether it is certain that none meets it)."""
    try:
        reduced = presolve(problem)
    except Infeasible:
        return None, True
    core = reduced.core
    picked, refuted = _lean(core, seed, deadline), False
    if (core.usage(picked) > core.room).any() and milp_entries(core) <= _MILP_ENTRIES:
        left = max(0.5, deadline - time.monotonic())
        result = solve_milp(core, left, seed % 2**31, relax_memory=True)
        if result.choice is not None:
            picked = result.choice
        refuted = result.infeasible or (result.optimal and bool((core.usage(picked) > core.room).any()))
    return tuple(int(s) for s in reduced.restore(picked)), refuted


def _lean(core: Core, seed: int, deadline: float) -> np.ndarray:
    """A choice [nodes] of little over-use: dual prices, then a short search."""
    if not core.costs:
        return np.zeros(0, dtype=np.int64)
    f = flatten(core)
    dual = new_dual(f)
    ascend(f, dual, _TURNS)
    if dual.over == 0:
        return dual.choice
    walker = new_walker(f, dual.choice, dual.price, first_price(f), seed)
    walk(f, [walker], _MOVES, min(deadline, time.monotonic() + 1.0))
    return walker.choice
