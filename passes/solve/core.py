"""What presolve leaves to be solved, and the record that leads back to the original problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class CoreEdge:
    """`matrix[row_of[s_u], col_of[s_v]]`, float64, infinite entries impossible; no two edges join the same nodes."""

    u: int
    v: int
    matrix: np.ndarray
    row_of: np.ndarray
    col_of: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class CoreItem:
    """`usage` bytes [strategies] on the rows `first <= row < last` of the reduced times."""

    node: int
    first: int
    last: int
    usage: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """A reduced problem. `room` [rows] is what the limit leaves for the items, `row_ids` [rows] name the rows
    through all reductions; `constant` is the cost already decided.

    `integral`: all costs are integers small enough that float64 sums of them are exact.
    """

    costs: tuple[np.ndarray, ...]
    edges: tuple[CoreEdge, ...]
    items: tuple[CoreItem, ...]
    room: np.ndarray
    row_ids: np.ndarray
    constant: float
    integral: bool

    def cost(self, choice: np.ndarray) -> float:
        total = self.constant + sum(float(c[s]) for c, s in zip(self.costs, choice, strict=True))
        return total + sum(float(e.matrix[e.row_of[choice[e.u]], e.col_of[choice[e.v]]]) for e in self.edges)

    def usage(self, choice: np.ndarray) -> np.ndarray:
        """Bytes [rows] that the items take under `choice` [nodes]."""
        change = np.zeros(len(self.room) + 1)
        for item in self.items:
            size = item.usage[choice[item.node]]
            change[item.first] += size
            change[item.last] -= size
        return np.cumsum(change)[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class Undo:
    """One step back. `kind`: "restrict" (table: new strategy -> old; forward: old -> new or -1), "follow" (node =
    table of `other`'s strategy), "between" (node = table of the strategies of `other` and `third`), "among" (node =
    table of the strategies of all `around`, each first through its map, None the identity)."""

    kind: str
    node: int
    table: np.ndarray
    other: int = -1
    third: int = -1
    forward: np.ndarray | None = None
    around: tuple[int, ...] = ()
    maps: tuple[np.ndarray | None, ...] = ()


class Infeasible(Exception):
    """Raised inside the solver when no choice exists. `over_bytes`: the least over-use, 0 when costs forbid all."""

    def __init__(self, over_bytes: float = 0.0) -> None:
        super().__init__(f"infeasible by {over_bytes} bytes")
        self.over_bytes = over_bytes


def restore(undo: Sequence[Undo], nodes: np.ndarray, total: int, choice: np.ndarray) -> np.ndarray:
    """The choice [total] of the original problem from the core's `choice`, cost and memory unchanged."""
    full = np.zeros(total, dtype=np.int64)
    full[nodes] = choice
    for step in reversed(undo):
        if step.kind == "restrict":
            full[step.node] = step.table[full[step.node]]
        elif step.kind == "follow":
            full[step.node] = step.table[full[step.other] if step.other >= 0 else 0]
        elif step.kind == "among":
            places = (full[w] if m is None else m[full[w]] for w, m in zip(step.around, step.maps, strict=True))
            full[step.node] = step.table[tuple(places)]
        else:
            full[step.node] = step.table[full[step.other], full[step.third]]
    return full


def project(undo: Sequence[Undo], nodes: np.ndarray, choice: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """The core's choice that stands for an original one, None if it uses a strategy that can not be chosen."""
    full = np.array(choice, dtype=np.int64)
    for step in undo:
        if step.kind == "restrict" and step.forward is not None:
            full[step.node] = step.forward[full[step.node]]
            if full[step.node] < 0:
                return None
    return full[nodes]


def compact(matrix: np.ndarray, row_of: np.ndarray, col_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same costs with unused rows and columns dropped and equal ones shared."""
    here, rows = used(row_of, matrix.shape[0])
    matrix = matrix[here]
    here, cols = used(col_of, matrix.shape[1])
    matrix = matrix[:, here]
    distinct, inverse = _distinct_rows(matrix)
    matrix, rows = matrix[distinct], inverse[rows]
    distinct, inverse = _distinct_rows(matrix.T)
    return np.ascontiguousarray(matrix[:, distinct]), rows, inverse[cols]


def used(table: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of `table` (all below `size`), ascending, and the place of every entry among them."""
    if size > 4 * table.size + 64:
        values, places = np.unique(table, return_inverse=True)
        return values, places
    present = np.zeros(size, dtype=bool)
    present[table] = True
    return present.nonzero()[0], (present.cumsum() - 1)[table]


def first_of(places: np.ndarray, size: int) -> np.ndarray:
    """For each place one entry that has it."""
    at = np.empty(size, dtype=np.int64)
    at[places] = np.arange(places.size)
    return at


def _distinct_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen: dict[bytes, int] = {}
    inverse = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in matrix], dtype=np.int64)
    return first_of(inverse, len(seen)), inverse
