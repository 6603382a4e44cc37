"""What `solve` promises: edges of the input, deadlines, interruption, callbacks, repetition."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from passes.solve import Edge, Incumbent, MemoryItem, Problem, ProblemError, evaluate, solve


def crowded(nodes: int, seed: int, tightness: float) -> Problem:
    """A ring with chords, five strategies a node, cheaper ones larger, everything alive at once in thirds."""
    rng = np.random.default_rng(seed)
    costs, memory = [], []
    for u in range(nodes):
        size = rng.integers(10, 1000)
        degree = np.array([1, 2, 4, 8, 16])
        costs.append(rng.integers(0, 50, 5) + 10 * degree)
        memory.append(MemoryItem(u, u % 3, u % 3 + 2, -(-size // degree)))
    pairs = [(u, (u + 1) % nodes) for u in range(nodes)] + [(u, (u + 7) % nodes) for u in range(0, nodes, 3)]
    edges = tuple(Edge(u, v, rng.integers(0, 60, (5, 5))) for u, v in pairs)
    least = evaluate(Problem(tuple(costs), (), tuple(memory), 1), [4] * nodes).peak_bytes
    return Problem(tuple(costs), edges, tuple(memory), int(least * tightness))


def test_empty_problems() -> None:
    assert solve(Problem(())).choice == ()
    found = solve(Problem((), (), (), 5))
    assert (found.cost, found.bound, found.status) == (0, 0, "optimal")
    assert solve(Problem((np.zeros(0),))).status == "infeasible"


def test_an_interval_of_length_zero_is_never_live() -> None:
    memory = (MemoryItem(0, 3, 3, np.array([100, 100])),)
    found = solve(Problem((np.array([1, 2]),), (), memory, 10))
    assert (found.choice, found.status) == ((0,), "optimal")


def test_huge_and_infinite_costs_are_impossible() -> None:
    found = solve(Problem((np.array([2**62, 7, 10**18]), np.array([1, 2**62]))))
    assert (found.choice, found.cost) == ((1, 0), 8)
    assert solve(Problem((np.array([2**62]),))).status == "infeasible"
    assert solve(Problem((np.array([np.inf, 3.5]),))).choice == (1,)


def test_costs_too_large_for_exact_sums_are_solved_to_the_tolerance_of_floats() -> None:
    big = 10**17
    found = solve(Problem((np.array([2 * big + 1, big]), np.array([big, 3 * big + 1]))))
    assert (found.choice, found.cost, found.status) == ((1, 0), 2 * big, "optimal")
    assert 0 < found.gap <= 1e-9


def test_negative_costs_are_fine() -> None:
    edge = Edge(0, 1, np.array([[-5, 0], [0, -9]]))
    found = solve(Problem((np.array([-1, 2]), np.array([0, 0])), (edge,)))
    assert (found.choice, found.cost, found.status) == ((1, 1), -7, "optimal")


def test_huge_usages_do_not_overflow() -> None:
    usage = np.array([2**62, 2**61])
    problem = Problem((np.array([1, 2]),) * 4, (), tuple(MemoryItem(u, 0, 1, usage) for u in range(4)), 2**63)
    found = solve(problem)
    assert found.choice == (1, 1, 1, 1)
    assert evaluate(problem, (0, 0, 0, 0)).over_bytes == 2**64 - 2**63


def test_infeasible_says_by_how_much() -> None:
    memory = (MemoryItem(0, 0, 4, np.array([70, 50])), MemoryItem(1, 2, 6, np.array([40, 45])))
    problem = Problem((np.array([1, 2]), np.array([1, 2])), (), memory, 80)
    found = solve(problem)
    assert (found.status, found.choice, found.over_bytes, found.least_over) == ("infeasible", None, 10, (1, 0))
    assert found.bound == math.inf


def test_trees_and_rings_with_memory_are_proved() -> None:
    for tightness in (1.05, 1.5, 4.0):
        found = solve(crowded(60, 1, tightness), time_limit_s=120)
        assert found.choice is not None
        assert found.status == "optimal"
        assert found.bound == found.cost
        assert evaluate(crowded(60, 1, tightness), found.choice).feasible


def test_a_deadline_returns_the_best_so_far() -> None:
    problem = crowded(3000, 2, 1.2)
    solve(crowded(30, 2, 1.2))  # compiled beforehand
    begin = time.monotonic()
    found = solve(problem, time_limit_s=4.0)
    assert time.monotonic() - begin < 20.0
    if found.choice is not None:
        assert evaluate(problem, found.choice).feasible
        assert found.bound <= found.cost
    else:
        assert found.status == "unknown"
    assert solve(problem, time_limit_s=0.0).status in {"unknown", "feasible"}


def test_interruption_returns_the_best_so_far() -> None:
    def interrupt(news: Incumbent) -> None:
        if news.cost is not None and news.stage != "interrupted":
            raise KeyboardInterrupt

    problem = crowded(300, 3, 1.3)
    found = solve(problem, time_limit_s=120, callback=interrupt)
    assert found.choice is not None
    assert evaluate(problem, found.choice).feasible
    assert found.trace[-1].stage == "interrupted"


def test_ctrl_c_returns_the_best_so_far() -> None:
    problem = crowded(2000, 3, 1.2)
    solve(crowded(30, 2, 1.2), workers=2)  # compiled beforehand
    # Test runners of several processes have their workers ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    try:
        found = solve(problem, time_limit_s=120, workers=2)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 60
    assert found.trace[-1].stage == "interrupted"
    assert found.status == ("unknown" if found.choice is None else "feasible")
    if found.choice is not None:
        assert evaluate(problem, found.choice).feasible
        assert found.bound <= found.cost


def test_the_callback_sees_costs_fall_and_bounds_rise() -> None:
    seen: list[Incumbent] = []
    found = solve(crowded(120, 4, 1.1), time_limit_s=120, callback=seen.append)
    assert tuple(seen) == found.trace
    costs = [s.cost for s in seen if s.cost is not None]
    assert costs == sorted(costs, reverse=True)
    bounds = [s.bound for s in seen]
    assert bounds == sorted(bounds)
    assert found.cost == costs[-1]


def test_same_seed_same_answer_and_a_warm_start_is_never_lost() -> None:
    problem = crowded(80, 5, 1.2)
    one, two = (solve(problem, time_limit_s=120, seed=7, workers=2) for _ in range(2))
    assert one.status == two.status == "optimal"
    assert one.choice == two.choice
    again = solve(problem, time_limit_s=0.0, warm_start=one.choice)
    assert again.choice == one.choice


@pytest.mark.parametrize("workers", [1, 2])
def test_without_proof_the_same_seed_makes_the_same_steps(workers: int) -> None:
    problem = crowded(300, 6, 1.15)

    def steps(seed: int) -> list[float]:
        """The costs of the first better choices, whenever they came."""
        costs: list[float] = []

        def note(news: Incumbent) -> None:
            if news.cost is not None and news.stage != "interrupted" and [news.cost] != costs[-1:]:
                costs.append(news.cost)
                if len(costs) == 3:
                    raise KeyboardInterrupt

        solve(problem, time_limit_s=120, seed=seed, workers=workers, callback=note)
        return costs

    one = steps(1)
    assert one == steps(1)
    assert len(one) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Problem((np.zeros((2, 2)),)),
        lambda: Problem((np.array([np.nan]),)),
        lambda: Problem((np.array([-np.inf]),)),
        lambda: Problem((np.zeros(2), np.zeros(2)), (Edge(0, 1, np.zeros((2, 3))),)),
        lambda: Problem((np.zeros(2), np.zeros(2)), (Edge(0, 1, np.zeros((1, 2)), np.array([0, 1])),)),
        lambda: Problem((np.zeros(2),), (Edge(0, 1, np.zeros((2, 2))),)),
        lambda: Problem((np.zeros(2),), (), (MemoryItem(0, 0, 1, np.zeros(3)),), 1),
        lambda: evaluate(Problem((np.zeros(2),)), [2]),
        lambda: evaluate(Problem((np.zeros(2),)), []),
        lambda: solve(Problem((np.zeros(2),)), warm_start=[5]),
    ],
)
def test_contradictions_are_refused(make: object) -> None:
    with pytest.raises(ProblemError):
        make()


def frustrated(seed: int) -> Problem:
    """Ten nodes of four strategies, all joined: no message passing is tight on it. Memory at one time, no limit."""
    rng = np.random.default_rng(seed)
    costs = tuple(rng.integers(0, 20, 4) for _ in range(10))
    edges = tuple(Edge(u, v, rng.integers(0, 30, (4, 4))) for u in range(10) for v in range(u))
    return Problem(costs, edges, tuple(MemoryItem(u, 0, 1, rng.integers(0, 9, 4)) for u in range(10)))


def test_memory_that_seems_not_to_matter_is_left_out_first() -> None:
    tried = 0
    for seed in range(3):
        problem = frustrated(seed)
        free = solve(problem)
        assert free.choice is not None
        peak = evaluate(problem, free.choice).peak_bytes
        roomy, tight = (solve(replace(problem, memory_limit=peak + more)) for more in (5, -1))
        assert (roomy.status, roomy.cost) == ("optimal", free.cost)
        assert tight.status == "optimal" and tight.cost >= free.cost
        assert tight.choice is not None and evaluate(problem, tight.choice).peak_bytes < peak
        tried += any(step.stage == "without memory" for step in roomy.trace)
    assert tried
