"""Elimination of whole regions that memory does not touch, by min-plus tables of bounded size.

A region is a set of nodes without memory that at most two other nodes border. Its nodes go one after the other, each
into a table over the neighbours it has by then (bucket elimination: exact, its tables as wide as the region is
tree-like); what is left is a cost of the border, which a node cost or an edge can hold. A component without memory has
no border and is solved outright.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .core import Infeasible, Undo, used
from .workspace import Workspace

# Nodes around a region while it grows: more, and its tables would be too large anyway.
_BORDER = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Costs over `around`, one axis per node."""

    around: tuple[int, ...]
    cost: np.ndarray


def eliminate_regions(work: Workspace, nodes: Iterable[int], entries: int, most: int) -> set[int]:
    """Eliminate regions that hold one of `nodes`; tables of up to `entries`, regions grown to `most` nodes.

    Returns the nodes that bordered a region, whose strategies may now be inconsistent with their neighbours'.
    """
    nodes = sorted(nodes)
    changed: set[int] = set()
    for region in _whole(work, nodes):
        order = _order(work, region, entries)
        if order is not None:
            changed |= _eliminate(work, order)
    tried: set[frozenset[int]] = set()
    for u in nodes:
        grown = _grown(work, u, most)
        if grown is not None and grown not in tried:
            tried.add(grown)
            order = _order(work, grown, entries)
            if order is not None:
                changed |= _eliminate(work, order)
    return changed


def _free(work: Workspace, u: int) -> bool:
    return work.alive[u] and not work.items[u]


def _whole(work: Workspace, nodes: Iterable[int]) -> list[frozenset[int]]:
    """The components of free nodes that hold one of `nodes` and that at most two others border."""
    found = []
    seen: set[int] = set()
    for start in nodes:
        if start in seen or not _free(work, start):
            continue
        region, border, queue = {start}, set(), [start]
        while queue:
            for w in work.near[queue.pop()]:
                if w in region or w in border:
                    continue
                if _free(work, w):
                    region.add(w)
                    queue.append(w)
                else:
                    border.add(w)
        seen |= region
        if len(border) <= 2:
            found.append(frozenset(region))
    return found


def _grown(work: Workspace, start: int, most: int) -> frozenset[int] | None:
    """A region around `start`: always on to the neighbour that leaves the smallest border, until two are left."""
    if not _free(work, start):
        return None
    region, border = {start}, set(work.near[start])
    while len(border) > 2:
        if len(region) == most or len(border) > _BORDER:
            return None
        options = [w for w in border if _free(work, w)]
        if not options:
            return None
        best = min(options, key=lambda w: (len((border | work.near[w].keys()) - region) - 1, w))
        region.add(best)
        border = (border | work.near[best].keys()) - region
    return frozenset(region)


def _classes(work: Workspace, region: frozenset[int]) -> dict[int, np.ndarray]:
    """For every node on the border the class [strategies] of each strategy: those of a class cost the region alike."""
    classes: dict[int, np.ndarray] = {}
    for w in sorted({w for u in region for w in work.near[u]} - region):
        key = np.zeros(work.cost[w].size, dtype=np.int64)
        for u in sorted(work.near[w].keys() & region):
            _, matrix, rows, _ = work.oriented(work.near[w][u], w)
            key = used(key * matrix.shape[0] + rows, (int(key.max(initial=0)) + 1) * matrix.shape[0])[1]
        classes[w] = key
    return classes


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """The nodes of a region as they are to go, and the classes of its border's strategies."""

    nodes: tuple[int, ...]
    classes: dict[int, np.ndarray]


def _order(work: Workspace, region: frozenset[int], entries: int) -> _Order | None:
    """An order whose tables all have at most `entries`, None if neither way to look for one finds it.

    First always the node with the smallest table next; then a sweep from one end of the region to the other, which on
    long regular regions stays as narrow as they are.
    """
    classes = _classes(work, region)
    size = {u: work.cost[u].size for u in region} | {w: int(c.max()) + 1 for w, c in classes.items()}
    if any(size[u] * size[w] > entries for u in region for w in work.near[u]):
        return None
    tables = _Tables(size, {u: set(work.near[u]) for u in region} | {w: work.near[w].keys() & region for w in classes})
    nodes = _smallest_first(tables.copy(), region, entries)
    if nodes is None:
        nodes = _sweep(work, region)
        if any(tables.remove(u) > entries for u in nodes):
            return None
    return _Order(tuple(nodes), classes)


