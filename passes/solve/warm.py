"""Compiling the hot loops before a deadline runs: about 30 seconds of processor time once per machine, then cached."""

from __future__ import annotations

import numpy as np

from .door import solve
from .moves import improve
from .problem import Edge, MemoryItem, Problem


def warm_up() -> None:
    """Solve a small problem that goes through bounds, search and branching, unless this process has done so already."""
    if improve.signatures:
        return
    random = np.random.default_rng(0)
    nodes, strategies = 12, 4
    pairs = [(i, j) for i in range(nodes) for j in range(i + 1, nodes) if random.random() < 0.5]
    problem = Problem(
        tuple(random.random(strategies) for _ in range(nodes)),
        tuple(Edge(u, v, random.random((strategies, strategies))) for u, v in pairs),
        tuple(MemoryItem(i, i, i + 4, random.random(strategies)) for i in range(nodes)),
        1.9,
    )
    solve(problem, time_limit_s=300.0)
