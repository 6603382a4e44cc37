"""Branch and bound on the dual: the exact method, with every bound in exact integers.

A branch forbids strategies by infinite costs. Its bound comes from the message passing of `dual`; strategies whose
forced bound passes the ceiling, or that over-fill a row with everything else at its least, are forbidden too. Best
bound first.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from .dual import Dual, ascend, forced_costs, new_dual
from .flat import Flat

# Turns of the ascent between looks at the clock.
_SLICE = 12


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """An open branch: which strategies it may use [s], and the prices and messages to start from."""

    allowed: np.ndarray
    price: np.ndarray
    message: np.ndarray
    bound: float


@njit(cache=True, nogil=True)
def forbid_overfull(f: Flat, cost: np.ndarray) -> int:
    """Make strategies infinite in `cost` [s] that over-fill a row though all others take their least; how many, -1:
    all.
    """
    rows = f.room.size
    change = np.zeros(rows + 1)
    least = np.zeros(f.item_first.size)
    for u in range(f.node_start.size - 1):
        a, b = f.node_start[u], f.node_start[u + 1]
        for k in range(f.item_start[u], f.item_start[u + 1]):
            low = np.inf
            for i in range(b - a):
                if cost[a + i] < np.inf:
                    low = min(low, f.usage[f.usage_start[k] + i])
            if low == np.inf:
                return -1
            least[k] = low
            change[f.item_first[k]] += low
            change[f.item_last[k]] -= low
    left = np.empty(rows)
    live = 0.0
    for t in range(rows):
        live += change[t]
        left[t] = f.room[t] - live
        if left[t] < 0:
            return -1
    gone = 0
    for u in range(f.node_start.size - 1):
        a, b = f.node_start[u], f.node_start[u + 1]
        for k in range(f.item_start[u], f.item_start[u + 1]):
            worst = 0.0
            for i in range(b - a):
                if cost[a + i] < np.inf:
                    worst = max(worst, f.usage[f.usage_start[k] + i] - least[k])
            if worst == 0:
                continue
            low = np.inf
            for t in range(f.item_first[k], f.item_last[k]):
                low = min(low, left[t])
            if worst > low:
                for i in range(b - a):
                    if cost[a + i] < np.inf and f.usage[f.usage_start[k] + i] - least[k] > low:
                        cost[a + i] = np.inf
                        gone += 1
    return gone


@njit(cache=True, nogil=True)
def _spread(f: Flat, cost: np.ndarray, price: np.ndarray, share: np.ndarray, out: np.ndarray) -> None:
    """`out` [n]: how undecided a node is, times how much priced memory its answer moves."""
    total = np.zeros(price.size + 1)
    for t in range(price.size):
        total[t + 1] = total[t] + price[t]
    for u in range(f.node_start.size - 1):
        a, b = f.node_start[u], f.node_start[u + 1]
        mean, weight, top = 0.0, 0.0, 0.0
        for i in range(a, b):
            if cost[i] < np.inf:
                weight += share[i]
                top = max(top, share[i])
        if weight == 0 or top == weight:
            out[u] = 0.0
            continue
        value = np.zeros(b - a)
        for k in range(f.item_start[u], f.item_start[u + 1]):
            rate = total[f.item_last[k]] - total[f.item_first[k]]
            for i in range(b - a):
                value[i] += rate * f.usage[f.usage_start[k] + i]
        for i in range(b - a):
            mean += share[a + i] * value[i] / weight
        for i in range(b - a):
            out[u] += share[a + i] * abs(value[i] - mean)


@dataclass(slots=True)
class Tree:
    """A search that can be continued: open branches by bound, and the number expanded so far."""

    f: Flat
    heap: list[tuple[float, int, Branch]]
    order: itertools.count[int]
    expanded: int = 0

    @classmethod
    def at(cls, f: Flat, root: Dual) -> Tree:
        order = itertools.count()
        start = Branch(np.isfinite(f.cost), root.price.copy(), root.message.copy(), root.bound)
        return cls(f, [(start.bound, next(order), start)], order)

    @property
    def bound(self) -> float:
        """No choice of lower scaled cost was missed, apart from those at the ceilings given; infinite when all is
        searched.
        """
        return self.heap[0][0] if self.heap else math.inf

    def advance(
        self,
        ceiling: Callable[[], float],
        found: Callable[[np.ndarray], None],
        deadline: float,
        most: int,
        rounds: int = 120,
    ) -> bool:
        """Expand up to `most` branches until `deadline` (monotonic seconds). True: nothing is open up to `ceiling()`.

        The ceiling is the largest scaled cost of interest and may fall meanwhile; `found` gets feasible choices [n].
        """
        for _ in range(most):
            if self.bound > ceiling():
                return True
            if time.monotonic() > deadline:
                return False
            _, _, branch = heapq.heappop(self.heap)
            self.expanded += 1
            try:
                children = _expand(self.f, branch, ceiling, found, rounds, deadline)
            except KeyboardInterrupt:
                heapq.heappush(self.heap, (branch.bound, next(self.order), branch))
                raise
            for child in children:
                heapq.heappush(self.heap, (max(branch.bound, child.bound), next(self.order), child))
        return self.bound > ceiling()


def _expand(
    f: Flat,
    branch: Branch,
    ceiling: Callable[[], float],
    found: Callable[[np.ndarray], None],
    rounds: int,
    deadline: float,
) -> list[Branch]:
    """The branches that a branch leaves open: none, two that split one node's strategies, or itself past `deadline`."""
    cost = np.where(branch.allowed, f.cost, np.inf)
    here = f._replace(cost=cost)
    dual = new_dual(here, branch.price)
    dual.message, dual.bound = branch.message.copy(), branch.bound
    while True:
        gone = forbid_overfull(here, cost)
        if gone < 0:
            return []
        if gone:
            continue
        dual.restart(0.2)
        for _ in range(0, rounds, _SLICE):
            if time.monotonic() > deadline:
                return [branch]
            if ascend(here, dual, _SLICE, ceiling(), patience=25) < _SLICE:
                break
        if dual.over == 0 and dual.cost <= ceiling():
            found(dual.choice)
        if dual.bound > ceiling():
            return []
        bound, forced = forced_costs(here, dual, 3)
        if bound == np.inf or dual.bound > ceiling():
            return []
        bad = (forced > ceiling()) & np.isfinite(cost)
        if not bad.any():
            break
        cost[bad] = np.inf
        open_nodes = (np.add.reduceat(np.isfinite(cost), f.node_start[:-1]) > 1).any()
        # Few more forbidden is not worth another ascent, but a single choice left must be seen to be offered.
        if open_nodes and bad.sum() * 20 < np.isfinite(cost).sum():
            break
    allowed = np.isfinite(cost)
    counts = np.add.reduceat(allowed, f.node_start[:-1])
    if (counts == 0).any():
        return []
    spread = np.zeros(counts.size)
    _spread(here, cost, dual.price, dual.share, spread)
    spread[counts < 2] = -1.0
    u = int(spread.argmax())
    if spread[u] <= 0:
        u = -1 if (counts < 2).all() else int(np.where(counts < 2, 10**9, counts).argmin())
    if u < 0:
        # One choice is left, and the passes above have offered it if it fits.
        return []
    a, b = int(f.node_start[u]), int(f.node_start[u + 1])
    weight = np.where(allowed[a:b], dual.share[a:b], -1.0)
    top = a + int(weight.argmax())
    one, rest = allowed.copy(), allowed.copy()
    one[a:b] = False
    one[top] = True
    rest[top] = False
    return [Branch(x, dual.price, dual.message, dual.bound) for x in (one, rest)]
