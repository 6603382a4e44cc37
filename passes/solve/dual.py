"""Raising the memory prices and the bound, and what a bound forbids.

Prices start at nothing and grow geometrically on the fullest row of every over-full stretch, each row with its own step
that halves when the row changes sides (resilient propagation). On the contest's instances this gets within 0.1 % of the
optimum in some hundred passes from any scale of costs, where a plain subgradient does not leave the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from .core import Core, Infeasible
from .flat import Flat, copy
from .messages import cost_of, message_pass, priced_costs, quantise, room_price, rounded, usage_of
from .presolve import Presolved, reduce_further

# Sums of priced costs above this are not certainly exact in float64 and prove nothing.
_EXACT = 2.0**52


@dataclass(slots=True)
class Dual:
    """Prices [t], messages and what they gave: `bound` in scaled cost, the best choice [n] read off on the way.

    `over` is that choice's over-use summed over rows, `share` [s] how often a strategy was read off lately. `trial`,
    `step` and `side` [t] are where the ascent stands: prices on trial, steps of their logarithms, side last seen;
    `patience` is the bound when progress was last worth it, and the turns since.
    """

    price: np.ndarray
    message: np.ndarray
    bound: float
    choice: np.ndarray
    over: float
    cost: float
    share: np.ndarray
    trial: np.ndarray
    step: np.ndarray
    side: np.ndarray
    patience: np.ndarray

    def restart(self, step: float) -> None:
        """Go on from the best prices with steps of this size."""
        self.trial = self.price.copy()
        self.step = np.full(self.price.size, step)
        self.side = np.zeros(self.price.size)
        self.patience = np.array([self.bound, 0.0])


@njit(cache=True, nogil=True)
def _largest(f: Flat, cost: np.ndarray) -> float:
    total = 0.0
    for u in range(f.node_start.size - 1):
        high = 0.0
        for i in range(f.node_start[u], f.node_start[u + 1]):
            if cost[i] < np.inf:
                high = max(high, abs(cost[i]))
        total += high
    return total


@njit(cache=True, nogil=True)
def _move_prices(
    f: Flat, usage: np.ndarray, price: np.ndarray, step: np.ndarray, last: np.ndarray, unit: float
) -> None:
    t = 0
    while t < price.size:
        if usage[t] <= f.room[t]:
            if price[t] > 0 and usage[t] < f.room[t]:
                step[t] = max(1e-3, step[t] * 0.5) if last[t] > 0 else min(1.0, step[t] * 1.2)
                last[t] = -1
                price[t] *= np.exp(-step[t])
                if price[t] < unit * 1e-3:
                    price[t] = 0
            t += 1
            continue
        worst = t
        while t < price.size and usage[t] > f.room[t]:
            if usage[t] - f.room[t] > usage[worst] - f.room[worst]:
                worst = t
            t += 1
        step[worst] = max(1e-3, step[worst] * 0.5) if last[worst] < 0 else min(1.0, step[worst] * 1.2)
        last[worst] = 1
        price[worst] = max(unit, price[worst] * np.exp(step[worst]))


@njit(cache=True, nogil=True)
def _ascend(
    f: Flat,
    price: np.ndarray,
    message: np.ndarray,
    choice: np.ndarray,
    share: np.ndarray,
    now: np.ndarray,
    step: np.ndarray,
    last: np.ndarray,
    wait: np.ndarray,
    result: np.ndarray,
    rounds: int,
    patience: int,
    unit: float,
    ceiling: float,
    limit: float,
) -> None:
    """`result`: [bound, over-use and cost of `choice`, rounds made]. `price` becomes the best bound's."""
    nodes, rows = f.node_start.size - 1, price.size
    cost = np.empty(f.cost.size)
    marginal = np.empty(f.cost.size)
    here = np.zeros(nodes, np.int64)
    usage = np.zeros(rows)
    for _ in range(rounds):
        quantise(now)
        priced_costs(f, now, cost)
        message_pass(f, cost, message, True, marginal)
        worth = room_price(f, now)
        bound = message_pass(f, cost, message, False, marginal) - worth
        if bound > result[0] and _largest(f, cost) + abs(worth) < limit:
            result[0] = bound
            copy(price, now)
        rounded(f, cost, message, here)
        usage_of(f, here, usage)
        over = 0.0
        for t in range(rows):
            over += max(0.0, usage[t] - f.room[t])
        if over <= result[1]:
            value = cost_of(f, here)
            if over < result[1] or value < result[2]:
                result[1], result[2] = over, value
                copy(choice, here)
        share *= 0.95
        for u in range(nodes):
            share[f.node_start[u] + here[u]] += 0.05
        result[3] += 1
        if result[0] > ceiling:
            break
        # Worth going on while the bound closes a good part of what is open.
        opened = min(ceiling, result[2] if result[1] == 0 else np.inf) - result[0]
        if result[0] - wait[0] > 0.02 * opened or (opened == np.inf and result[0] > wait[0]):
            wait[0], wait[1] = result[0], 0
        else:
            wait[1] += 1
            if wait[1] > patience:
                break
        _move_prices(f, usage, now, step, last, unit)


