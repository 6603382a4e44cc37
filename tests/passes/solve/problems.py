"""Random problems small enough to try every choice, and the trying."""

from __future__ import annotations

import itertools
import math

import numpy as np

from passes.solve import Edge, MemoryItem, Problem, evaluate


def random_problem(seed: int) -> Problem:
    """Up to 6 nodes of up to 4 strategies: ties, impossible entries, factored and parallel edges, loose or tight
    memory.
    """
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(1, 7))
    sizes = rng.integers(1, 5, nodes)
    floats = seed % 3 == 0
    top = int(rng.choice([2, 10, 10**6]))

    def costs(shape: tuple[int, ...]) -> np.ndarray:
        values = rng.integers(0, top + 1, shape)
        if floats:
            out = values * 1e-7
            out[rng.random(shape) < 0.15] = np.inf
            return out
        values[rng.random(shape) < 0.15] = 10**18
        return values

    edges = []
    for _ in range(int(rng.integers(0, 2 * nodes))):
        if nodes < 2:
            break
        u, v = (int(x) for x in rng.choice(nodes, 2, replace=False))
        kind = rng.integers(3)
        if kind == 0:
            edges.append(Edge(u, v, costs((sizes[u], sizes[v]))))
        elif kind == 1:
            r, c = (int(x) for x in rng.integers(1, 4, 2))
            edges.append(Edge(u, v, costs((r, c)), rng.integers(0, r, sizes[u]), rng.integers(0, c, sizes[v])))
        else:
            tie = np.full((sizes[u], sizes[v]), np.inf if floats else 10**18)
            for i in range(min(sizes[u], sizes[v])):
                tie[i, i] = 3e-7 if floats else 3
            edges.append(Edge(u, v, tie))
    memory = []
    for _ in range(int(rng.integers(0, 2 * nodes + 1))):
        node = int(rng.integers(nodes))
        a, b = sorted(int(x) for x in rng.integers(0, 8, 2))
        memory.append(MemoryItem(node, a, b, rng.integers(0, 10, sizes[node])))
    limit = None if seed % 5 == 0 else int(rng.integers(0, 30))
    return Problem(tuple(costs((s,)) for s in sizes), tuple(edges), tuple(memory), limit)


def contested_problem(seed: int) -> Problem:
    """Seven nodes of two or three strategies that presolve leaves alone: dense, cheaper is larger, and memory binds."""
    rng = np.random.default_rng(10_000 + seed)
    sizes = rng.integers(2, 4, 7)
    unit = 1e-6 if seed % 3 == 0 else 1
    costs, memory = [], []
    for node, size in enumerate(sizes):
        usage = rng.integers(1, 60, size)
        costs.append((rng.integers(0, 20, size) + 60 - usage) * unit)
        start = int(rng.integers(0, 3))
        memory.append(MemoryItem(node, start, start + int(rng.integers(1, 4)), usage))
        if rng.random() < 0.3:
            memory.append(MemoryItem(node, 0, 5, rng.integers(0, 9, size)))
    edges = []
    for u in range(7):
        for v in range(u + 1, 7):
            if rng.random() < 0.5:
                matrix = rng.integers(0, int(rng.choice([3, 30])), (sizes[u], sizes[v])) * unit
                if rng.random() < 0.2:
                    matrix[rng.integers(sizes[u]), rng.integers(sizes[v])] = 10**18
                edges.append(Edge(u, v, matrix))
    free = Problem(tuple(costs), (), tuple(memory), 0)
    peaks = sorted(evaluate(free, choice).peak_bytes for choice in itertools.product(*(range(int(s)) for s in sizes)))
    limit = peaks[int(rng.choice([0.0, 0.01, 0.1, 0.4]) * (len(peaks) - 1))] - int(rng.random() < 0.1)
    return Problem(tuple(costs), tuple(edges), tuple(memory), limit)


def brute_force(problem: Problem) -> tuple[float, float]:
    """The least feasible cost, and the least over-use of choices of finite cost: all choices at once, in float64."""
    shape = tuple(c.size for c in problem.node_costs)
    if not math.prod(shape):
        return math.inf, math.inf
    choices = np.indices(shape).reshape(len(shape), -1)
    cost = np.zeros(choices.shape[1])
    for values, picked in zip(problem.node_costs, choices, strict=True):
        cost += _finite_or_inf(values)[picked]
    for e in problem.edges:
        rows = choices[e.u] if e.row_of is None else e.row_of[choices[e.u]]
        cols = choices[e.v] if e.col_of is None else e.col_of[choices[e.v]]
        cost += _finite_or_inf(e.matrix)[rows, cols]
    over = np.zeros(choices.shape[1])
    if problem.memory_limit is not None:
        for time in {m.start for m in problem.memory}:
            live = np.zeros(choices.shape[1])
            for m in problem.memory:
                if m.start <= time < m.end:
                    live += m.usage[choices[m.node]]
            over = np.maximum(over, live - problem.memory_limit)
    possible = np.isfinite(cost)
    return (
        float(cost[possible & (over == 0)].min(initial=math.inf)),
        float(over[possible].min(initial=math.inf)),
    )


def _finite_or_inf(costs: np.ndarray) -> np.ndarray:
    return np.where(costs >= 10**18, np.inf, costs)


def scattered_problem(seed: int) -> Problem:
    """Two to four groups of two or three nodes that no edge joins; memory that may or may not join them in time."""
    rng = np.random.default_rng(20_000 + seed)
    costs: list[np.ndarray] = []
    edges, memory = [], []
    for group in range(int(rng.integers(2, 5))):
        first = len(costs)
        for _ in range(int(rng.integers(2, 4))):
            size = int(rng.integers(2, 4))
            usage = rng.integers(1, 30, size)
            memory.append(MemoryItem(len(costs), 2 * group, 2 * group + 2 + int(rng.random() < 0.3), usage))
            costs.append(rng.integers(0, 10, size) + 30 - usage)
        for u in range(first, len(costs)):
            for v in range(u + 1, len(costs)):
                edges.append(Edge(u, v, rng.integers(0, 20, (costs[u].size, costs[v].size))))
    return Problem(tuple(costs), tuple(edges), tuple(memory), int(rng.integers(20, 70)))
