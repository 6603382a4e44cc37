"""Path relinking: what is better in another choice is taken over, memory included."""

from __future__ import annotations

import itertools

import numpy as np

from passes.solve import Edge, MemoryItem, Problem
from passes.solve.core import Infeasible
from passes.solve.flat import Flat, flatten
from passes.solve.messages import cost_of, usage_of
from passes.solve.presolve import presolve
from passes.solve.relink import relink
from passes.solve.search import learn, new_walker, walk
from passes.solve.workspace import Workspace
from tests.passes.solve.problems import contested_problem


def flat(problem: Problem) -> Flat:
    """The problem as it is, without presolve."""
    return flatten(Workspace.of(problem).freeze()[0])


def state(f: Flat, choice: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    picked, usage = np.array(choice), np.zeros(f.room.size)
    usage_of(f, picked, usage)
    over = float(np.maximum(usage - f.room, 0).sum())
    return picked, usage, np.array([cost_of(f, picked), over, 0.0, 0.0])


def test_the_better_half_of_each_is_joined() -> None:
    # Six separate pairs; either choice is right in three of them.
    agree = np.array([[0, 50], [50, 0]])
    costs = tuple(np.array([0, 10]) if u < 6 else np.array([10, 0]) for u in range(12))
    f = flat(Problem(costs, tuple(Edge(u, u + 1, agree) for u in range(0, 12, 2))))
    choice, usage, status = state(f, [1] * 12)
    assert relink(f, choice, usage, np.zeros(0), status, np.zeros(12, dtype=np.int64)) == 6
    assert choice.tolist() == [0] * 6 + [1] * 6
    assert status[0] == 0 == cost_of(f, choice)


def test_memory_is_repaired_on_the_way() -> None:
    # Node 0 saves cost but needs the room that node 1 gives up for a little: neither step alone is better and fits.
    costs = (np.array([100, 0]), np.array([0, 5]), np.array([0, 90]))
    memory = (
        MemoryItem(0, 0, 2, np.array([0, 6])),
        MemoryItem(1, 0, 2, np.array([6, 0])),
        MemoryItem(2, 1, 2, np.array([0, 9])),
    )
    f = flat(Problem(costs, (), memory, 7))
    choice, usage, status = state(f, [0, 0, 0])
    relink(f, choice, usage, np.full(f.room.size, 10.0), status, np.array([1, 1, 1]))
    assert choice.tolist() == [1, 1, 0]
    assert (status[0] / f.scale, status[1]) == (5, 0)


def test_books_are_kept_and_nothing_gets_worse() -> None:
    improved = 0
    for seed in range(60):
        try:
            core = presolve(contested_problem(seed)).core
        except Infeasible:
            continue
        if not core.costs:
            continue
        f = flatten(core)
        rng = np.random.default_rng(seed)
        for _ in range(5):
            one, two = ([int(rng.integers(c.size)) for c in core.costs] for _ in range(2))
            choice, usage, status = state(f, one)
            guide = np.array(two)
            if cost_of(f, choice) == np.inf or cost_of(f, guide) == np.inf:
                continue
            before = (status[1], status[0])
            relink(f, choice, usage, rng.random(f.room.size), status, guide)
            again = state(f, choice.tolist())
            assert (usage == again[1]).all(), seed
            assert (status == again[2]).all(), seed
            after = (status[1], status[0])
            assert after <= min(before, (state(f, two)[2][1], state(f, two)[2][0])), seed
            assert all(c in (a, b) for c, a, b in zip(choice, one, two, strict=True))
            improved += after < before
    assert improved > 50


def test_a_large_block_is_cut_into_pieces() -> None:
    # A path of 300 nodes that differ everywhere: one block, better taken over in its second half alone.
    stay = np.array([[0, 1], [1, 0]])
    costs = tuple(np.array([0, 10]) if u < 150 else np.array([10, 0]) for u in range(300))
    f = flat(Problem(costs, tuple(Edge(u, u + 1, stay) for u in range(299))))
    choice, usage, status = state(f, [0] * 300)
    assert relink(f, choice, usage, np.zeros(0), status, np.ones(300, dtype=np.int64)) > 5
    assert status[0] == cost_of(f, choice) < 300 * f.scale


def test_walkers_learn_from_each_other() -> None:
    rng = np.random.default_rng(0)
    costs = tuple(rng.integers(0, 100, 4) for _ in range(80))
    edges = tuple(Edge(u, (u + 1) % 80, rng.integers(0, 100, (4, 4))) for u in range(80))
    memory = tuple(MemoryItem(u, u // 8, u // 8 + 3, rng.integers(0, 50, 4)) for u in range(80))
    f = flat(Problem(costs, edges, memory, 500))
    walkers = [new_walker(f, np.zeros(80, dtype=np.int64), np.zeros(f.room.size), 1.0, seed) for seed in (1, 2)]
    for walker in walkers:
        walk(f, [walker], 20, np.inf)
    best, other = sorted(walkers, key=lambda w: w.key)
    before = best.key
    assert learn(f, best, other.choice) == (best.key < before)
    assert best.key <= before
    # When they meet, all go on from the same choice, at least as good as each.
    keys = [w.key for w in walkers]
    walk(f, walkers, 1, np.inf)
    assert all(w.key <= min(keys) for w in walkers)
    assert all((a.choice == b.choice).all() for a, b in itertools.pairwise(walkers))
