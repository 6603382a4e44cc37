"""The door: presolve, bound, exact and search behind one function, always with an honest bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .core import Infeasible
from .exact import solve_milp
from .presolve import Presolved, presolve
from .problem import MemoryItem, Problem, evaluate

# A proof in floating point is good to this share of the costs; integer problems are proved to the unit.
FLOAT_GAP = 1e-9


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A better choice or a better bound: when, what it costs (None before the first), the bound, who found it."""

    elapsed_s: float
    cost: float | None
    bound: float
    stage: str


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """`status` is "optimal", "feasible", "infeasible" or "unknown" (time ran out before either was certain).

    `choice` [nodes] is None without a feasible choice. `bound` is below every feasible cost; `gap` is what the choice may
    cost too much, as a share of its cost (0 when optimal, infinite without a choice). When memory makes the problem
    infeasible, `over_bytes` says by how much the least peak exceeds the limit and `least_over` reaches it.
    """

    choice: tuple[int, ...] | None
    cost: float
    bound: float
    gap: float
    status: str
    trace: tuple[Incumbent, ...]
    over_bytes: float = 0
    least_over: tuple[int, ...] | None = None


def solve(
    problem: Problem,
    time_limit_s: float = 60.0,
    seed: int = 0,
    workers: int = 1,
    callback: Callable[[Incumbent], None] | None = None,
    warm_start: Sequence[int] | None = None,
) -> Solution:
    """Choose a strategy per node at least cost within the memory limit."""
    start = time.monotonic()
    trace: list[Incumbent] = []

    def report(cost: float | None, bound: float, stage: str) -> None:
        trace.append(Incumbent(time.monotonic() - start, cost, bound, stage))
        if callback is not None:
            callback(trace[-1])

    try:
        reduced = presolve(problem)
    except Infeasible:
        return _infeasible(problem, start + time_limit_s, seed, trace)
    warm = None if warm_start is None else reduced.project(warm_start)
    remaining = start + time_limit_s - time.monotonic()
    if not reduced.core.costs:
        return _finish(problem, reduced, np.zeros(0, dtype=np.int64), reduced.core.constant, True, report, trace)
    result = solve_milp(reduced.core, remaining, seed, warm)
    if result.infeasible:
        return _infeasible(problem, start + time_limit_s, seed, trace)
    bound = result.bound + reduced.core.constant
    return _finish(problem, reduced, result.choice, bound, result.optimal, report, trace)


def _finish(
    problem: Problem,
    reduced: Presolved,
    choice: np.ndarray | None,
    bound: float,
    optimal: bool,
    report: Callable[[float | None, float, str], None],
    trace: list[Incumbent],
) -> Solution:
    if choice is None:
        report(None, bound, "exact")
        return Solution(None, math.inf, bound, math.inf, "unknown", tuple(trace))
    full = tuple(int(s) for s in reduced.restore(choice))
    found = evaluate(problem, full)
    if not found.feasible:
        return Solution(None, math.inf, bound, math.inf, "unknown", tuple(trace))
    slack = FLOAT_GAP * abs(found.cost) if not reduced.core.integral else 0.5
    if optimal and bound >= found.cost - slack:
        bound = found.cost
    bound = min(bound, found.cost)
    gap = 0.0 if bound == found.cost else (found.cost - bound) / max(abs(found.cost), 1e-300)
    report(found.cost, bound, "exact")
    return Solution(full, found.cost, bound, gap, "optimal" if gap == 0 else "feasible", tuple(trace))


def _infeasible(problem: Problem, deadline: float, seed: int, trace: list[Incumbent]) -> Solution:
    """Say by how much: the least peak over all choices of finite cost."""
    over: float = 0
    least = None
    free = Problem(
        tuple(np.where(c >= 1e18, np.inf, 0.0) for c in problem.node_costs),
        problem.edges,
        tuple(MemoryItem(m.node, m.start, m.end, m.usage) for m in problem.memory),
        problem.memory_limit,
    )
    try:
        reduced = presolve(free, check_room=False)
    except Infeasible:
        return Solution(None, math.inf, math.inf, math.inf, "infeasible", tuple(trace))
    result = solve_milp(reduced.core, max(1.0, deadline - time.monotonic()), seed, relax_memory=True)
    if result.choice is not None:
        least = tuple(int(s) for s in reduced.restore(result.choice))
        over = evaluate(problem, least).over_bytes
    return Solution(None, math.inf, math.inf, math.inf, "infeasible", tuple(trace), over, least)
