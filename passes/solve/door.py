"""The door: presolve, bound, exact and search behind one function, always with an honest bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .core import Infeasible
from .engine import Best, run
from .overuse import least_peak
from .presolve import presolve
from .problem import Problem, evaluate

# The least over-use of an infeasible problem is looked for so long.
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
    infeasible, `over_bytes` says by how much the least peak found exceeds the limit, `least_over` reaches it, and every
    choice exceeds the limit by at least `over_bound_bytes`: both are the same unless time ran out.
    """

    choice: tuple[int, ...] | None
    cost: float
    bound: float
    gap: float
    status: str
    trace: tuple[Incumbent, ...]
    over_bytes: float = 0
    least_over: tuple[int, ...] | None = None
    over_bound_bytes: float = 0


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
    `warm_start` [nodes] is a choice to begin from. `effort` says which methods run at which size.

    The same problem, seed and workers make the same steps in the same order, whatever the machine's speed: the answer
    is the same whenever the problem is proved within the time, and otherwise the deadline decides how far the steps
    get. Near the deadline alone the clock also shortens what would not end in time (an ascent takes at most half of
    what is left, HiGHS three tenths, a part its share by size). Raises `ProblemError` for a warm start of wrong length
    or range.
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
    over: float = 0
    bound: float = 0
    least = least_peak(problem, min(deadline, time.monotonic() + _OVER_USE_S), seed)
    if least.choice is not None and problem.memory_limit is not None:
        over = evaluate(problem, least.choice).over_bytes
        bound = min(over, max(0, least.bound - problem.memory_limit))
    return Solution(None, math.inf, math.inf, math.inf, "infeasible", tuple(trace), over, least.choice, bound)
