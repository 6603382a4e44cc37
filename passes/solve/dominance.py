"""Strategies that another one beats: it costs no more in every situation and uses no more memory at any time.

Every pair of a node's strategies is compared across all its edges, compiled: on nodes of hundreds of strategies this is
most of what presolve does.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit

from .core import used
from .workspace import Workspace

# Entries compared per node; beyond, the search would cost more than it saves.
_ENTRIES = 4_000_000
# Means are rounded: a pair is given up only when it is worse by more than this share of the largest costs.
_MARGIN = 1e-9


def drop_beaten(work: Workspace, nodes: Iterable[int]) -> None:
    """Remove every strategy of `nodes` that another one of the node beats."""
    for u in sorted(nodes):
        if work.alive[u] and work.cost[u].size > 1:
            into = _beaten(work, u)
            keep = np.flatnonzero(into == np.arange(into.size))
            if keep.size < into.size:
                work.restrict(u, keep, into)


def _beaten(work: Workspace, u: int) -> np.ndarray:
    """[strategies]: the strategy that beats each one, itself where none does."""
    cost = work.cost[u]
    size = cost.size
    if size * size * len(work.items[u]) > _ENTRIES:
        return np.arange(size)
    worse = np.empty((size, size))
    usage = np.array([*work.items[u].values()]) if work.items[u] else np.zeros((0, size))
    if not begin(cost, usage, worse):
        return np.arange(size)
    parts = []
    for number in work.near[u].values():
        _, matrix, rows, cols = work.oriented(number, u)
        here, where = used(rows, matrix.shape[0])
        parts.append((matrix[here][:, used(cols, matrix.shape[1])[0]], where))
    if sum(part.shape[0] * part.size for part, _ in parts) > _ENTRIES:
        return np.arange(size)
    # Small tables first: what they rule out, the large ones need not compare.
    parts.sort(key=lambda p: p[0].shape[0] * p[0].size)
    tables = [(np.ascontiguousarray(part), where) for part, where in parts]
    means = [row_means(part)[where] for part, where in tables]
    rest = np.sum(means, axis=0) if means else np.zeros(size)
    margin = _MARGIN * (_largest(cost) + sum(map(_largest, means)))
    for (part, where), mean in zip(tables, means, strict=True):
        add_excess(part, where, worse, rest, margin)
        rest = rest - mean
    return winners(worse)


def _largest(values: np.ndarray) -> float:
    return max(float(values.max()), -float(values.min()))


@njit(cache=True, nogil=True)
def row_means(part: np.ndarray) -> np.ndarray:
    """[rows]: the mean over the columns that no row forbids, NaN (not known) if there are none."""
    rows, cols = part.shape
    total, count = np.zeros(rows), 0
    for c in range(cols):
        common = True
        for r in range(rows):
            common &= part[r, c] < np.inf
        if common:
            count += 1
            for r in range(rows):
                total[r] += part[r, c]
    return total / count if count else np.full(rows, np.nan)


@njit(cache=True, nogil=True)
def begin(cost: np.ndarray, usage: np.ndarray, worse: np.ndarray) -> bool:
    """`worse` [i, j]: what strategy j costs more than i, infinite if it uses more anywhere ([items, strategies]).

    Whether any pair is still open.
    """
    some = False
    for i in range(cost.size):
        for j in range(cost.size):
            worse[i, j] = cost[j] - cost[i]
            if i == j:
                worse[i, j] = np.inf
            for k in range(usage.shape[0]):
                if usage[k, j] > usage[k, i]:
                    worse[i, j] = np.inf
                    break
            some |= worse[i, j] < np.inf
    return some


@njit(cache=True, nogil=True)
def add_excess(part: np.ndarray, where: np.ndarray, worse: np.ndarray, rest: np.ndarray, margin: float) -> None:
    """Add to `worse` how much j's row of `part` [rows, cols] exceeds i's, at most over the columns.

    Strategies take the rows `where`. A column impossible for both says nothing; where none says anything, the other end
    has no partner at all, and nothing is worse. `rest` [strategies] are the means of this table and those to come:
    the largest excess over the columns is at least the mean one, so a pair that stays worse by more than `margin` by
    them is given up.
    """
    rows, cols = part.shape
    table = np.full((rows, rows), np.nan)  # filled where a pair of strategies that is still open asks
    for i in range(where.size):
        for j in range(where.size):
            if worse[i, j] == np.inf:
                continue
            if worse[i, j] + rest[j] - rest[i] > margin:  # never where a mean is not known
                worse[i, j] = np.inf
                continue
            r, s = where[i], where[j]
            if np.isnan(table[r, s]):
                most = -np.inf
                for c in range(cols):
                    if part[s, c] < np.inf:
                        most = max(most, part[s, c] - part[r, c])
                    elif part[r, c] < np.inf:
                        most = np.inf
                        break
                table[r, s] = most
            worse[i, j] += table[r, s]


@njit(cache=True, nogil=True)
def winners(worse: np.ndarray) -> np.ndarray:
    """[strategies]: one that is nowhere worse and stays itself, where there is one."""
    size = worse.shape[0]
    into = np.arange(size)
    gone = np.zeros(size, np.bool_)
    for i in range(size - 1, -1, -1):
        for j in range(size):
            if worse[i, j] <= 0 and not gone[j]:
                gone[i] = True
                into[i] = j
                break
    for i in range(size):  # a better strategy may itself have gone later: follow to one that stays
        while gone[into[i]]:
            into[i] = into[into[i]]
    return into
