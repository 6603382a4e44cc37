"""Every choice tried by hand is the oracle."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from passes.solve import Problem, evaluate, solve
from tests.passes.solve.problems import brute_force, contested_problem, random_problem, scattered_problem


def check(problem: Problem, seed: int) -> None:
    best, over = brute_force(problem)
    found = solve(problem, time_limit_s=120)
    if best == math.inf:
        assert found.status == "infeasible", seed
        assert found.choice is None
        assert found.over_bytes == (0 if over == math.inf else over), seed
        return
    assert found.status == "optimal", seed
    assert found.choice is not None
    assert evaluate(problem, found.choice).feasible
    assert found.cost == evaluate(problem, found.choice).cost
    assert found.cost == pytest.approx(best, rel=1e-9, abs=1e-18), seed
    assert found.bound <= best * (1 + 1e-12) + 1e-18
    if problem.integral:
        assert found.cost == found.bound == best, seed


@pytest.mark.parametrize("block", range(20))
def test_agrees_with_brute_force(block: int) -> None:
    for seed in range(block * 150, block * 150 + 150):
        check(random_problem(seed), seed)


@pytest.mark.parametrize("block", range(5))
def test_agrees_with_brute_force_where_memory_binds(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        check(contested_problem(seed), seed)


@pytest.mark.parametrize("block", range(4))
def test_agrees_with_brute_force_where_the_problem_falls_apart(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        check(scattered_problem(seed), seed)


def test_the_problems_are_of_every_kind() -> None:
    kinds = {"infeasible by memory": 0, "impossible": 0, "tight": 0, "loose": 0}
    for problem in (*map(random_problem, range(600)), *map(contested_problem, range(100))):
        best, over = brute_force(problem)
        free = brute_force(replace(problem, memory_limit=None))[0]
        if over == math.inf:
            kinds["impossible"] += 1
        elif best == math.inf:
            kinds["infeasible by memory"] += 1
        else:
            kinds["tight" if best > free else "loose"] += 1
    assert min(kinds.values()) > 25, kinds


def test_the_oracle_agrees_with_the_evaluation() -> None:
    for seed in range(40):
        problem = random_problem(seed)
        best = over = math.inf
        for choice in itertools.product(*(range(c.size) for c in problem.node_costs)):
            found = evaluate(problem, choice)
            if found.cost < math.inf:
                over = min(over, found.over_bytes)
                best = min(best, found.cost) if found.feasible else best
        assert brute_force(problem) == (pytest.approx(best, rel=1e-12), over)


def test_a_bound_is_below_the_optimum_whenever_time_runs_out() -> None:
    stopped = 0
    for seed in range(60):
        problem = contested_problem(seed)
        best, _ = brute_force(problem)
        for limit in (0.0, 0.002):
            found = solve(problem, time_limit_s=limit)
            assert found.bound <= best, seed
            if found.choice is not None:
                assert found.cost >= best * (1 - 1e-12)
                assert evaluate(problem, found.choice).feasible
            stopped += found.status in {"unknown", "feasible"}
    assert stopped > 10
