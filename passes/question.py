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

from passes.exposure import WAITED, Exposure, role_of
from passes.fold import Folding
from passes.groups import Want
from passes.likeness import place_of
from passes.price import Priced, Pricer
from passes.solve import Edge, MemoryItem, Problem, Solution, choice_cost, solve
from passes.strategies import Strategy

# Positions added at once: the fullest of so many stretches that are too full.
_MOST = 6

Part = tuple[np.ndarray, np.ndarray, np.ndarray]


class Question:
    """Costs of classes and of their meetings, and bytes over time, for the strategies (per class) in `options`.

    Communication counts with the share that `exposure` says is waited for.
    """

    def __init__(
        self, pricer: Pricer, folding: Folding, options: Sequence[tuple[Strategy, ...]], exposure: Exposure = WAITED
    ) -> None:
        self.pricer, self.folding, self.options, self.exposure = pricer, folding, tuple(options), exposure
        self.loose_bytes = folding.occupied.loose_bytes
        groups = folding.program.grouping.groups
        self.compute_s: list[np.ndarray] = []
        self.communication_s: list[np.ndarray] = []
        for k, members in enumerate(folding.classes):
            compute, by_role = pricer.node(groups[members[0]], self.options[k])
            communication = sum((exposure.of(r) * s for r, s in by_role.items()), np.zeros(len(self.options[k])))
            for w in folding.own[k]:
                matrix, row_of, col_of = pricer.pair_matrix(w, self.options[k], self.options[k])
                communication = communication + self.share_of(w) * matrix[row_of, col_of]
            self.compute_s.append(compute)
            self.communication_s.append(communication)
        self.parts = self._parts()
        costs = [len(c) * self.alone_s(k) for k, c in enumerate(folding.classes)]
        pairs: dict[tuple[int, int], list[Part]] = {}
        for m, (matrix, row_of, col_of) in zip(folding.meetings, self.parts, strict=True):
            matrix = matrix if len(m.pairs) == 1 else matrix * len(m.pairs)
            if m.u == m.v:
                costs[m.u] = costs[m.u] + matrix[row_of, col_of]
            elif m.u < m.v:
                pairs.setdefault((m.u, m.v), []).append((matrix, row_of, col_of))
            else:
                pairs.setdefault((m.v, m.u), []).append((matrix.T, col_of, row_of))
        self.costs = tuple(costs)
        self.edges = tuple(Edge(u, v, *combined(parts)) for (u, v), parts in pairs.items())
        self.start, self.end = folding.start, folding.end
        known: dict[tuple[int, int], np.ndarray] = {}
        for k, spec in folding.kinds:
            key = (spec, id(self.options[k]))
            if key not in known:
                known[key] = pricer.usage_bytes(folding.occupied.specs[spec], self.options[k])
        self.usages = [known[spec, id(self.options[k])] for k, spec in folding.kinds]
        self.kind_class = np.array([k for k, _ in folding.kinds], dtype=np.int64)
        self._at = np.cumsum([0, *(u.size for u in self.usages)])[:-1]
        self._flat = np.concatenate(self.usages) if self.usages else np.zeros(0)

    def _parts(self) -> list[Part]:
        """The costs of every kind of meeting: matrix, row of each strategy of u, column of each of v."""
        known: dict[tuple[tuple[int, bool, float], ...], Part] = {}
        out = []
        for m in self.folding.meetings:
            wants = []
            for w, back in m.wants:
                source, target = (m.v, m.u) if back else (m.u, m.v)
                part = self.pricer.pair_matrix(w, self.options[source], self.options[target])
                wants.append((part, back, self.share_of(w)))
            key = tuple((id(part), back, share) for part, back, share in wants)
            if key not in known:
                shared = [((part[0] * share, *part[1:]), back) for part, back, share in wants]
                known[key] = combined([_turned(part) if back else part for part, back in shared])
            out.append(known[key])
        return out

    def share_of(self, want: Want) -> float:
        """The share of a want's communication that is waited for."""
        group = self.folding.program.grouping.groups[place_of(self.folding.program, want).group]
        return self.exposure.of(role_of(self.folding.program, want.value, group))

    def alone_s(self, k: int) -> np.ndarray:
        """Seconds per strategy of one group of class k, whatever the others do."""
        return self.compute_s[k] + self.communication_s[k]

    def priced(self, limit_bytes: float | None) -> Priced:
        """The prices of every group."""
        class_of = self.folding.class_of
        return Priced(
            self.folding,
            self.pricer,
            tuple(class_of),
            {g: self.options[k] for g, k in class_of.items()},
            {g: self.compute_s[k] for g, k in class_of.items()},
            {g: self.communication_s[k] for g, k in class_of.items()},
            limit_bytes,
            self.exposure,
        )

    def problem(self, positions: Sequence[int], limit_bytes: float | None) -> Problem:
        """The problem that knows of memory at these positions."""
        items = []
        for k, position in enumerate(sorted(positions)):
            alive = (self.start <= position) & (position < self.end)
            kinds, counts = np.unique(self.folding.item_kind[alive], return_counts=True)
            by_class: dict[int, np.ndarray] = {}
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
                c, usage = self.folding.kinds[kind][0], self.usages[kind] * count
                by_class[c] = by_class[c] + usage if c in by_class else usage
            items += [MemoryItem(c, k, k + 1, usage) for c, usage in by_class.items()]
        room = None if limit_bytes is None or not positions else limit_bytes - self.loose_bytes
        return Problem(self.costs, self.edges, tuple(items), room)

    def levels(self, choice: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(positions where something changes, bytes from there on) under a choice per class."""
        chosen = np.asarray(choice, dtype=np.int64)[self.kind_class]
        sizes = self._flat[self._at + chosen][self.folding.item_kind] if self.usages else np.zeros(0)
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
        return tuple(choice[k] for k in self.folding.class_of.values())


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


def whole_problem(priced: Priced) -> Problem:
    """The problem of every group and every position, as one may want to study it."""
    folding = priced.folding.unfolded
    question = Question(priced.pricer, folding, [priced.strategies[c[0]] for c in folding.classes], priced.exposure)
    merged: dict[tuple[int, int, int], np.ndarray] = {}
    for item, kind in zip(folding.occupied.items, folding.item_kind.tolist(), strict=True):
        key = (folding.class_of[item.group], item.start, item.end)
        merged[key] = merged[key] + question.usages[kind] if key in merged else question.usages[kind]
    memory = tuple(MemoryItem(n, start, end, usage) for (n, start, end), usage in merged.items())
    limit = None if priced.memory_limit is None else priced.memory_limit - folding.occupied.loose_bytes
    return Problem(question.costs, question.edges, memory, limit)


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
