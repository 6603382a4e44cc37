"""Exact reductions, cheapest first, until nothing changes; every one leaves an undo record.

Impossible entries first: strategies without partner go (arc consistency), and where every strategy of a node has exactly
one possible partner the neighbour is no decision of its own and merges. Then nodes with one strategy, edges that are sums
of node costs, strategies that another one beats in cost and memory, and nodes without memory and few neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .core import Core, Infeasible, Undo, Workspace, project, restore
from .problem import Problem

# Entries compared per node when looking for beaten strategies; beyond, the search would cost more than it saves.
_DOMINANCE_ENTRIES = 4_000_000
# Entries of the matrix that eliminating a node with two neighbours may create.
_FILL_ENTRIES = 40_000


@dataclass(frozen=True, slots=True, eq=False)
class Presolved:
    """A core and the way back. `nodes` are the original numbers of the core's nodes, `total` the original count."""

    core: Core
    undo: tuple[Undo, ...]
    nodes: np.ndarray
    total: int

    def restore(self, choice: np.ndarray) -> np.ndarray:
        return restore(self.undo, self.nodes, self.total, choice)

    def project(self, choice: object) -> np.ndarray | None:
        return project(self.undo, self.nodes, choice)  # type: ignore[arg-type]


def presolve(problem: Problem, check_room: bool = True) -> Presolved:
    """Reduce `problem`. Raises `Infeasible` when no choice has finite cost or some time is over-full whatever is chosen."""
    return _reduced(Workspace.of(problem), check_room)


def reduce_further(core: Core, costs: Sequence[np.ndarray], matrices: Sequence[np.ndarray]) -> Presolved:
    """Presolve `core` again after infinite entries were put into its `costs` and edges' `matrices` by a bound."""
    edges = tuple(replace(e, matrix=m) for e, m in zip(core.edges, matrices, strict=True))
    return _reduced(Workspace.again(replace(core, costs=tuple(costs), edges=edges)), True)


def _reduced(work: Workspace, check_room: bool) -> Presolved:
    total = len(work.cost)
    for u, cost in enumerate(work.cost):
        finite = np.flatnonzero(np.isfinite(cost))
        if finite.size < cost.size or cost.size == 0:
            work.restrict(u, finite)
    make_consistent(work, range(len(work.matrix)))
    while True:
        before = len(work.undo)
        merge_ties(work)
        reduce_times(work)
        if check_room:
            drop_overfull(work)
        drop_separable(work)
        fix_single(work)
        eliminate_small(work)
        drop_beaten(work)
        if len(work.undo) == before:
            break
    if check_room and np.any(work.room() < 0):
        raise Infeasible
    core, nodes = work.freeze()
    return Presolved(core, tuple(work.undo), nodes, total)


def make_consistent(work: Workspace, edges: Iterable[int]) -> None:
    """Remove strategies that have no possible partner across some edge, to the fixpoint."""
    has_inf: dict[int, bool] = {}

    def infinite(number: int) -> bool:
        matrix = work.matrix[number]
        key = id(matrix)
        if key not in has_inf:
            has_inf[key] = bool(np.isinf(matrix).any())
        return has_inf[key]

    queue = deque(e for e in edges if infinite(e))
    queued = set(queue)
    while queue:
        number = queue.popleft()
        queued.discard(number)
        for u in (work.edge_u[number], work.edge_v[number]):
            _, matrix, rows, cols = work.oriented(number, u)
            possible = np.isfinite(matrix[:, np.unique(cols)]).any(axis=1)[rows]
            if not possible.all():
                work.restrict(u, np.flatnonzero(possible))
                for other in work.near[u].values():
                    if other not in queued and infinite(other):
                        queued.add(other)
                        queue.append(other)


def merge_ties(work: Workspace) -> None:
    """Merge neighbours of which one decides the other: every strategy has exactly one possible partner."""
    queue = deque(
        number
        for u, around in enumerate(work.near)
        for v, number in around.items()
        if u < v and np.isinf(work.matrix[number]).any()
    )
    while queue:
        number = queue.popleft()
        u, v = work.edge_u[number], work.edge_v[number]
        if work.near[u].get(v) != number:
            continue
        matrix, rows, cols = work.matrix[number], work.row_of[number], work.col_of[number]
        finite = np.isfinite(matrix)[np.ix_(rows, cols)]
        if not (finite.any(axis=1).all() and finite.any(axis=0).all()):
            make_consistent(work, [number])
            queue.append(number)
            continue
        u_decides, v_decides = bool((finite.sum(axis=1) == 1).all()), bool((finite.sum(axis=0) == 1).all())
        if not (u_decides or v_decides):
            continue
        if u_decides and v_decides and len(work.near[u]) + len(work.items[u]) < len(work.near[v]) + len(work.items[v]):
            u_decides = False  # move the smaller node
        if u_decides:
            changed = work.follow(v, u, finite.argmax(axis=1))
        else:
            changed = work.follow(u, v, finite.argmax(axis=0))
        queue.extend(e for e in changed if np.isinf(work.matrix[e]).any())


def fix_single(work: Workspace) -> None:
    """Decide nodes with one strategy left, and what that forces."""
    queue = deque(u for u, alive in enumerate(work.alive) if alive and work.cost[u].size == 1)
    while queue:
        u = queue.popleft()
        if not work.alive[u]:
            continue
        around = list(work.near[u])
        work.fix(u)
        for w in around:
            finite = np.flatnonzero(np.isfinite(work.cost[w]))
            if finite.size < work.cost[w].size:
                work.restrict(w, finite)
                make_consistent(work, list(work.near[w].values()))
            if work.cost[w].size == 1:
                queue.append(w)


