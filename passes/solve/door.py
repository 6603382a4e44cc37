"""The door: presolve, bound, exact and search behind one function, always with an honest bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .core import Infeasible
from .dual import ascend, new_dual
from .engine import Best, run
from .exact import milp_entries, solve_milp
from .flat import flatten
from .presolve import presolve
from .problem import IMPOSSIBLE, Problem, evaluate

# Where HiGHS is asked for the least over-use of an infeasible problem: entries of the program, and seconds.
_MILP_ENTRIES = 300_000
_OVER_USE_S = 10.0


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

    `choice` [nodes] is None without a feasible choice. `bound` is below every feasible cost; `gap` is what the choice
    may cost too much, as a share of its cost (0 when optimal, infinite without a choice). When memory makes the problem
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
    """Choose a strategy per node at least cost within the memory limit; the best so far at the deadline or Ctrl-C.

    `workers` walkers search side by side. `callback` sees every better choice or clearly better bound as it comes;
    `warm_start` [nodes] is a choice to begin from. The same problem, seed and workers give the same answer whenever the
    problem is proved within the time; otherwise the deadline decides how far the same sequence of steps gets. Raises
    `ProblemError` for a warm start of wrong length or range.
    """
    start = time.monotonic()
    deadline = start + time_limit_s
    trace: list[Incumbent] = []

    def report(cost: float | None, bound: float, stage: str) -> None:
        trace.append(Incumbent(time.monotonic() - start, cost, bound, stage))
        if callback is not None:
            callback(trace[-1])

    best = Best(problem, report)
    proved = False
    try:
        if warm_start is not None:
            best.offer(np.asarray(warm_start, dtype=np.int64), "warm start")
        begin = time.monotonic()
        reduced = presolve(problem)
        spent = time.monotonic() - begin
        proved = run(problem, reduced, best, deadline, seed, workers, warm_start, spent)
    except Infeasible:
        return _infeasible(problem, deadline, seed, trace)
    except KeyboardInterrupt:
        report(None if best.choice is None else best.cost, best.bound, "interrupted")
    if best.choice is None:
        return Solution(None, math.inf, best.bound, math.inf, "unknown", tuple(trace))
    gap = 0.0 if best.bound >= best.cost else (best.cost - best.bound) / max(abs(best.cost), 1e-300)
    status = "optimal" if proved or gap == 0 else "feasible"
    return Solution(best.choice, best.cost, min(best.bound, best.cost), gap, status, tuple(trace))


def _infeasible(problem: Problem, deadline: float, seed: int, trace: list[Incumbent]) -> Solution:
    """Say by how much: the least peak over all choices of finite cost."""
    free = Problem(
        tuple(np.where(c >= IMPOSSIBLE, np.inf, 0.0) for c in problem.node_costs),
        problem.edges,
        problem.memory,
        problem.memory_limit,
    )
    over: float = 0
    least = None
    try:
        reduced = presolve(free, check_room=False)
        choice = None
        if milp_entries(reduced.core) <= _MILP_ENTRIES:
            left = min(_OVER_USE_S, max(0.5, deadline - time.monotonic()))
            choice = solve_milp(reduced.core, left, seed % 2**31, relax_memory=True).choice
        if choice is None:
            flat = flatten(reduced.core)
            dual = new_dual(flat)
            ascend(flat, dual, 100)
            choice = dual.choice
        least = tuple(int(s) for s in reduced.restore(choice))
        found = evaluate(problem, least)
        if found.cost == math.inf:
            least = None
        over = found.over_bytes if least is not None else 0
    except Infeasible:
        pass  # impossible entries alone leave nothing: no memory would help
    return Solution(None, math.inf, math.inf, math.inf, "infeasible", tuple(trace), over, least)
