"""Parts: what shares no edge and no binding time is solved apart, and the whole is their sum."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from passes.solve import Edge, Incumbent, MemoryItem, Problem, evaluate, solve
from passes.solve.core import Infeasible
from passes.solve.parts import Joint, PartBest, split
from passes.solve.presolve import presolve
from tests.passes.solve.problems import scattered_problem
from tests.passes.solve.test_door import crowded


def islands(count: int, seed: int, apart: int, tightness: float = 1.2) -> Problem:
    """`count` crowded rings of 30 nodes, each `apart` time steps after the one before."""
    costs: list[np.ndarray] = []
    edges: list[Edge] = []
    memory: list[MemoryItem] = []
    limit = 0.0
    for k in range(count):
        ring = crowded(30, seed + k, tightness)
        first = len(costs)
        costs += ring.node_costs
        edges += [Edge(e.u + first, e.v + first, e.matrix) for e in ring.edges]
        memory += [MemoryItem(m.node + first, m.start + apart * k, m.end + apart * k, m.usage) for m in ring.memory]
        assert ring.memory_limit is not None
        limit = max(limit, ring.memory_limit)
    return Problem(tuple(costs), tuple(edges), tuple(memory), limit)


def test_what_is_apart_in_time_splits_and_what_shares_a_binding_time_does_not() -> None:
    apart = presolve(islands(3, 1, apart=10)).core
    assert [p.nodes.size for p in split(apart)] == [len(p.core.costs) for p in split(apart)]
    assert len(split(apart)) == 3
    assert sum(len(p.core.edges) for p in split(apart)) == len(apart.edges)
    assert sum(len(p.core.items) for p in split(apart)) == len(apart.items)
    together = islands(3, 1, apart=1)
    assert together.memory_limit is not None
    together = replace(together, memory_limit=3 * together.memory_limit)
    assert len(split(presolve(together).core)) == 1


def test_times_that_cannot_bind_do_not_join() -> None:
    first, second = crowded(30, 1, 1.2), crowded(30, 2, 1.2)
    assert first.memory_limit is not None
    both = (
        *first.memory,
        *(MemoryItem(m.node + 30, m.start + 20, m.end + 20, m.usage) for m in second.memory),
        # Both are alive for a while in between, with room for all they can take.
        MemoryItem(0, 10, 12, np.array([5, 4, 3, 2, 1])),
        MemoryItem(30, 10, 12, np.array([5, 4, 3, 2, 1])),
    )
    edges = (*first.edges, *(Edge(e.u + 30, e.v + 30, e.matrix) for e in second.edges))
    costs = (*first.node_costs, *second.node_costs)
    assert len(split(presolve(Problem(costs, edges, both, first.memory_limit)).core)) == 2
    large = np.floor(first.memory_limit * np.array([0.7, 0.6, 0.55, 0.52, 0.3]))
    joined = (*both[:-2], *(MemoryItem(u, 10, 12, large) for u in (0, 30)))
    assert len(split(presolve(Problem(costs, edges, joined, first.memory_limit)).core)) == 1


def test_a_part_costs_and_uses_what_its_share_of_the_whole_does() -> None:
    tried = 0
    for seed in range(200):
        try:
            core = presolve(scattered_problem(seed)).core
        except Infeasible:
            continue
        parts = split(core)
        if len(parts) < 2:
            continue
        rng = np.random.default_rng(seed)
        choice = np.array([rng.integers(c.size) for c in core.costs])
        own = [choice[p.nodes] for p in parts]
        cost = core.constant + sum(p.core.cost(c) for p, c in zip(parts, own, strict=True))
        assert cost == core.cost(choice), seed
        fits = all((p.core.usage(c) <= p.core.room).all() for p, c in zip(parts, own, strict=True))
        assert fits == (core.usage(choice) <= core.room).all(), seed
        assert sorted(np.concatenate([p.nodes for p in parts]).tolist()) == list(range(len(core.costs)))
        tried += 1
    assert tried > 10


def test_islands_are_proved_and_the_bound_is_the_sum() -> None:
    problem = islands(4, 3, apart=10)
    found = solve(problem, time_limit_s=120)
    assert found.status == "optimal"
    assert found.choice is not None
    assert found.bound == found.cost == evaluate(problem, found.choice).cost
    alone = [solve(crowded_island(problem, k), time_limit_s=120) for k in range(4)]
    assert [a.status for a in alone] == ["optimal"] * 4
    assert found.cost == sum(a.cost for a in alone)
    assert found.bound == sum(a.bound for a in alone)


def crowded_island(problem: Problem, k: int) -> Problem:
    """The k-th island as a problem of its own."""
    first = 30 * k
    return Problem(
        problem.node_costs[first : first + 30],
        tuple(Edge(e.u - first, e.v - first, e.matrix) for e in problem.edges if first <= e.u < first + 30),
        tuple(
            MemoryItem(m.node - first, m.start, m.end, m.usage) for m in problem.memory if first <= m.node < first + 30
        ),
        problem.memory_limit,
    )


def test_an_infeasible_part_makes_the_whole_infeasible() -> None:
    problem = islands(2, 5, apart=10)
    squeezed = Problem(problem.node_costs, problem.edges, problem.memory, problem.memory_limit * 0.6)
    found = solve(squeezed, time_limit_s=60)
    assert found.status == "infeasible"
    assert found.over_bytes == found.over_bound_bytes > 0


def test_interrupted_between_parts_there_is_a_choice_of_the_whole() -> None:
    def interrupt(news: Incumbent) -> None:
        if news.cost is not None and news.stage != "interrupted":
            raise KeyboardInterrupt

    problem = islands(3, 7, apart=10, tightness=2.0)
    found = solve(problem, time_limit_s=60, callback=interrupt)
    assert found.choice is not None
    assert evaluate(problem, found.choice).feasible
    assert found.bound <= found.cost


def test_caps_leave_only_what_makes_the_whole_better() -> None:
    core = presolve(islands(2, 9, apart=10)).core
    joint = Joint(core, split(core), lambda choice, stage: None, lambda bound, stage: None)
    assert joint.cost == math.inf
    for best, bound in zip(joint.bests, (100.0, 200.0), strict=True):
        best.raise_bound(bound, "")
    assert joint.cap(0, core.constant + 1000.0) == 800.0
    assert joint.cap(1, core.constant + 1000.0) == 900.0
    assert joint.cap(0, math.inf) == math.inf
    capped = PartBest(joint.parts[0].core, lambda stage: None, cost=-1.0)
    assert not capped.offer(np.zeros(len(capped.core.costs), dtype=np.int64), "")
    assert capped.choice is None


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_give_the_same_answer_again(workers: int) -> None:
    problem = islands(3, 11, apart=10)
    one, two = (solve(problem, time_limit_s=120, seed=3, workers=workers) for _ in range(2))
    assert one.choice == two.choice
