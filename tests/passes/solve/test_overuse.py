"""The least peak: as small as any choice's, and proved so."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from passes.solve import MemoryItem, Problem, evaluate, solve
from passes.solve.overuse import least_peak
from tests.passes.solve.problems import brute_force, contested_problem, random_problem
from tests.passes.solve.test_door import crowded


def test_agrees_with_brute_force() -> None:
    tried = 0
    for problem in (*map(random_problem, range(150)), *map(contested_problem, range(40))):
        least = brute_force(replace(problem, memory_limit=0))[1]
        found = least_peak(replace(problem, memory_limit=1), math.inf)
        if least == math.inf:
            assert found.choice is None
            continue
        assert found.choice is not None
        assert found.peak == found.bound == least
        assert evaluate(problem, found.choice).peak_bytes == least
        tried += 1
    assert tried > 100


def test_fractions_of_bytes_are_proved_to_their_tolerance() -> None:
    for seed in range(20):
        whole = contested_problem(seed)
        thirds = tuple(replace(m, usage=m.usage / 3) for m in whole.memory)
        least = brute_force(replace(whole, memory=thirds, memory_limit=0))[1]
        found = least_peak(replace(whole, memory=thirds, memory_limit=1), math.inf)
        assert abs(found.peak - least) <= 1e-8 * least
        assert found.bound <= least * (1 + 1e-12)


def test_a_deadline_leaves_an_honest_bound() -> None:
    problem = crowded(400, 1, 0.5)
    found = solve(problem, time_limit_s=0.5)
    assert found.status == "infeasible"
    assert found.least_over is not None
    assert evaluate(problem, found.least_over).over_bytes == found.over_bytes
    assert 0 < found.over_bound_bytes <= found.over_bytes
    begin = time.monotonic()
    late = least_peak(problem, begin)
    assert late.bound <= late.peak


def test_large_problems_are_measured_without_a_program() -> None:
    # Nothing but memory: the least is known, every node at its leanest.
    usage = np.array([100, 40, 10])
    problem = Problem(
        (np.arange(3),) * 3000, (), tuple(MemoryItem(u, u % 7, u % 7 + 9, usage) for u in range(3000)), 1000
    )
    found = solve(problem, time_limit_s=5)
    assert (found.status, found.over_bytes, found.over_bound_bytes) == ("infeasible", 29_000, 29_000)
