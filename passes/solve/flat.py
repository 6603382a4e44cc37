"""The core as a tuple of flat arrays, the form that the compiled loops read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from .core import Core

# Bits for the sum of the largest costs; the rest, up to float64's 53, is room for priced memory.
_COST_BITS = 47


class Flat(NamedTuple):
    """Numbers: n nodes, s strategies in all, e edges, t rows. Everything a loop needs, without Python objects.

    Node u has strategies `node_start[u]:node_start[u + 1]`. Edge k joins `edge_u[k]` and `edge_v[k]`; its matrix
    [rows[k], cols[k]] starts at `matrix_start[k]` of `matrix`; strategy i of its u uses row `row_of[row_start[k] + i]`,
    likewise columns. Messages of edge k to its rows start at `row_message[k]`, to its columns at `col_message[k]`.
    Node u's edges are `near_edge[near_start[u]:near_start[u + 1]]`. Its items are `item_start[u]:item_start[u + 1]`,
    each over rows `item_first:item_last` with the usages of its strategies from `usage_start` of `usage`.
    Costs are multiplied by `scale`, a power of two, and rounded down to integers (exactly, if they are integers).
    """

    node_start: np.ndarray
    cost: np.ndarray
    edge_u: np.ndarray
    edge_v: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    matrix_start: np.ndarray
    matrix: np.ndarray
    row_start: np.ndarray
    row_of: np.ndarray
    col_start: np.ndarray
    col_of: np.ndarray
    row_message: np.ndarray
    col_message: np.ndarray
    near_start: np.ndarray
    near_edge: np.ndarray
    item_start: np.ndarray
    item_first: np.ndarray
    item_last: np.ndarray
    usage_start: np.ndarray
    usage: np.ndarray
    room: np.ndarray
    scale: float

    @property
    def messages(self) -> int:
        return int(self.rows.sum() + self.cols.sum())


@njit(cache=True, nogil=True)
def copy(into: np.ndarray, values: np.ndarray) -> None:
    """`into[:] = values` for arrays of one size: what numba may have to say of others takes seconds to compile."""
    for i in range(into.size):
        into[i] = values[i]


def flatten(core: Core) -> Flat:
    """The arrays of `core`; equal matrices are stored once."""
    scale = _scale(core)
    nodes = len(core.costs)
    sizes = np.array([c.size for c in core.costs], dtype=np.int64)
    edge_u = np.array([e.u for e in core.edges], dtype=np.int64)
    edge_v = np.array([e.v for e in core.edges], dtype=np.int64)
    rows = np.array([e.matrix.shape[0] for e in core.edges], dtype=np.int64)
    cols = np.array([e.matrix.shape[1] for e in core.edges], dtype=np.int64)
    place: dict[tuple[int, bytes], int] = {}
    blocks: list[np.ndarray] = []
    matrix_start, used = [], 0
    for e in core.edges:
        key = (e.matrix.shape[1], e.matrix.tobytes())
        if key not in place:
            place[key] = used
            blocks.append(np.floor(e.matrix.ravel() * scale))
            used += e.matrix.size
        matrix_start.append(place[key])
    ends = np.concatenate([edge_u, edge_v])
    order = np.argsort(ends, kind="stable")
    order_items = sorted(core.items, key=lambda item: item.node)
    owners = np.array([item.node for item in order_items], dtype=np.int64)
    message = _starts(np.concatenate([rows, cols]))
    return Flat(
        node_start=_starts(sizes),
        cost=np.floor(_joined(core.costs, np.float64) * scale),
        edge_u=edge_u,
        edge_v=edge_v,
        rows=rows,
        cols=cols,
        matrix_start=np.array(matrix_start, dtype=np.int64),
        matrix=_joined(blocks, np.float64),
        row_start=_starts(sizes[edge_u]),
        row_of=_joined([e.row_of for e in core.edges], np.int64),
        col_start=_starts(sizes[edge_v]),
        col_of=_joined([e.col_of for e in core.edges], np.int64),
        row_message=message[: rows.size],
        col_message=message[rows.size : 2 * rows.size],
        near_start=np.searchsorted(ends[order], np.arange(nodes + 1)).astype(np.int64),
        near_edge=(order % max(1, edge_u.size)).astype(np.int64),
        item_start=np.searchsorted(owners, np.arange(nodes + 1)).astype(np.int64),
        item_first=np.array([item.first for item in order_items], dtype=np.int64),
        item_last=np.array([item.last for item in order_items], dtype=np.int64),
        usage_start=_starts(sizes[owners]),
        usage=_joined([item.usage for item in order_items], np.float64),
        room=np.asarray(core.room, dtype=np.float64),
        scale=scale,
    )


def _scale(core: Core) -> float:
    total = sum(float(np.abs(c).max()) for c in core.costs)
    total += sum(float(np.abs(e.matrix[np.isfinite(e.matrix)]).max(initial=0.0)) for e in core.edges)
    if total == 0:
        return 1.0
    exponent = min(_COST_BITS - math.ceil(math.log2(total)), 1000)
    return 2.0 ** (max(0, exponent) if core.integral else exponent)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)
