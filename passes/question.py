"""The assignment problem of one program on one mesh: a node per class of groups, memory only where it binds.

Memory could bind at every position of the program, and does at a few. So the problem starts without any, and the
positions at which the best choice does not fit are added until it does: then it is the best of all that fit. Every
problem on the way leaves constraints out and nothing else, so that its bound holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from passes.fold import Folding, unfolded
from passes.occupancy import Occupancy, occupancy
from passes.price import Priced
from passes.solve import Edge, MemoryItem, Problem, Solution, choice_cost, solve

# Positions added at once: the fullest of so many stretches that are too full.
_MOST = 6

Part = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """All that one kind of neighbours want of each other: `matrix[row_of[strategy of u], col_of[strategy of v]]` in
    seconds, for groups of class `u` with groups of class `v`; `pairs` are the groups that meet so."""

    u: int
    v: int
    matrix: np.ndarray
    row_of: np.ndarray
    col_of: np.ndarray
    pairs: list[tuple[int, int]]


class Question:
    """Costs of classes and of their meetings, and bytes over time."""

    def __init__(self, priced: Priced, occupied: Occupancy, folding: Folding) -> None:
        self.priced, self.folding, self.occupied = priced, folding, occupied
        self.loose_bytes = occupied.loose_bytes
        self.meetings = meetings_of(priced, folding)
        costs = [len(c) * priced.node_s(c[0]) for c in folding.classes]
        pairs: dict[tuple[int, int], list[Part]] = {}
        for m in self.meetings:
            matrix = m.matrix if len(m.pairs) == 1 else m.matrix * len(m.pairs)
            if m.u == m.v:
                costs[m.u] = costs[m.u] + matrix[m.row_of, m.col_of]
            elif m.u < m.v:
                pairs.setdefault((m.u, m.v), []).append((matrix, m.row_of, m.col_of))
            else:
                pairs.setdefault((m.v, m.u), []).append((matrix.T, m.col_of, m.row_of))
        self.costs = tuple(costs)
        self.edges = tuple(Edge(u, v, *combined(parts)) for (u, v), parts in pairs.items())
        self.usages: list[np.ndarray] = []
        self._count(occupied)

    def _count(self, occupied: Occupancy) -> None:
        number: dict[int, int] = {}
        for item in occupied.items:
            if id(item.usage) not in number:
                number[id(item.usage)] = len(self.usages)
                self.usages.append(item.usage)
        self.item_class = np.array([self.folding.class_of[i.group] for i in occupied.items], dtype=np.int64)
        self.item_usage = np.array([number[id(i.usage)] for i in occupied.items], dtype=np.int64)
        self.start = np.array([i.start for i in occupied.items], dtype=np.int64)
        self.end = np.array([i.end for i in occupied.items], dtype=np.int64)
        offsets = np.cumsum([0, *(u.size for u in self.usages)])
        self._flat = np.concatenate(self.usages) if self.usages else np.zeros(0)
        self._at = offsets[self.item_usage] if len(occupied.items) else self.item_usage

    def problem(self, positions: Sequence[int], limit_bytes: float | None) -> Problem:
        """The problem that knows of memory at these positions."""
        items = []
        for k, position in enumerate(sorted(positions)):
            alive = (self.start <= position) & (position < self.end)
            keys, counts = np.unique(
                self.item_class[alive] * len(self.usages) + self.item_usage[alive], return_counts=True
            )
            by_class: dict[int, np.ndarray] = {}
            for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
                c, u = divmod(key, len(self.usages))
                usage = self.usages[u] * count
                by_class[c] = by_class[c] + usage if c in by_class else usage
            items += [MemoryItem(c, k, k + 1, usage) for c, usage in by_class.items()]
        room = None if limit_bytes is None or not positions else limit_bytes - self.loose_bytes
        return Problem(self.costs, self.edges, tuple(items), room)

    def levels(self, choice: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(positions where something changes, bytes from there on) under a choice per class."""
        sizes = self._flat[self._at + np.asarray(choice, dtype=np.int64)[self.item_class]]
        at, inverse = np.unique(np.concatenate([self.start, self.end]), return_inverse=True)
        change = np.bincount(inverse, weights=np.concatenate([sizes, -sizes]), minlength=at.size)
        return at, np.cumsum(change) + self.loose_bytes

    def peak_bytes(self, choice: Sequence[int]) -> float:
        return float(self.levels(choice)[1].max(initial=self.loose_bytes))

    def levels_at(self, positions: Sequence[int], choice: Sequence[int]) -> np.ndarray:
        """Bytes at these positions."""
        at, level = self.levels(choice)
        level = np.concatenate([[self.loose_bytes], level])
        return level[np.searchsorted(at, np.asarray(positions, dtype=np.int64), side="right")]

    def cost_s(self, choice: Sequence[int]) -> float:
        """The linear price of a choice per class."""
        return choice_cost(self.problem((), None), choice)

    def too_full(self, choice: Sequence[int], limit_bytes: float) -> list[int]:
        """The fullest positions of the stretches that exceed the limit, fullest first."""
        at, level = self.levels(choice)
        over = level > limit_bytes * (1 + 1e-12)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], over.astype(np.int8), [0]])))
        tops = [a + int(np.argmax(level[a:b])) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return [int(at[i]) for i in sorted(tops, key=lambda i: -level[i])[:_MOST]]

    def spread(self, choice: Sequence[int]) -> tuple[int, ...]:
        """A choice per class as a choice per group, in the order of `priced.order`."""
        return tuple(choice[self.folding.class_of[g]] for g in self.priced.order)


@dataclass(slots=True)
class Answer:
    """What was found, with a choice per class. `positions` are those at which memory was looked at; `free_cost_s` and
    `free_peak_bytes` are of the best choice where memory does not count."""

    solution: Solution
    positions: list[int]
    free_cost_s: float = 0.0
    free_peak_bytes: float = 0.0


def answer(
    question: Question, limit_bytes: float | None, deadline: float, seed: int = 0, positions: Sequence[int] = ()
) -> Answer:
    """The best choice within the limit, by the memory model of `occupancy`; `deadline` as of `time.monotonic`."""
    known = list(positions)
    bound = free_cost = free_peak = 0.0
    warm: tuple[int, ...] | None = None
    while True:
        left = max(1.0, deadline - time.monotonic())
        problem = question.problem(known, limit_bytes)
        solution = solve(problem, time_limit_s=left, seed=seed, warm_start=warm)
        bound = max(bound, solution.bound)
        if not known and solution.choice is not None:
            free_cost, free_peak = solution.cost, question.peak_bytes(solution.choice)
        if solution.choice is None or limit_bytes is None:
            break
        more = [p for p in question.too_full(solution.choice, limit_bytes) if p not in known]
        if not more:
            break
        warm = solution.choice
        known += more
        if time.monotonic() > deadline:
            # Nothing that fits is known yet: not an answer.
            solution = replace(solution, choice=None, status="unknown")
            break
    return Answer(replace(solution, bound=min(bound, solution.cost)), known, free_cost, free_peak)


def least(
    question: Question, time_limit_s: float, seed: int = 0, positions: Sequence[int] = ()
) -> tuple[int, ...] | None:
    """A choice per class of (nearly) the least peak; None where time ran out before one was found."""
    known = list(positions)
    deadline = time.monotonic() + time_limit_s
    best: tuple[int, ...] | None = None
    if not known:
        free = solve(question.problem([], None), time_limit_s=time_limit_s, seed=seed)
        if free.choice is None:
            return None
        known = question.too_full(free.choice, 0.98 * question.peak_bytes(free.choice))
        best = free.choice
    while True:
        # A limit that nothing can meet makes the solver say what the least is.
        tight = question.loose_bytes + 1.0
        over = solve(question.problem(known, tight), time_limit_s=max(1.0, deadline - time.monotonic()), seed=seed)
        found = over.choice or over.least_over
        if found is None:
            return best
        if best is None or question.peak_bytes(found) < question.peak_bytes(best):
            best = found
        there = max(tight, float(question.levels_at(known, found).max()))
        more = [p for p in question.too_full(found, 1.01 * there) if p not in known]
        if not more or time.monotonic() > deadline:
            return best
        known += more


def meetings_of(priced: Priced, folding: Folding) -> tuple[Meeting, ...]:
    """Every kind of meeting of two groups, once."""
    parts: dict[int, Part] = {}
    wanted: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for w in priced.program.grouping.wants:
        u, v = priced.pricer.place_of(w).group, w.consumer
        if u != v:
            part = priced.pair(w)
            parts[id(part)] = part
            wanted.setdefault((min(u, v), max(u, v)), []).append((id(part), u > v))
    known: dict[object, Meeting] = {}
    for (u, v), between in wanted.items():
        between.sort()
        key = (folding.class_of[u], folding.class_of[v], *between)
        if key not in known:
            turned = [_turned(parts[k]) if back else parts[k] for k, back in between]
            known[key] = Meeting(folding.class_of[u], folding.class_of[v], *combined(turned), [])
        known[key].pairs.append((u, v))
    return tuple(known.values())


def whole_problem(priced: Priced) -> Problem:
    """The problem of every group and every position, as one may want to study it."""
    occupied = occupancy(priced)
    merged: dict[tuple[int, int, int], np.ndarray] = {}
    for i in occupied.items:
        key = (priced.number[i.group], i.start, i.end)
        merged[key] = merged[key] + i.usage if key in merged else i.usage
    memory = tuple(MemoryItem(n, start, end, usage) for (n, start, end), usage in merged.items())
    limit = None if priced.memory_limit is None else priced.memory_limit - occupied.loose_bytes
    edges = tuple(
        Edge(priced.number[u], priced.number[v], m.matrix, m.row_of, m.col_of)
        for m in meetings_of(priced, unfolded(priced))
        for u, v in m.pairs
    )
    return Problem(tuple(priced.node_s(g) for g in priced.order), edges, memory, limit)


def _turned(part: Part) -> Part:
    matrix, row_of, col_of = part
    return matrix.T, col_of, row_of


def combined(parts: Sequence[Part]) -> Part:
    """One matrix for several: rows and columns that agree in every part are one."""
    if len(parts) == 1:
        return parts[0]
    rows, row_of = np.unique(np.stack([p[1] for p in parts]), axis=1, return_inverse=True)
    cols, col_of = np.unique(np.stack([p[2] for p in parts]), axis=1, return_inverse=True)
    matrix = np.zeros((rows.shape[1], cols.shape[1]))
    for k, (m, _, _) in enumerate(parts):
        matrix += m[np.ix_(rows[k], cols[k])]
    return matrix, row_of.reshape(-1), col_of.reshape(-1)
