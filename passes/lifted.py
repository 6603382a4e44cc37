"""From the folded program back to the whole one: a bound that holds for layers that differ, and what they may choose.

A dual solution per class of groups and kind of meeting is one for the whole program: costs are moved between groups and
their meetings by the same amounts everywhere, which changes no layout's cost, and then every part is at least its own
minimum. What a strategy stands above its group's minimum is what it costs at least: the few nearest to it are where
identical layers may differ, by alternating, or by some being lean and others cheap where memory is short.

The amounts are found by diffusion (Schlesinger; Werner, "A linear programming approach to max-sum problem: a review",
2007): every class in turn takes all that its meetings can give and shares it out evenly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from passes.question import Question
from passes.strategies import Strategy

# Turns over all classes, forth and back, and by how much a turn must raise the bound to be followed by another.
_TURNS = 12
_WORTH = 3e-4
# Strategies per group in the unfolded problem.
_NEAREST = 6


@dataclass(frozen=True, slots=True)
class Lifted:
    """`bound_s` is below the price of every layout of the whole program that keeps to the limit. `slack_s` has per kind
    of group what each strategy stands above the kind's minimum; `kind_of` says which group is of which kind."""

    bound_s: float
    slack_s: tuple[np.ndarray, ...]
    kind_of: Mapping[int, int]


def lifted(question: Question, limit_bytes: float, price_s_per_byte: Mapping[int, float] | None = None) -> Lifted:
    """The bound of the whole program; `price_s_per_byte` says what memory is worth at which position (any prices give a
    bound, the right ones a good one)."""
    usage = _PricedUsage(question, price_s_per_byte or {})
    kinds, kind_of = _kinds(question, usage)
    dual = _Dual(question, kinds, usage)
    best = Lifted(-np.inf, (), kind_of)
    for _ in range(_TURNS):
        dual.turn()
        bound, slacks = dual.bound(kinds, usage)
        bound -= usage.room_s(limit_bytes)
        better = bound - best.bound_s
        if better > 0:
            best = Lifted(bound, tuple(slacks), kind_of)
        if not better > _WORTH * abs(bound):
            break
    return best


def nearest(question: Question, found: Lifted, choice: Sequence[int]) -> list[tuple[Strategy, ...]]:
    """Per group (in the folding's order) the strategies that cost least by `found`, and the chosen one (`choice` is per
    class); groups of a kind have one list."""
    out: list[tuple[Strategy, ...]] = []
    known: dict[int, tuple[Strategy, ...]] = {}
    for g, k in question.folding.class_of.items():
        kind = found.kind_of[g]
        if kind not in known:
            order = np.argsort(found.slack_s[kind], kind="stable")[:_NEAREST].tolist()
            known[kind] = tuple(question.options[k][i] for i in sorted({*order, choice[k]}))
        out.append(known[kind])
    return out


@dataclass(frozen=True, slots=True)
class _Kind:
    """Groups of one class (`of`) with equal meetings and equal memory at the priced positions."""

    of: int
    meets: tuple[tuple[tuple[int, int], int], ...]
    usages: tuple[int, ...]
    count: int


class _PricedUsage:
    """What every group takes at the positions where a byte has a price (seconds)."""

    def __init__(self, question: Question, price: Mapping[int, float]) -> None:
        self.question = question
        self.prices = tuple((p, x) for p, x in sorted(price.items()) if x > 0)
        self.of: dict[int, list[int]] = {}
        for k, (position, _) in enumerate(self.prices):
            alive = np.flatnonzero((question.start <= position) & (position < question.end))
            for i in alive.tolist():
                group = question.folding.occupied.items[i].group
                kind = int(question.folding.item_kind[i])
                self.of.setdefault(group, []).append(k * len(question.usages) + kind)

    def cost_s(self, usages: Sequence[int]) -> np.ndarray | float:
        total: np.ndarray | float = 0.0
        for number in usages:
            k, usage = divmod(number, len(self.question.usages))
            total = total + self.prices[k][1] * self.question.usages[usage]
        return total

    def room_s(self, limit_bytes: float) -> float:
        """What the room at these positions is worth."""
        return sum(x for _, x in self.prices) * (limit_bytes - self.question.loose_bytes)


