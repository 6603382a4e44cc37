"""A strategy goes exactly where another is nowhere worse; told the slow way, partner by partner."""

from __future__ import annotations

import itertools

import numpy as np

from passes.solve import Edge, MemoryItem, Problem
from passes.solve.dominance import drop_beaten
from passes.solve.workspace import Workspace


def star(seed: int) -> Problem:
    """A node of six strategies with three neighbours, some entries impossible, two memory intervals."""
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(3):
        table = rng.integers(0, 4, (6, 3)).astype(np.float64)
        table[rng.random((6, 3)) < 0.15] = np.inf
        tables.append(table)
    costs = (rng.integers(0, 6, 6), *(np.zeros(3, dtype=np.int64),) * 3)
    memory = tuple(MemoryItem(0, t, t + 1, rng.integers(0, 3, 6)) for t in range(2))
    return Problem(costs, tuple(Edge(0, k + 1, t) for k, t in enumerate(tables)), memory, 2)


def beats(problem: Problem, j: int, i: int) -> bool:
    """Whether strategy j of node 0 is at least as good as i whatever the neighbours do."""
    if any(m.usage[j] > m.usage[i] for m in problem.memory):
        return False
    for partners in itertools.product(range(3), repeat=3):
        one, two = (
            problem.node_costs[0][s] + sum(e.matrix[s, p] for e, p in zip(problem.edges, partners, strict=True))
            for s in (i, j)
        )
        if two > one:
            return False
    return True


def test_what_goes_is_beaten_and_what_stays_is_not() -> None:
    dropped = 0
    for seed in range(150):
        problem = star(seed)
        work = Workspace.of(problem)
        if any(not np.isfinite(e.matrix).any(axis=1).all() for e in problem.edges):
            continue  # arc consistency comes first in presolve
        drop_beaten(work, [0])
        if not work.undo:
            kept, into = list(range(6)), list(range(6))
        else:
            (step,) = work.undo
            assert step.forward is not None
            kept = step.table.tolist()
            into = [kept[k] for k in step.forward.tolist()]
        for i, j in enumerate(into):
            assert i == j if i in kept else beats(problem, j, i), seed
        # Nothing that stays is beaten by another one that stays, unless each needs a different reason on some edge.
        for i, j in itertools.permutations(kept, 2):
            assert not _beats_on_every_edge(problem, j, i), seed
        dropped += 6 - len(kept)
    assert dropped > 50


def _beats_on_every_edge(problem: Problem, j: int, i: int) -> bool:
    """The sum over edges of the most that j costs more there is not positive: a stricter test than `beats`."""
    if any(m.usage[j] > m.usage[i] for m in problem.memory):
        return False
    worst = float(problem.node_costs[0][j] - problem.node_costs[0][i])
    for e in problem.edges:
        steps = [y - x if x < np.inf or y < np.inf else -np.inf for x, y in zip(e.matrix[i], e.matrix[j], strict=True)]
        worst += max(steps)
    return worst <= 0
