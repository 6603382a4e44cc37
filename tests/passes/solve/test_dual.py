"""A bound is never above the optimum, nor a forced bound above the optimum with that strategy forced."""

from __future__ import annotations

import itertools
import math

import numpy as np

from passes.solve.branch import Tree, forbid_overfull
from passes.solve.core import Core, Infeasible
from passes.solve.dual import ascend, forced_costs, new_dual
from passes.solve.flat import flatten
from passes.solve.messages import cost_of, usage_of
from passes.solve.presolve import presolve
from passes.solve.search import new_walker, walk
from tests.passes.solve.problems import contested_problem


def cores() -> list[tuple[int, Core]]:
    result = []
    for seed in range(30):
        try:
            core = presolve(contested_problem(seed)).core
        except Infeasible:
            continue
        if core.costs:
            result.append((seed, core))
    return result


def optima(core: Core) -> tuple[float, list[np.ndarray]]:
    """The optimum in scaled cost, and [strategies] per node the optimum with that strategy forced."""
    f = flatten(core)
    best = math.inf
    forced = [np.full(c.size, np.inf) for c in core.costs]
    for choice in itertools.product(*(range(c.size) for c in core.costs)):
        picked = np.array(choice)
        if (core.usage(picked) <= core.room).all():
            cost = cost_of(f, picked)
            best = min(best, cost)
            for u, s in enumerate(choice):
                forced[u][s] = min(forced[u][s], cost)
    return best, forced


def test_bounds_stay_below_the_optimum() -> None:
    found = cores()
    assert len(found) > 15
    for seed, core in found:
        f = flatten(core)
        best, forced = optima(core)
        dual = new_dual(f)
        ascend(f, dual, 100)
        assert dual.bound <= best, seed
        bound, bounds = forced_costs(f, dual)
        assert bound <= best, seed
        assert (bounds <= np.concatenate(forced)).all(), seed


def test_forbidding_overfull_strategies_keeps_every_feasible_choice() -> None:
    for seed, core in cores():
        f = flatten(core)
        cost = f.cost.copy()
        gone = forbid_overfull(f, cost)
        forced = np.concatenate(optima(core)[1])
        if gone < 0:
            assert (forced == np.inf).all(), seed
        else:
            assert (forced[np.isinf(cost)] == np.inf).all(), seed


def test_branch_and_bound_ends_at_the_optimum() -> None:
    for seed, core in cores():
        f = flatten(core)
        best = [math.inf]

        def found(choice: np.ndarray, f: object = f, best: list[float] = best) -> None:
            best[0] = min(best[0], cost_of(f, choice))

        dual = new_dual(f)
        tree = Tree.at(f, dual)
        assert tree.advance(lambda best=best: best[0] - 1, found, math.inf, 10_000)
        assert best[0] == optima(core)[0], seed


def test_walkers_keep_their_books() -> None:
    moved = 0
    for seed, core in cores()[:60]:
        f = flatten(core)
        walker = new_walker(f, np.zeros(len(core.costs), dtype=np.int64), np.zeros(f.room.size), 1.0, seed)
        if cost_of(f, walker.choice) == math.inf:
            continue
        before = walker.key
        walk(f, [walker], 50, math.inf)
        usage = np.zeros(f.room.size)
        usage_of(f, walker.choice, usage)
        assert walker.key <= before
        assert walker.status[0] == cost_of(f, walker.choice), seed
        assert (walker.usage == usage).all(), seed
        assert walker.status[1] == np.maximum(usage - f.room, 0).sum(), seed
        moved += walker.key < before
    assert moved > 5
