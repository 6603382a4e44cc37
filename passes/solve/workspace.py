"""The working copy that presolve edits.

A `Workspace` starts as a normalised copy of a `Problem` (impossible entries infinite, float64, times reduced to those
where memory can peak) and offers the exact edits of presolve, each writing its undo record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .core import Core, CoreEdge, CoreItem, Infeasible, Undo, compact, first_of, used
from .problem import IMPOSSIBLE, Problem

EXACT_LIMIT = 2.0**52  # integers below are exact in float64, sums included


def maximal_times(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Times [rows] whose live sets contain every other time's: the last start before each run of ends."""
    begin = np.unique(starts)
    finish = np.unique(ends)
    # A start is maximal if an interval ends before (or at) the next start.
    upto = np.append(begin[1:], np.iinfo(np.int64).max)
    position = np.searchsorted(finish, begin, side="right")
    ends_next = finish[np.minimum(position, len(finish) - 1)]
    return begin[(position < len(finish)) & (ends_next <= upto)]


@dataclass(slots=True)
class Workspace:
    """The mutable problem that presolve works on. Nodes keep their numbers; `alive` says which are left.

    `touched` collects the nodes whose costs, edges or items changed since the caller emptied it, `untidy` those whose
    intervals may overlap or repeat.
    """

    cost: list[np.ndarray]
    alive: list[bool]
    near: list[dict[int, int]]
    edge_u: list[int]
    edge_v: list[int]
    matrix: list[np.ndarray]
    row_of: list[np.ndarray]
    col_of: list[np.ndarray]
    items: list[dict[tuple[int, int], np.ndarray]]
    base: np.ndarray
    row_ids: np.ndarray
    limit: float
    integral: bool
    constant: float = 0.0
    undo: list[Undo] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    untidy: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, problem: Problem) -> Workspace:
        cost = [_normalised(c) for c in problem.node_costs]
        finite_sum = sum(float(np.abs(c[np.isfinite(c)]).max(initial=0.0)) for c in cost)
        shared: dict[int, np.ndarray] = {}
        largest: dict[int, float] = {}
        for e in problem.edges:
            key = id(e.matrix)
            if key not in shared:
                m = shared[key] = _normalised(e.matrix)
                largest[key] = float(np.abs(m[np.isfinite(m)]).max(initial=0.0))
            finite_sum += largest[key]
        limit = np.inf if problem.memory_limit is None else float(problem.memory_limit)
        work = cls(
            cost=cost,
            alive=[True] * len(cost),
            near=[{} for _ in cost],
            edge_u=[],
            edge_v=[],
            matrix=[],
            row_of=[],
            col_of=[],
            items=[{} for _ in cost],
            base=np.zeros(0),
            row_ids=np.zeros(0, dtype=np.int64),
            limit=limit,
            integral=problem.integral and finite_sum < EXACT_LIMIT,
        )
        if limit < np.inf:
            work._add_memory(problem)
        identity = [np.arange(n) for n in range(max((c.size for c in cost), default=0) + 1)]
        for e in problem.edges:
            row = identity[cost[e.u].size] if e.row_of is None else np.asarray(e.row_of, dtype=np.int64)
            col = identity[cost[e.v].size] if e.col_of is None else np.asarray(e.col_of, dtype=np.int64)
            work.add_edge(e.u, e.v, shared[id(e.matrix)], row, col)
        return work

    @classmethod
    def again(cls, core: Core) -> Workspace:
        """A workspace that goes on from `core`, whose nodes are then the original ones."""
        work = cls(
            cost=list(core.costs),
            alive=[True] * len(core.costs),
            near=[{} for _ in core.costs],
            edge_u=[],
            edge_v=[],
            matrix=[],
            row_of=[],
            col_of=[],
            items=[{} for _ in core.costs],
            base=-core.room,
            row_ids=core.row_ids,
            limit=0.0,
            integral=core.integral,
            constant=core.constant,
        )
        for item in core.items:
            work.add_item(item.node, item.first, item.last, item.usage)
        for e in core.edges:
            work.add_edge(e.u, e.v, e.matrix, e.row_of, e.col_of)
        return work

    def _add_memory(self, problem: Problem) -> None:
        live = [m for m in problem.memory if m.start < m.end and m.usage.size and m.usage.max() > 0]
        starts = np.array([m.start for m in live], dtype=np.int64)
        ends = np.array([m.end for m in live], dtype=np.int64)
        times = maximal_times(starts, ends) if live else np.zeros(1, dtype=np.int64)
        first, last = np.searchsorted(times, starts), np.searchsorted(times, ends)
        self.base = np.zeros(len(times))
        self.row_ids = np.arange(len(times))
        for m, a, b in zip(live, first.tolist(), last.tolist(), strict=True):
            if a < b:
                self.add_item(m.node, a, b, m.usage.astype(np.float64))

    def add_item(self, node: int, first: int, last: int, usage: np.ndarray) -> None:
        """Add usage on rows; what every strategy uses goes to the base, equal intervals are summed."""
        items = self.items[node]
        if (first, last) in items:
            usage = usage + items.pop((first, last))
        least = usage.min() if usage.size else 0.0
        if least:
            self.base[first:last] += least
            usage = usage - least
        if usage.any():
            if items:
                self.untidy.add(node)
            items[first, last] = usage

    def tidy_items(self) -> None:
        """Give every node one usage per row: intervals that do not overlap, the least of each row in the base.

        Two intervals of one node are then no longer taken for independent: the most and the least that a node can use
        at a row are exact.
        """
        for u in sorted(self.untidy):
            items = self.items[u]
            if len(items) < 2:
                continue
            points = sorted({p for span in items for p in span})
            place = {p: i for i, p in enumerate(points)}
            profile = np.zeros((len(points) - 1, self.cost[u].size))
            for (first, last), usage in items.items():
                profile[place[first] : place[last]] += usage
            least = profile.min(axis=1)
            profile -= least[:, None]
            self.base[points[0] : points[-1]] += np.repeat(least, np.diff(points))
            # Neighbouring pieces with the same usages are one.
            new = np.append(True, (profile[1:] != profile[:-1]).any(axis=1)).nonzero()[0]
            ends = np.append(new[1:], len(points) - 1)
            self.items[u] = {
                (points[a], points[b]): profile[a] for a, b in zip(new, ends, strict=True) if profile[a].any()
            }
        self.untidy.clear()

    def add_edge(self, u: int, v: int, matrix: np.ndarray, row_of: np.ndarray, col_of: np.ndarray) -> int:
        """Join u and v; a parallel edge is summed into the one that is there. Returns the edge's number."""
        self.touched |= {u, v}
        old = self.near[u].get(v)
        if old is None:
            number = len(self.matrix)
            self.edge_u.append(u)
            self.edge_v.append(v)
            self.matrix.append(matrix)
            self.row_of.append(row_of)
            self.col_of.append(col_of)
            self.near[u][v] = self.near[v][u] = number
            return number
        if self.edge_u[old] != u:
            matrix, row_of, col_of = matrix.T, col_of, row_of
        one, one_row, one_col = self.matrix[old], self.row_of[old], self.col_of[old]
        row_at, rows = used(one_row * matrix.shape[0] + row_of, one.shape[0] * matrix.shape[0])
        col_at, cols = used(one_col * matrix.shape[1] + col_of, one.shape[1] * matrix.shape[1])
        row_at, col_at = first_of(rows, row_at.size), first_of(cols, col_at.size)
        self.matrix[old] = (
            one[np.ix_(one_row[row_at], one_col[col_at])] + matrix[np.ix_(row_of[row_at], col_of[col_at])]
        )
        self.row_of[old], self.col_of[old] = rows, cols
        return old

    def oriented(self, number: int, u: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """The other end, the matrix with u's strategies on its rows, the map of u, the map of the other end."""
        if self.edge_u[number] == u:
            return self.edge_v[number], self.matrix[number], self.row_of[number], self.col_of[number]
        return self.edge_u[number], self.matrix[number].T, self.col_of[number], self.row_of[number]

    def remove_edge(self, number: int) -> None:
        u, v = self.edge_u[number], self.edge_v[number]
        self.touched |= {u, v}
        del self.near[u][v], self.near[v][u]

    def restrict(self, u: int, keep: np.ndarray, into: np.ndarray | None = None) -> None:
        """Leave the strategies `keep` (numbers, ascending). `into` [strategies] maps removed ones to their better."""
        size = self.cost[u].size
        forward = np.full(size, -1)
        forward[keep] = np.arange(keep.size)
        if into is not None:
            forward = forward[into]
        self.undo.append(Undo("restrict", u, keep, forward=forward))
        self.cost[u] = self.cost[u][keep]
        self.touched.add(u)
        self.touched.update(self.near[u])
        for number in self.near[u].values():
            maps = self.row_of if self.edge_u[number] == u else self.col_of
            maps[number] = maps[number][keep]
        items, self.items[u] = self.items[u], {}
        for (first, last), usage in items.items():
            self.add_item(u, first, last, usage[keep])
        if keep.size == 0:
            raise Infeasible

    def follow(self, v: int, u: int, table: np.ndarray) -> list[int]:
        """v's strategy is `table[u's strategy]`: move everything v has onto u, drop v; the edges that changed."""
        self.undo.append(Undo("follow", v, table, other=u))
        tie = self.near[u][v]
        _, matrix, rows, cols = self.oriented(tie, u)
        self.cost[u] = self.cost[u] + self.cost[v][table] + matrix[rows, cols[table]]
        self.remove_edge(tie)
        for (first, last), usage in self.items[v].items():
            self.add_item(u, first, last, usage[table])
        changed = []
        for number in list(self.near[v].values()):
            w, matrix, rows, cols = self.oriented(number, v)
            self.remove_edge(number)
            changed.append(self.add_edge(u, w, matrix, rows[table], cols))
        self.drop(v)
        return changed

    def fix(self, u: int) -> None:
        """Drop a node with one strategy left: its row of every edge becomes cost of the neighbour."""
        for number in list(self.near[u].values()):
            w, matrix, rows, cols = self.oriented(number, u)
            self.cost[w] = self.cost[w] + matrix[rows[0]][cols]
            self.remove_edge(number)
        self.constant += float(self.cost[u][0])
        self.undo.append(Undo("follow", u, np.zeros(1, dtype=np.int64), other=-1))
        self.drop(u)

    def eliminate(self, u: int) -> None:
        """Drop a node without memory and at most two neighbours: its best answer becomes cost of what is left."""
        around = list(self.near[u].values())
        if not around:
            least = int(np.argmin(self.cost[u]))
            self.constant += float(self.cost[u][least])
            self.undo.append(Undo("follow", u, np.array([least]), other=-1))
        elif len(around) == 1:
            w, matrix, rows, cols = self.oriented(around[0], u)
            total = self.cost[u][:, None] + matrix[rows]
            self.undo.append(Undo("follow", u, total.argmin(axis=0)[cols], other=w))
            self.remove_edge(around[0])
            self.cost[w] = self.cost[w] + total.min(axis=0)[cols]
        else:
            v, left, left_rows, v_map = self.oriented(around[0], u)
            w, right, right_rows, w_map = self.oriented(around[1], u)
            one, two = left[left_rows] + self.cost[u][:, None], right[right_rows]
            best = np.empty((one.shape[1], two.shape[1]), dtype=np.int64)
            matrix = np.empty(best.shape)
            for i in range(one.shape[1]):
                total = one[:, i][:, None] + two
                best[i] = total.argmin(axis=0)
                matrix[i] = total.min(axis=0)
            self.undo.append(Undo("between", u, best[np.ix_(v_map, w_map)], other=v, third=w))
            self.remove_edge(around[0])
            self.remove_edge(around[1])
            self.add_edge(v, w, matrix, v_map, w_map)
        self.drop(u)

    def drop(self, u: int) -> None:
        """Take a node out that nothing joins any more."""
        self.alive[u] = False
        self.items[u] = {}
        self.cost[u] = self.cost[u][:0]

    def whole_bytes(self) -> bool:
        """Whether all usages are whole numbers so small that their sums are exact in float64."""
        if self.limit != np.rint(self.limit) or (self.base != np.rint(self.base)).any():
            return False
        parts = [usage for items in self.items for usage in items.values()]
        total = abs(self.limit) + float(self.base.max(initial=0.0)) + sum(float(p.max()) for p in parts)
        return total < EXACT_LIMIT and all((p == np.rint(p)).all() for p in parts)

    def room(self) -> np.ndarray:
        return self.limit - self.base

    def freeze(self) -> tuple[Core, np.ndarray]:
        """The core and the original numbers [nodes] of its nodes."""
        nodes = np.flatnonzero(self.alive)
        number = np.full(len(self.alive), -1)
        number[nodes] = np.arange(nodes.size)
        numbers = sorted({e for u in nodes for e in self.near[u].values()})
        edges = tuple(
            CoreEdge(
                int(number[self.edge_u[e]]),
                int(number[self.edge_v[e]]),
                *compact(self.matrix[e], self.row_of[e], self.col_of[e]),
            )
            for e in numbers
        )
        items = tuple(
            CoreItem(int(number[u]), first, last, usage)
            for u in nodes.tolist()
            for (first, last), usage in sorted(self.items[u].items(), key=lambda pair: pair[0])
        )
        costs = tuple(self.cost[u] for u in nodes)
        return Core(costs, edges, items, self.room(), self.row_ids, self.constant, self.integral), nodes


def _normalised(costs: np.ndarray) -> np.ndarray:
    return np.where(costs >= IMPOSSIBLE, np.inf, costs).astype(np.float64)
