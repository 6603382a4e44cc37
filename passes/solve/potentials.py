"""A dual solution in the problem's own terms: what rows and columns give to their nodes, and what a byte is worth.

For whoever knows more of the problem than its arrays say (that its nodes stand for many equal ones, say) and proves a
bound from it: moving cost between nodes and edges by any amounts changes nothing, so any numbers are a proof.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .core import Core, CoreEdge, CoreItem
from .dual import ascend, new_dual
from .flat import flatten
from .problem import IMPOSSIBLE, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Potentials:
    """`rows[k]` and `cols[k]` are what edge k gives to its nodes, per row and per column of its matrix; `price[t]` is
    what a unit of memory is worth at time t (times are counted from 0, as in the problem)."""

    rows: tuple[np.ndarray, ...]
    cols: tuple[np.ndarray, ...]
    price: np.ndarray


def potentials(problem: Problem, rounds: int = 100, patience: int = 12) -> Potentials:
    """A good dual solution by message passing, at most `rounds` turns of it. Edges may be parallel."""
    times = max((item.end for item in problem.memory), default=0)
    limited = problem.memory_limit is not None and times > 0
    edges = [
        CoreEdge(
            e.u, e.v, np.where(e.matrix >= IMPOSSIBLE, np.inf, e.matrix).astype(np.float64),
            np.arange(e.matrix.shape[0]) if e.row_of is None else e.row_of,
            np.arange(e.matrix.shape[1]) if e.col_of is None else e.col_of,
        )
        for e in problem.edges
    ]  # fmt: skip
    items = [CoreItem(i.node, i.start, i.end, i.usage.astype(np.float64)) for i in problem.memory] if limited else []
    room = np.full(times, float(problem.memory_limit or 0.0)) if limited else np.zeros(0)
    costs = tuple(np.where(c >= IMPOSSIBLE, np.inf, c).astype(np.float64) for c in problem.node_costs)
    flat = flatten(Core(costs, tuple(edges), tuple(items), room, np.arange(room.size), 0.0, False))
    dual = new_dual(flat)
    ascend(flat, dual, rounds, patience=patience)
    # What is forbidden gives as much as it likes; a finite number keeps sums defined.
    worst = 4.0 * float(sum(np.abs(c[np.isfinite(c)]).max(initial=0.0) for c in costs)) + 1.0
    message = np.where(np.isfinite(dual.message), dual.message / flat.scale, worst)
    rows = tuple(message[a : a + n] for a, n in zip(flat.row_message, flat.rows, strict=True))
    cols = tuple(message[a : a + n] for a, n in zip(flat.col_message, flat.cols, strict=True))
    return Potentials(rows, cols, dual.price / flat.scale)
