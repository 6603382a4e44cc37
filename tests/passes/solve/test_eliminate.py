"""Regions without memory are eliminated exactly, and the record leads back to a choice of that cost."""

from __future__ import annotations

import numpy as np
import pytest

from passes.solve import Edge, MemoryItem, Problem, evaluate
from passes.solve.core import Infeasible
from passes.solve.effort import EFFORTS
from passes.solve.eliminate import eliminate_regions
from passes.solve.presolve import presolve
from passes.solve.workspace import Workspace
from tests.passes.solve.problems import brute_force


def grid(rows: int, cols: int, strategies: int, seed: int, impossible: float = 0.0) -> Problem:
    """A grid of that size without memory: its treewidth is the shorter side, its inner nodes have four neighbours."""
    rng = np.random.default_rng(seed)

    def table(shape: tuple[int, ...]) -> np.ndarray:
        values = rng.integers(0, 100, shape)
        values[rng.random(shape) < impossible] = 10**18
        return values

    edges = [(i * cols + j, i * cols + j + 1) for i in range(rows) for j in range(cols - 1)]
    edges += [(i * cols + j, i * cols + j + cols) for i in range(rows - 1) for j in range(cols)]
    costs = tuple(table((strategies,)) for _ in range(rows * cols))
    return Problem(costs, tuple(Edge(u, v, table((strategies, strategies))) for u, v in edges))


def test_a_component_without_memory_is_decided_by_presolve_alone() -> None:
    tables = 0
    for seed in range(20):
        problem = grid(4, 4, 2, seed, impossible=0.03 * (seed % 3))
        best, _ = brute_force(problem)
        try:
            reduced = presolve(problem)
        except Infeasible:
            assert best == np.inf, seed
            continue
        assert not reduced.core.costs
        choice = reduced.restore(np.zeros(0, dtype=np.int64))
        assert evaluate(problem, choice.tolist()).cost == reduced.core.constant == best, seed
        tables += any(step.kind == "among" for step in reduced.undo)
    assert tables > 5


def test_a_long_grid_is_as_wide_as_its_short_side() -> None:
    problem = grid(4, 30, 6, 1)
    reduced = presolve(problem)
    assert not reduced.core.costs
    assert max(step.table.size for step in reduced.undo if step.kind == "among") <= 6**5
    assert evaluate(problem, reduced.restore(np.zeros(0, dtype=np.int64)).tolist()).cost == reduced.core.constant


def test_tables_above_the_limit_are_left_alone() -> None:
    rng = np.random.default_rng(2)
    pairs = [(u, v) for u in range(12) for v in range(u)]
    dense = Problem(
        tuple(rng.integers(0, 100, 9) for _ in range(12)),
        tuple(Edge(u, v, rng.integers(0, 100, (9, 9))) for u, v in pairs),
    )
    assert len(presolve(dense).core.costs) == 12  # its tables would hold 9^12 entries


def region_between_two(seed: int) -> Problem:
    """A wheel of five free nodes between two nodes with memory, which classes of strategies see alike."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, 4)
    edges = [Edge(u, (u + 1) % 5, rng.integers(0, 50, (3, 3))) for u in range(5)]
    edges += [Edge(u, (u + 2) % 5, rng.integers(0, 50, (3, 3))) for u in range(5)]
    for u in range(5):
        edges.append(Edge(5, u, rng.integers(0, 50, (2, 3)), classes, None))
        edges.append(Edge(6, u, rng.integers(0, 50, (4, 3))))
    memory = tuple(MemoryItem(u, 0, 1, np.array([8, 5, 3, 1])) for u in (5, 6))
    costs = (*(rng.integers(0, 50, 3) for _ in range(5)), np.array([0, 7, 9, 30]), np.array([0, 5, 20, 28]))
    return Problem(costs, tuple(edges), memory, 9)


def test_a_region_becomes_a_cost_between_the_two_nodes_that_border_it() -> None:
    for seed in range(30):
        problem = region_between_two(seed)
        work = Workspace.of(problem)
        assert eliminate_regions(work, range(7), 10_000, 8) == {5, 6}
        assert [u for u, alive in enumerate(work.alive) if alive] == [5, 6]
        core, nodes = work.freeze()
        reduced_cost = {}
        for one in range(4):
            for two in range(4):
                fixed = Problem(
                    (*problem.node_costs[:5], _only(problem.node_costs[5], one), _only(problem.node_costs[6], two)),
                    problem.edges,
                )
                reduced_cost[one, two] = brute_force(fixed)[0]
                assert core.cost(np.array([one, two])) == reduced_cost[one, two], seed
        assert nodes.tolist() == [5, 6]


def _only(costs: np.ndarray, strategy: int) -> np.ndarray:
    out = np.full(costs.size, 10**18)
    out[strategy] = costs[strategy]
    return out


def test_a_region_that_nothing_satisfies_is_infeasible() -> None:
    # Three colours for four nodes that must all differ: every pair is possible, the whole is not.
    differ = np.where(np.eye(3, dtype=bool), 10**18, 0)
    pairs = [(u, v) for u in range(4) for v in range(u)]
    with pytest.raises(Infeasible):
        presolve(Problem((np.zeros(3, dtype=np.int64),) * 4, tuple(Edge(u, v, differ) for u, v in pairs)))


def test_a_border_strategy_that_no_region_fits_goes() -> None:
    differ = np.where(np.eye(3, dtype=bool), 10**18, 0)
    edges = [Edge(u, v, differ) for u in range(3) for v in range(u)]
    # Node 3 may repeat no colour of the triangle, except with its last strategy.
    edges += [Edge(3, u, np.concatenate([differ, np.full((1, 3), u)])) for u in range(3)]
    memory = (MemoryItem(3, 0, 1, np.array([1, 2, 3, 4])), MemoryItem(4, 0, 1, np.array([4, 1])))
    problem = Problem(
        (*(np.zeros(3, dtype=np.int64),) * 3, np.zeros(4, dtype=np.int64), np.arange(2)), edges, memory, 5
    )
    reduced = presolve(problem)
    choice = reduced.restore(np.zeros(len(reduced.core.costs), dtype=np.int64))
    assert evaluate(problem, choice.tolist()).cost == brute_force(problem)[0] == 4


def test_small_problems_may_use_larger_tables() -> None:
    assert [e.region_entries for e in EFFORTS] == sorted((e.region_entries for e in EFFORTS), reverse=True)