def drop_separable(work: Workspace) -> None:
    """Turn an edge whose matrix is a sum of a row cost and a column cost into node costs."""
    for u in range(len(work.near)):
        for v, number in list(work.near[u].items()):
            if u > v:
                continue
            _, matrix, rows, cols = work.oriented(number, u)
            used = matrix[np.ix_(np.unique(rows), np.unique(cols))]
            if not np.isfinite(used).all():
                continue
            across = used[0] - used[0, 0]
            if np.array_equal(used[:, :1] + across, used) and (work.integral or not across.any() or np.ptp(used[:, 0]) == 0):
                work.cost[u] = work.cost[u] + matrix[rows, cols[0]]
                work.cost[v] = work.cost[v] + (matrix[rows[0]][cols] - matrix[rows[0], cols[0]])
                work.remove_edge(number)


def reduce_times(work: Workspace) -> None:
    """Keep the rows that some choice over-fills and no other row implies; renumber the items' intervals."""
    if work.base.size == 0:
        return
    most = work.base.copy()
    change = np.zeros(work.base.size + 1)
    for items in work.items:
        for (first, last), usage in items.items():
            change[first] += usage.max()
            change[last] -= usage.max()
    most += np.cumsum(change)[:-1]
    kept = np.flatnonzero((most > work.limit) | (work.base > work.limit))
    _renumber(work, kept)
    starts = np.zeros(work.base.size + 1, dtype=bool)
    ends = np.zeros(work.base.size + 1, dtype=bool)
    for items in work.items:
        for first, last in items:
            starts[first] = True
            ends[last] = True
    rows: list[int] = []
    for t in range(work.base.size):
        # Row t is implied by the last kept one if nothing started since; it implies those before if nothing ended.
        if rows and not starts[rows[-1] + 1 : t + 1].any() and work.base[t] <= work.base[rows[-1]]:
            continue
        while rows and not ends[rows[-1] + 1 : t + 1].any() and work.base[rows[-1]] <= work.base[t]:
            rows.pop()
        rows.append(t)
    _renumber(work, np.array(rows, dtype=np.int64))


def drop_overfull(work: Workspace) -> None:
    """Remove strategies that alone over-fill a row, all other nodes at their least."""
    room = work.room()
    for u, items in enumerate(work.items):
        if not items:
            continue
        fits = np.ones(work.cost[u].size, dtype=bool)
        for (first, last), usage in items.items():
            fits &= usage <= room[first:last].min()
        if not fits.all():
            work.restrict(u, np.flatnonzero(fits))
            make_consistent(work, list(work.near[u].values()))


def _renumber(work: Workspace, kept: np.ndarray) -> None:
    if kept.size == work.base.size:
        return
    before = np.searchsorted(kept, np.arange(work.base.size + 1)).tolist()
    work.base = work.base[kept]
    work.row_ids = work.row_ids[kept]
    for u, items in enumerate(work.items):
        if items:
            work.items[u] = {}
            for (first, last), usage in items.items():
                if before[first] < before[last]:
                    work.add_item(u, before[first], before[last], usage)


def eliminate_small(work: Workspace) -> None:
    """Eliminate nodes without memory and with at most two neighbours, fewest first."""
    queue = deque(u for u, alive in enumerate(work.alive) if alive and not work.items[u] and len(work.near[u]) <= 2)
    while queue:
        u = queue.popleft()
        if not work.alive[u] or work.items[u] or len(work.near[u]) > 2:
            continue
        around = list(work.near[u])
        if len(around) == 2:
            one, two = (work.oriented(work.near[u][w], u)[3] for w in around)
            if np.unique(one).size * np.unique(two).size > _FILL_ENTRIES:
                continue
        work.eliminate(u)
        make_consistent(work, [e for w in around for e in work.near[w].values()])
        queue.extend(w for w in around if not work.items[w] and len(work.near[w]) <= 2)


def drop_beaten(work: Workspace) -> None:
    """Remove a strategy when another costs no more in every situation and uses no more memory at any time."""
    for u, alive in enumerate(work.alive):
        if alive and work.cost[u].size > 1:
            into = _beaten(work, u)
            keep = np.flatnonzero(into == np.arange(into.size))
            if keep.size < into.size:
                work.restrict(u, keep, into)


def _beaten(work: Workspace, u: int) -> np.ndarray:
    """[strategies]: the strategy that beats each one, itself where none does."""
    cost = work.cost[u]
    size = cost.size
    edges = [work.oriented(number, u)[1:] for number in work.near[u].values()]
    entries = sum(np.unique(rows).size ** 2 * matrix.shape[1] for matrix, rows, _ in edges)
    entries += size * size * len(work.items[u])
    into = np.arange(size)
    if entries > _DOMINANCE_ENTRIES:
        return into
    worse = cost[None, :] - cost[:, None]  # [i, j]: how much j costs more than i, at most
    for matrix, rows, cols in edges:
        used, where = np.unique(rows, return_inverse=True)
        part = matrix[np.ix_(used, np.unique(cols))]
        with np.errstate(invalid="ignore"):
            step = part[None, :, :] - part[:, None, :]
        step[np.isnan(step)] = -np.inf  # impossible for both: this partner says nothing
        worse = worse + step.max(axis=2)[np.ix_(where, where)]
    better = worse <= 0
    for usage in work.items[u].values():
        better &= usage[None, :] <= usage[:, None]
    np.fill_diagonal(better, False)
    gone = np.zeros(size, dtype=bool)
    for i in range(size - 1, -1, -1):
        alternatives = np.flatnonzero(better[i] & ~gone)
        if alternatives.size:
            gone[i] = True
            into[i] = alternatives[0]
    for i in range(size - 1, -1, -1):  # a better strategy may itself have gone later: follow to one that stays
        while gone[into[i]]:
            into[i] = into[into[i]]
    return into
