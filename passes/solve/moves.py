"""The compiled move of the search: a random induced forest, re-decided exactly by dynamic programming at memory prices.

All nodes outside the forest keep their strategy. Within it the cheapest combination at given prices per row is found by
min-plus dynamic programming; prices on over-full rows are raised until the combination fits or the tries are used up.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .flat import Flat, copy
from .forest import candidates, grow_forest, normal, ordered, random


@njit(cache=True, nogil=True)
def _boundary(f: Flat, order: np.ndarray, size: int, inside: np.ndarray, choice: np.ndarray, fixed: np.ndarray) -> None:
    """`fixed` [s]: of every forest node its own cost plus its edges to nodes outside."""
    for step in range(size):
        u = order[step]
        a, b = f.node_start[u], f.node_start[u + 1]
        for i in range(a, b):
            fixed[i] = f.cost[i]
        for q in range(f.near_start[u], f.near_start[u + 1]):
            k = f.near_edge[q]
            start, cols = f.matrix_start[k], f.cols[k]
            if f.edge_u[k] == u:
                w = f.edge_v[k]
                if not inside[w]:
                    c = f.col_of[f.col_start[k] + choice[w]]
                    at = f.row_start[k]
                    for i in range(b - a):
                        fixed[a + i] += f.matrix[start + f.row_of[at + i] * cols + c]
            else:
                w = f.edge_u[k]
                if not inside[w]:
                    r = f.row_of[f.row_start[k] + choice[w]]
                    at = f.col_start[k]
                    for i in range(b - a):
                        fixed[a + i] += f.matrix[start + r * cols + f.col_of[at + i]]


@njit(cache=True, nogil=True)
def _read_off(
    f: Flat,
    order: np.ndarray,
    size: int,
    up: np.ndarray,
    theta: np.ndarray,
    back: np.ndarray,
    choice: np.ndarray,
) -> None:
    """Roots take their best, children the answer that `back` holds for their parent's strategy."""
    for step in range(size):
        u = order[step]
        k = up[u]
        if k < 0:
            a, b = f.node_start[u], f.node_start[u + 1]
            best = a
            for i in range(a + 1, b):
                if theta[i] < theta[best]:
                    best = i
            choice[u] = best - a
        elif f.edge_u[k] == u:
            choice[u] = back[f.col_start[k] + choice[f.edge_v[k]]]
        else:
            choice[u] = back[back.size // 2 + f.row_start[k] + choice[f.edge_u[k]]]


@njit(cache=True, nogil=True)
def _decide(
    f: Flat,
    order: np.ndarray,
    size: int,
    up: np.ndarray,
    fixed: np.ndarray,
    total: np.ndarray,
    theta: np.ndarray,
    back: np.ndarray,
    lean: np.ndarray,
    arg: np.ndarray,
    choice: np.ndarray,
) -> None:
    """Dynamic programming over the forest at prices whose prefix sums are `total` [t + 1]; writes `choice`."""
    for step in range(size):
        u = order[step]
        a, b = f.node_start[u], f.node_start[u + 1]
        for i in range(a, b):
            theta[i] = fixed[i]
        for k in range(f.item_start[u], f.item_start[u + 1]):
            rate = total[f.item_last[k]] - total[f.item_first[k]]
            if rate > 0:
                at = f.usage_start[k]
                for i in range(b - a):
                    theta[a + i] += rate * f.usage[at + i]
    for step in range(size - 1, -1, -1):
        u = order[step]
        k = up[u]
        if k < 0:
            continue
        a, b = f.node_start[u], f.node_start[u + 1]
        rows, cols, start = f.rows[k], f.cols[k], f.matrix_start[k]
        if f.edge_u[k] == u:
            own, at, width = rows, f.row_start[k], cols
            w, w_at = f.edge_v[k], f.col_start[k]
        else:
            own, at, width = cols, f.col_start[k], rows
            w, w_at = f.edge_u[k], f.row_start[k]
        mine = f.row_of if f.edge_u[k] == u else f.col_of
        theirs = f.col_of if f.edge_u[k] == u else f.row_of
        for r in range(own):
            lean[r] = np.inf
        for i in range(b - a):
            r = mine[at + i]
            if theta[a + i] < lean[r]:
                lean[r] = theta[a + i]
                arg[r] = i
        wa, wb = f.node_start[w], f.node_start[w + 1]
        message = lean[own : own + width]
        place = arg[own : own + width]
        message[:] = np.inf
        place[:] = 0
        if f.edge_u[k] == u:
            for r in range(rows):
                x = lean[r]
                if x == np.inf:
                    continue
                for c in range(cols):
                    y = x + f.matrix[start + r * cols + c]
                    if y < message[c]:
                        message[c] = y
                        place[c] = arg[r]
        else:
            for r in range(rows):
                for c in range(cols):
                    y = lean[c] + f.matrix[start + r * cols + c]
                    if y < message[r]:
                        message[r] = y
                        place[r] = arg[c]
        for j in range(wb - wa):
            c = theirs[w_at + j]
            theta[wa + j] += message[c]
            # The answer of u to each strategy of its parent.
            back[w_at + j if f.edge_u[k] == u else back.size // 2 + w_at + j] = place[c]
    _read_off(f, order, size, up, theta, back, choice)


@njit(cache=True, nogil=True)
def difference(f: Flat, order: np.ndarray, size: int, inside: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """Exact cost of `new` minus `old`, which differ in forest nodes only."""
    total = 0.0
    for step in range(size):
        u = order[step]
        a = f.node_start[u]
        if old[u] != new[u]:
            total += f.cost[a + new[u]] - f.cost[a + old[u]]
        for q in range(f.near_start[u], f.near_start[u + 1]):
            k = f.near_edge[q]
            p, w = f.edge_u[k], f.edge_v[k]
            if (p == u and inside[w] and w < u) or (w == u and inside[p] and p < u):
                continue  # counted at the other end
            if old[p] != new[p] or old[w] != new[w]:
                start, cols = f.matrix_start[k], f.cols[k]
                rs, cs = f.row_start[k], f.col_start[k]
                total += f.matrix[start + f.row_of[rs + new[p]] * cols + f.col_of[cs + new[w]]]
                total -= f.matrix[start + f.row_of[rs + old[p]] * cols + f.col_of[cs + old[w]]]
    return total


@njit(cache=True, nogil=True)
def moved_usage(
    f: Flat,
    order: np.ndarray,
    size: int,
    old: np.ndarray,
    new: np.ndarray,
    usage: np.ndarray,
    change: np.ndarray,
    out: np.ndarray,
) -> float:
    """`out` [t]: usage after the move; returns the sum of what exceeds the room."""
    change[:] = 0
    for step in range(size):
        u = order[step]
        if old[u] == new[u]:
            continue
        for k in range(f.item_start[u], f.item_start[u + 1]):
            at = f.usage_start[k]
            size_change = f.usage[at + new[u]] - f.usage[at + old[u]]
            if size_change != 0:
                change[f.item_first[k]] += size_change
                change[f.item_last[k]] -= size_change
    live = 0.0
    over = 0.0
    for t in range(usage.size):
        live += change[t]
        out[t] = usage[t] + live
        if out[t] > f.room[t]:
            over += out[t] - f.room[t]
    return over


@njit(cache=True, nogil=True)
def _raise_prices(f: Flat, usage: np.ndarray, price: np.ndarray, factor: float, unit: float) -> None:
    """Raise the price of the fullest row of every over-full stretch."""
    t = 0
    rows = usage.size
    while t < rows:
        if usage[t] <= f.room[t]:
            t += 1
            continue
        worst = t
        while t < rows and usage[t] > f.room[t]:
            if usage[t] - f.room[t] > usage[worst] - f.room[worst]:
                worst = t
            t += 1
        price[worst] = price[worst] * factor + unit


@njit(cache=True, nogil=True)
def _scatter(price: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
    """`out` [t]: `price` times a random factor for all and one for every row."""
    spread = 0.05 + 0.6 * random(state)
    scale = np.exp(0.7 * spread * normal(state))
    for t in range(price.size):
        out[t] = price[t] * scale * np.exp(spread * normal(state)) if price[t] > 0 else 0.0


@njit(cache=True, nogil=True)
def _accept(
    order: np.ndarray,
    size: int,
    new: np.ndarray,
    moved: np.ndarray,
    over: float,
    gain: float,
    choice: np.ndarray,
    usage: np.ndarray,
    status: np.ndarray,
) -> None:
    status[2] += 1
    status[0] += gain
    status[1] = over
    copy(usage, moved)
    for i in range(size):
        choice[order[i]] = new[order[i]]


@njit(cache=True, nogil=True)
def improve(
    f: Flat,
    choice: np.ndarray,
    usage: np.ndarray,
    price: np.ndarray,
    status: np.ndarray,
    state: np.ndarray,
    moves: int,
    unit: float,
    tries: int,
    largest: int,
) -> None:
    """Make `moves` moves in place. `status`: [cost, over-use summed over rows, moves accepted, moves that improved].

    `price` [t] is where moves start from; it follows the prices that led to accepted moves. `unit` is a first price.
    """
    nodes = f.node_start.size - 1
    rows = usage.size
    strategies = f.cost.size
    widest = 1
    for k in range(f.rows.size):
        widest = max(widest, f.rows[k], f.cols[k])
    stamp = np.zeros(nodes, np.int64)
    seen = np.zeros(nodes, np.int64)
    inside = np.zeros(nodes, np.bool_)
    parent = np.zeros(nodes, np.int64)
    picked = np.zeros(nodes, np.int64)
    forest = np.zeros(nodes, np.int64)
    order = np.zeros(nodes, np.int64)
    up = np.zeros(nodes, np.int64)
    fixed = np.zeros(strategies)
    theta = np.zeros(strategies)
    back = np.zeros(2 * max(1, f.row_of.size, f.col_of.size), np.int64)
    lean = np.zeros(2 * widest)
    arg = np.zeros(2 * widest, np.int64)
    new = choice.copy()
    local_price = np.zeros(rows)
    total = np.zeros(rows + 1)
    change = np.zeros(rows + 1)
    moved = np.zeros(rows)
    for move in range(moves):
        local = random(state) < 0.7
        wanted = max(1, int(np.exp(random(state) * np.log(largest + 1.0))))
        count = candidates(f, state, min(nodes, wanted), local, stamp, move + 1, picked)
        size = grow_forest(f, picked, count, parent, inside, forest)
        ordered(f, forest, size, inside, seen, move + 1, order, up)
        _boundary(f, order, size, inside, choice, fixed)
        _scatter(price, state, local_price)
        factor = 1.1 + 0.9 * random(state)
        raised = 0
        for _ in range(tries):
            for t in range(rows):
                total[t + 1] = total[t] + local_price[t]
            _decide(f, order, size, up, fixed, total, theta, back, lean, arg, new)
            over = moved_usage(f, order, size, choice, new, usage, change, moved)
            if over < status[1] or (over == 0 and status[1] == 0):
                gain = difference(f, order, size, inside, choice, new)
                if over < status[1] or gain <= 0:
                    if gain < 0 or over < status[1]:
                        status[3] += 1
                        for t in range(rows):
                            price[t] += 0.1 * (local_price[t] - price[t])
                    _accept(order, size, new, moved, over, gain, choice, usage, status)
            if over == 0:
                # It fits: cheaper memory may give a cheaper choice that still fits.
                if raised > 0:
                    factor = 1.0 + 0.5 * (factor - 1.0)
                raised = -1
                for t in range(rows):
                    local_price[t] /= factor
            else:
                if raised < 0:
                    factor = 1.0 + 0.5 * (factor - 1.0)
                raised = 1
                _raise_prices(f, moved, local_price, factor, unit)
            if factor < 1.01:
                break
        for i in range(size):
            new[order[i]] = choice[order[i]]
            inside[order[i]] = False