@dataclass(frozen=True, slots=True)
class _Tables:
    """Who would be in a table with whom: `size` is the strategies of a node, `near` its neighbours by now."""

    size: dict[int, int]
    near: dict[int, set[int]]

    def copy(self) -> _Tables:
        return _Tables(self.size, {u: set(around) for u, around in self.near.items()})

    def entries(self, u: int) -> int:
        return self.size[u] * math.prod(self.size[w] for w in self.near[u])

    def remove(self, u: int) -> int:
        """Eliminate u: its neighbours become each other's. The entries of its table."""
        entries = self.entries(u)
        around = self.near.pop(u)
        for w in around:
            self.near[w] |= around
            self.near[w] -= {u, w}
        return entries


def _smallest_first(tables: _Tables, region: frozenset[int], entries: int) -> list[int] | None:
    order = []
    heap = [(tables.entries(u), u) for u in region]
    heapq.heapify(heap)
    while heap:
        needed, u = heapq.heappop(heap)
        if u not in tables.near or needed != tables.entries(u):
            continue  # an entry from before its neighbours changed
        if needed > entries:
            return None
        order.append(u)
        around = tables.near[u] & region
        tables.remove(u)
        for w in around:
            heapq.heappush(heap, (tables.entries(w), w))
    return order


def _sweep(work: Workspace, region: frozenset[int]) -> list[int]:
    """Breadth first from a node that is as far from another as any."""
    order = [min(region)]
    for _ in range(2):  # the last node of a sweep is at an end of the region
        order = [order[-1]]
        seen = set(order)
        for u in order:
            for w in sorted(work.near[u].keys() & region):
                if w not in seen:
                    seen.add(w)
                    order.append(w)
    return order


def _eliminate(work: Workspace, order: _Order) -> set[int]:
    """Carry the elimination out; the border gets what the region costs it at best."""
    region = set(order.nodes)
    tables = []
    for u in order.nodes:
        for w in work.near[u]:
            if w < u and w in region:
                continue  # the edge is taken at its other end
            _, matrix, rows, cols = work.oriented(work.near[u][w], u)
            if w in order.classes:
                # One strategy of every class stands for it.
                cols = cols[np.unique(order.classes[w], return_index=True)[1]]
            tables.append(_Table((u, w), matrix[np.ix_(rows, cols)]))
    for u in order.nodes:
        mine = [t for t in tables if u in t.around]
        tables = [t for t in tables if u not in t.around]
        around = tuple(sorted({w for t in mine for w in t.around} - {u}))
        total = _joined(u, work.cost[u], mine, around)
        best = total.argmin(axis=0)
        small = best.astype(np.min_scalar_type(total.shape[0]))
        maps = tuple(order.classes.get(w) for w in around)
        work.undo.append(Undo("among", u, small, around=around, maps=maps))
        tables.append(_Table(around, np.take_along_axis(total, best[None], axis=0)[0]))
    for u in order.nodes:
        for number in list(work.near[u].values()):
            work.remove_edge(number)
        work.drop(u)
    _hand_over(work, tables, order.classes)
    return set(order.classes)


def _joined(u: int, cost: np.ndarray, tables: Sequence[_Table], around: tuple[int, ...]) -> np.ndarray:
    """[strategies of u, around...]: all of the tables and u's own cost."""
    axis = {w: i + 1 for i, w in enumerate(around)} | {u: 0}
    total = cost.reshape(-1, *[1] * len(around))
    for t in tables:
        places = [axis[w] for w in t.around]
        shape = [1] * (len(around) + 1)
        for place, size in zip(places, t.cost.shape, strict=True):
            shape[place] = size
        total = total + t.cost.transpose(np.argsort(places)).reshape(shape)
    return total


def _hand_over(work: Workspace, tables: Iterable[_Table], classes: dict[int, np.ndarray]) -> None:
    for t in tables:
        if not t.around:
            if not np.isfinite(t.cost):
                raise Infeasible
            work.constant += float(t.cost)
        elif len(t.around) == 1:
            (w,) = t.around
            work.cost[w] = work.cost[w] + t.cost[classes[w]]
        else:
            v, w = t.around
            work.add_edge(v, w, t.cost, classes[v], classes[w])
    for w in classes:
        finite = np.flatnonzero(np.isfinite(work.cost[w]))
        if finite.size < work.cost[w].size:
            work.restrict(w, finite)
