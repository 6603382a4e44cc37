"""Exact reductions, cheapest first, until nothing changes; every one leaves an undo record.

Impossible entries first: strategies without partner go (arc consistency), and where every strategy of a node has
exactly one possible partner the neighbour is no decision of its own and merges. Then nodes with one strategy, edges
that are sums of node costs, strategies that another one beats in cost and memory, and nodes without memory and few
neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .core import Core, Infeasible, Undo, project, restore, used
from .dominance import drop_beaten
from .effort import effort_for
from .eliminate import eliminate_regions
from .problem import Problem
from .workspace import Workspace

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

    def project(self, choice: Sequence[int] | np.ndarray) -> np.ndarray | None:
        return project(self.undo, self.nodes, choice)


def presolve(problem: Problem, check_room: bool = True) -> Presolved:
    """Reduce `problem`. Raises `Infeasible` when no choice has finite cost or some time is over-full whatever is
    chosen.
    """
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
    work.touched = set(range(total))
    effort = effort_for(sum(c.size for c in work.cost))
    while True:
        before = len(work.undo)
        todo, work.touched = work.touched, set()
        merge_ties(work, todo)
        reduce_times(work)
        if check_room:
            drop_overfull(work)
        drop_separable(work, todo | work.touched)
        fix_single(work)
        eliminate_small(work)
        for w in sorted(eliminate_regions(work, todo | work.touched, effort.region_entries, effort.region_nodes)):
            make_consistent(work, list(work.near[w].values()))
        drop_beaten(work, todo | work.touched)
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
            possible = np.isfinite(matrix[:, used(cols, matrix.shape[1])[0]]).any(axis=1)[rows]
            if not possible.all():
                work.restrict(u, np.flatnonzero(possible))
                for other in work.near[u].values():
                    if other not in queued and infinite(other):
                        queued.add(other)
                        queue.append(other)


def merge_ties(work: Workspace, nodes: Iterable[int]) -> None:
    """Merge neighbours of which one decides the other: every strategy has exactly one possible partner."""
    numbers = sorted({number for u in nodes for number in work.near[u].values()})
    queue = deque(number for number in numbers if np.isinf(work.matrix[number]).any())
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
        changed = work.follow(v, u, finite.argmax(axis=1)) if u_decides else work.follow(u, v, finite.argmax(axis=0))
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


def drop_separable(work: Workspace, nodes: Iterable[int]) -> None:
    """Turn an edge whose matrix is a sum of a row cost and a column cost into node costs."""
    for number in sorted({number for u in nodes for number in work.near[u].values()}):
        u, v = work.edge_u[number], work.edge_v[number]
        matrix, rows, cols = work.matrix[number], work.row_of[number], work.col_of[number]
        part = matrix[used(rows, matrix.shape[0])[0]][:, used(cols, matrix.shape[1])[0]]
        if not np.isfinite(part).all():
            continue
        across = part[0] - part[0, 0]
        if not np.array_equal(part[:, :1] + across, part):
            continue
        # In floating point the split must not round: then it is taken only where one side does not matter.
        if work.integral or not across.any() or np.ptp(part[:, 0]) == 0:
            work.cost[u] = work.cost[u] + matrix[rows, cols[0]]
            work.cost[v] = work.cost[v] + (matrix[rows[0]][cols] - matrix[rows[0], cols[0]])
            work.remove_edge(number)


def reduce_times(work: Workspace) -> None:
    """Keep the rows that some choice over-fills and no other row implies; renumber the items' intervals."""
    if work.base.size == 0:
        return
    work.tidy_items()
    change = np.zeros(work.base.size + 1)
    for items in work.items:
        for (first, last), usage in items.items():
            most = usage.max()
            change[first] += most
            change[last] -= most
    most = work.base + np.cumsum(change)[:-1]
    _renumber(work, np.flatnonzero((most > work.limit) | (work.base > work.limit)))
    _renumber(work, telling_rows(work))


def telling_rows(work: Workspace) -> np.ndarray:
    """Rows, ascending, such that a choice that fits in them fits in all; no kept neighbours imply each other.

    Row t is implied by row r when no choice can use more at t than at r beyond the difference of their rooms: the sum
    over nodes of the most that a strategy uses more. Only nodes whose usage changes between t and r count.
    """
    room = work.room()
    # Sums of whole bytes are exact in floating point; others get a margin, so that rounding never drops a row.
    margin = 0.0 if work.whole_bytes() else 1e-9 * float(np.abs(room).max(initial=0.0))
    events: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(room.size + 1)]
    for u, items in enumerate(work.items):
        for (first, last), usage in items.items():
            events[first].append((u, usage))
            events[last].append((u, -usage))
    rows: list[int] = []
    before: list[_Change] = []  # before[k]: from rows[k - 1] to rows[k]
    change = _Change({})
    for t in range(room.size):
        for u, usage in events[t]:
            change.add(u, usage)
        while rows and change.less <= room[rows[-1]] - room[t] - margin:
            rows.pop()
            change = change.after(before.pop())
        if rows and change.more <= room[t] - room[rows[-1]] - margin:
            continue
        rows.append(t)
        before.append(change)
        change = _Change({})
    return np.array(rows, dtype=np.int64)


@dataclass(slots=True)
class _Change:
    """What nodes use more at one row than at an earlier one: `usage[u]` [strategies]; the most and minus the least that
    a choice can use more."""

    usage: dict[int, np.ndarray]
    more: float = 0.0
    less: float = 0.0

    def add(self, u: int, usage: np.ndarray) -> None:
        if u in self.usage:
            old = self.usage[u]
            self.more -= float(old.max())
            self.less += float(old.min())
            usage = old + usage
        self.usage[u] = usage
        self.more += float(usage.max())
        self.less -= float(usage.min())

    def after(self, earlier: _Change) -> _Change:
        """Both together; the two are used up."""
        small, large = sorted((self, earlier), key=lambda c: len(c.usage))
        for u, usage in small.usage.items():
            large.add(u, usage)
        return large


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
            if any(before[b] - before[a] != b - a for a, b in items):
                work.touched.add(u)
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