def _kinds(question: Question, usage: _PricedUsage) -> tuple[list[_Kind], dict[int, int]]:
    meets: dict[int, list[tuple[int, int]]] = {g: [] for g in question.folding.class_of}
    for number, m in enumerate(question.folding.meetings):
        for u, v in m.pairs:
            meets[u].append((number, 0))
            meets[v].append((number, 1))
    kinds: dict[tuple[int, tuple[tuple[tuple[int, int], int], ...], tuple[int, ...]], int] = {}
    counts: Counter[int] = Counter()
    kind_of = {}
    for g in question.folding.class_of:
        around = tuple(sorted(Counter(meets[g]).items()))
        key = (question.folding.class_of[g], around, tuple(sorted(usage.of.get(g, ()))))
        kind_of[g] = kinds.setdefault(key, len(kinds))
        counts[kind_of[g]] += 1
    return [_Kind(of, around, usages, counts[k]) for (of, around, usages), k in kinds.items()], kind_of


class _Dual:
    """Per meeting what each row and each column gives to its groups."""

    def __init__(self, question: Question, kinds: Sequence[_Kind], usage: _PricedUsage) -> None:
        self.question = question
        # Infinite costs stay out of sums: what is forbidden costs more than everything else together.
        parts = question.parts
        counts = [len(m.pairs) for m in question.folding.meetings]
        most = [m[np.isfinite(m)].max(initial=0.0) * n for (m, _, _), n in zip(parts, counts, strict=True)]
        self.forbidden = 2.0 * (sum(most) + sum(float(c.max()) for c in question.costs)) + 1.0
        self.matrix = [np.where(np.isfinite(m), m, self.forbidden) for m, _, _ in parts]
        self.rows = [np.zeros(m.shape[0]) for m in self.matrix]
        self.cols = [np.zeros(m.shape[1]) for m in self.matrix]
        self.alone = [question.alone_s(k) for k in range(len(question.options))]
        self.mean = [a.copy() for a in self.alone]
        for kind in kinds:
            self.mean[kind.of] += usage.cost_s(kind.usages) * (kind.count / len(question.folding.classes[kind.of]))
        self.meets: list[list[tuple[int, int, float]]] = [[] for _ in self.alone]
        for n, m in enumerate(question.folding.meetings):
            for side, k in enumerate((m.u, m.v)):
                self.meets[k].append((n, side, len(m.pairs) / len(question.folding.classes[k])))

    def turn(self) -> None:
        order = list(range(len(self.alone)))
        for k in (*order, *reversed(order)):
            self.diffuse(k)

    def diffuse(self, k: int) -> None:
        """Class k takes what its meetings can give, and gives it back in equal parts."""
        parts = self.question.parts
        level = self.mean[k].copy()
        for n, side, times in self.meets[k]:
            left = self.matrix[n] - self.rows[n][:, None] - self.cols[n][None, :]
            if side:
                self.cols[n] += left.min(axis=0)
                level += times * self.cols[n][parts[n][2]]
            else:
                self.rows[n] += left.min(axis=1)
                level += times * self.rows[n][parts[n][1]]
        level -= level.min()
        whole = sum(times for _, _, times in self.meets[k])
        for n, side, _ in self.meets[k]:
            index = parts[n][2] if side else parts[n][1]
            gives = self.cols[n] if side else self.rows[n]
            least = np.full(gives.size, np.inf)
            np.minimum.at(least, index, level)
            gives -= np.where(np.isfinite(least), least, 0.0) / whole

    def bound(self, kinds: Sequence[_Kind], usage: _PricedUsage) -> tuple[float, list[np.ndarray]]:
        total = 0.0
        for m, matrix, p, q in zip(self.question.folding.meetings, self.matrix, self.rows, self.cols, strict=True):
            total += len(m.pairs) * float((matrix - p[:, None] - q[None, :]).min())
        slacks = []
        for kind in kinds:
            level = self.alone[kind.of] + usage.cost_s(kind.usages)
            for (n, side), times in kind.meets:
                _, row_of, col_of = self.question.parts[n]
                level = level + times * (self.cols[n][col_of] if side else self.rows[n][row_of])
            least = float(level.min())
            total += kind.count * least
            slacks.append(level - least)
        return total, slacks