def new_dual(f: Flat, price: np.ndarray | None = None) -> Dual:
    """A dual that has not seen a pass yet; `price` [t] to start from."""
    nodes = f.node_start.size - 1
    start = np.zeros(f.room.size) if price is None else price.copy()
    choice = np.zeros(nodes, dtype=np.int64)
    ones, zeros = np.ones(start.size), np.zeros(start.size)
    share = np.zeros(f.cost.size)
    trial, waited = start.copy(), np.array([-np.inf, 0.0])
    message = np.zeros(f.messages + 1)
    return Dual(start, message, -np.inf, choice, np.inf, np.inf, share, trial, ones, zeros, waited)


def first_price(f: Flat) -> float:
    """A price per byte that is surely small beside what matters."""
    finite = f.matrix[np.isfinite(f.matrix) & (f.matrix > 0)]
    finite = finite if finite.size else np.abs(f.cost[f.cost != 0])
    if not finite.size or not f.room.size:
        return 1.0
    return float(np.median(finite)) * 1e-4 / max(1.0, float(f.room.max()))


def ascend(f: Flat, dual: Dual, rounds: int, ceiling: float = np.inf, patience: int = 60) -> int:
    """Up to `rounds` turns of two passes and a price step; stops above `ceiling`. Updates `dual`; returns turns
    made.
    """
    result = np.array([dual.bound, dual.over, dual.cost, 0.0])
    unit = first_price(f)
    limit = _EXACT - float(f.matrix[np.isfinite(f.matrix)].max(initial=0.0)) * 4
    start = dual.trial, dual.step, dual.side, dual.patience
    _ascend(
        f, dual.price, dual.message, dual.choice, dual.share, *start, result, rounds, patience, unit, ceiling, limit
    )
    dual.bound, dual.over, dual.cost = float(result[0]), float(result[1]), float(result[2])
    return int(result[3])


def forced_costs(f: Flat, dual: Dual, passes: int = 6) -> tuple[float, np.ndarray]:
    """The bound at the dual's prices, and [s] a bound if that strategy is forced."""
    cost, marginal = np.empty(f.cost.size), np.empty(f.cost.size)
    quantise(dual.price)
    priced_costs(f, dual.price, cost)
    worth = room_price(f, dual.price)
    forced = np.full(f.cost.size, -np.inf)
    bound = -np.inf
    for turn in range(2 * passes):
        value = message_pass(f, cost, dual.message, turn % 2 == 0, marginal) - worth
        if turn >= 2:
            np.maximum(forced, bound + marginal, out=forced)
        bound = value
    if _largest(f, cost) + abs(worth) >= _EXACT:
        return -np.inf, np.full(f.cost.size, -np.inf)
    dual.bound = max(dual.bound, bound)
    return bound, forced


def cut(core: Core, f: Flat, forced: np.ndarray, ceiling: float) -> Presolved | None:
    """Forbid the strategies that can not be part of a choice of scaled cost up to `ceiling`; None if there are none.

    Raises `Infeasible` when nothing is left, that is when no choice costs `ceiling` or less.
    """
    gone = forced > ceiling
    if not gone.any():
        return None
    costs = []
    for u, cost in enumerate(core.costs):
        part = gone[f.node_start[u] : f.node_start[u + 1]]
        if part.all():
            raise Infeasible
        costs.append(np.where(part, np.inf, cost))
    return reduce_further(core, costs, [e.matrix for e in core.edges])
