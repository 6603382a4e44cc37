"""Every choice tried by hand is the oracle."""

from __future__ import annotations

import math

import pytest

from passes.solve import Problem, evaluate, solve
from tests.passes.solve.problems import brute_force, contested_problem, random_problem


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
    for seed in range(block * 100, block * 100 + 100):
        check(random_problem(seed), seed)


@pytest.mark.parametrize("block", range(5))
def test_agrees_with_brute_force_where_memory_binds(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        check(contested_problem(seed), seed)
