"""Parts of a core that share neither an edge nor a time at which memory can bind, and their choices put together.

Presolve has dropped the times that no choice can over-fill, so what is joined here is joined for a reason. Each part is
a problem of its own: the least cost is the sum of the parts', and so is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .core import Core


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A core of its own (constant 0) and the numbers [nodes] that its nodes have in the whole core."""

    core: Core
    nodes: np.ndarray


def split(core: Core) -> tuple[Part, ...]:
    """The parts of `core`, smallest (by strategies) first; the core itself as the only part if all hangs together."""
    total = len(core.costs)
    root = list(range(total + core.room.size))  # nodes, then rows

    def find(x: int) -> int:
        while root[x] != x:
            root[x] = root[root[x]]
            x = root[x]
        return x

    for e in core.edges:
        root[find(e.u)] = find(e.v)
    # An interval joins its node to all its rows: neighbouring rows that some interval spans are joined once.
    spans = np.zeros(core.room.size + 1, dtype=np.int64)
    for item in core.items:
        root[find(item.node)] = find(total + item.first)
        spans[item.first + 1] += 1
        spans[item.last] -= 1
    for row in np.flatnonzero(np.cumsum(spans)[:-1]).tolist():
        root[find(total + row)] = find(total + row - 1)
    members: dict[int, list[int]] = {}
    for u in range(total):
        members.setdefault(find(u), []).append(u)
    if len(members) == 1:
        return (Part(core, np.arange(total)),)
    rows: dict[int, list[int]] = {at: [] for at in members}
    for row in range(core.room.size):
        if (at := find(total + row)) in rows:
            rows[at].append(row)
    parts = _extracted(core, members, rows, find)
    return tuple(sorted(parts, key=lambda p: (sum(c.size for c in p.core.costs), int(p.nodes[0]))))


def _extracted(
    core: Core, members: dict[int, list[int]], rows: dict[int, list[int]], find: Callable[[int], int]
) -> list[Part]:
    number = np.zeros(len(core.costs), dtype=np.int64)
    row_number = np.zeros(core.room.size + 1, dtype=np.int64)
    for nodes in members.values():
        number[nodes] = np.arange(len(nodes))
    for own in rows.values():
        row_number[own] = np.arange(len(own))
    edges: dict[int, list[int]] = {at: [] for at in members}
    items: dict[int, list[int]] = {at: [] for at in members}
    for k, e in enumerate(core.edges):
        edges[find(e.u)].append(k)
    for k, item in enumerate(core.items):
        items[find(item.node)].append(k)
    parts = []
    for at, nodes in members.items():
        own_edges = (core.edges[k] for k in edges[at])
        own_items = (core.items[k] for k in items[at])
        part = Core(
            tuple(core.costs[u] for u in nodes),
            tuple(replace(e, u=int(number[e.u]), v=int(number[e.v])) for e in own_edges),
            tuple(
                replace(
                    i,
                    node=int(number[i.node]),
                    first=int(row_number[i.first]),
                    last=int(row_number[i.last - 1]) + 1,
                )
                for i in own_items
            ),
            core.room[rows[at]],
            core.row_ids[rows[at]],
            0.0,
            core.integral,
        )
        parts.append(Part(part, np.array(nodes)))
    return parts


@dataclass(slots=True)
class PartBest:
    """The best choice [nodes of the part] so far, and the bound; `changed` tells the whole.

    Without a choice `cost` may be finite: what the part may cost for the whole to be better than the best known.
    """

    core: Core
    changed: Callable[[str], None]
    choice: np.ndarray | None = None
    cost: float = math.inf
    bound: float = -math.inf

    def offer(self, choice: np.ndarray, stage: str) -> bool:
        """Take `choice` if it fits and is better."""
        cost = self.core.cost(choice)
        if cost >= self.cost or not (self.core.usage(choice) <= self.core.room).all():
            return False
        self.choice, self.cost = choice.copy(), cost
        self.changed(stage)
        return True

    def raise_bound(self, bound: float, stage: str) -> None:
        """Take a higher bound."""
        if bound > self.bound:
            self.bound = bound
            self.changed(stage)


@dataclass(slots=True)
class Joint:
    """The parts' bests as one: `offer` gets every choice of the whole core, `bound` every bound on it."""

    core: Core
    parts: Sequence[Part]
    offer: Callable[[np.ndarray, str], object]
    bound: Callable[[float, str], None]
    bests: list[PartBest] = field(default_factory=list)
    offered: float = math.inf

    def __post_init__(self) -> None:
        self.bests = [PartBest(part.core, self.changed) for part in self.parts]

    @property
    def cost(self) -> float:
        """What the parts' choices cost together; infinite while one has none."""
        if any(b.choice is None for b in self.bests):
            return math.inf
        return self.core.constant + math.fsum(b.cost for b in self.bests)

    def changed(self, stage: str) -> None:
        """Pass on what a part's news mean for the whole."""
        self.bound(self.core.constant + sum(b.bound for b in self.bests), stage)
        cost = self.cost
        if cost < self.offered:
            self.offered = cost
            whole = np.zeros(len(self.core.costs), dtype=np.int64)
            for part, best in zip(self.parts, self.bests, strict=True):
                if best.choice is not None:  # each has one, or the cost would be infinite
                    whole[part.nodes] = best.choice
            self.offer(whole, stage)

    def cap(self, i: int, below: float) -> float:
        """What part i must stay below for the whole to stay below `below`: all others at their bounds."""
        return below - self.core.constant - sum(b.bound for j, b in enumerate(self.bests) if j != i)
