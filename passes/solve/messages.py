"""Dual bounds by sequential tree-reweighted message passing, compiled.

Kolmogorov, "Convergent tree-reweighted message passing for energy minimization", 2006: every pass over the nodes keeps
or raises the bound. Memory enters through prices per row, added to the node costs.

All numbers are integers held in float64 (`flatten` scales the costs), shares are rounded down, and sums stay below
2^53: the arithmetic is exact, so a bound is a proof and not an estimate.

Whoever edits compiled functions: numba's cache looks at the file of the outermost function alone. After a change here,
touch dual.py and branch.py too (or delete their __pycache__), or the old loop goes on running.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .flat import Flat, copy

# What rounding may take from a sum of priced usages: far more than any sum of that many products can lose.
_MARGIN = 1e-12


@njit(cache=True, nogil=True)
def priced_costs(f: Flat, price: np.ndarray, out: np.ndarray) -> None:
    """`out` [s]: node costs plus `price` [t] times usage, rounded down to integers and certainly not above the truth.

    Prices must be quantised (`quantise`), so that their prefix sums are exact.
    """
    total = np.zeros(price.size + 1)
    for t in range(price.size):
        total[t + 1] = total[t] + price[t]
    for u in range(f.node_start.size - 1):
        a, b = f.node_start[u], f.node_start[u + 1]
        out[a:b] = 0
        priced = False
        for k in range(f.item_start[u], f.item_start[u + 1]):
            rate = total[f.item_last[k]] - total[f.item_first[k]]
            if rate > 0:
                priced = True
                at = f.usage_start[k]
                for i in range(b - a):
                    out[a + i] += rate * f.usage[at + i]
        for i in range(a, b):
            if priced and out[i] > 0:
                out[i] = np.floor(out[i] * (1.0 - _MARGIN) - 1.0)
            out[i] += f.cost[i]


@njit(cache=True, nogil=True)
def quantise(price: np.ndarray) -> float:
    """Round `price` [t] in place to multiples of a power of two that makes its partial sums exact; returns the sum."""
    total = price.sum()
    if total > 0:
        grain = 2.0 ** (np.ceil(np.log2(total)) - 45)
        for t in range(price.size):
            price[t] = np.rint(price[t] / grain) * grain
    return price.sum()


@njit(cache=True, nogil=True)
def room_price(f: Flat, price: np.ndarray) -> float:
    """What the room is worth at `price`, rounded up."""
    total, size = 0.0, 0.0
    for t in range(price.size):
        if price[t] > 0:
            total += price[t] * f.room[t]
            size += price[t] * abs(f.room[t])
    return np.ceil(total + _MARGIN * size) if size > 0 else 0.0


@njit(cache=True, nogil=True)
def usage_of(f: Flat, choice: np.ndarray, out: np.ndarray) -> None:
    """`out` [t]: bytes on every row under `choice` [n]."""
    out[:] = 0
    change = np.zeros(out.size + 1)
    for u in range(choice.size):
        for k in range(f.item_start[u], f.item_start[u + 1]):
            size = f.usage[f.usage_start[k] + choice[u]]
            change[f.item_first[k]] += size
            change[f.item_last[k]] -= size
    live = 0.0
    for t in range(out.size):
        live += change[t]
        out[t] = live


@njit(cache=True, nogil=True)
def cost_of(f: Flat, choice: np.ndarray) -> float:
    """Node plus edge cost of `choice` [n]."""
    total = 0.0
    for u in range(choice.size):
        total += f.cost[f.node_start[u] + choice[u]]
    for k in range(f.edge_u.size):
        r = f.row_of[f.row_start[k] + choice[f.edge_u[k]]]
        c = f.col_of[f.col_start[k] + choice[f.edge_v[k]]]
        total += f.matrix[f.matrix_start[k] + r * f.cols[k] + c]
    return total


@njit(cache=True, nogil=True)
def _gather(f: Flat, cost: np.ndarray, message: np.ndarray, s: int, theta: np.ndarray) -> float:
    """`theta` [strategies of s]: cost plus all messages to s. Returns the share for each chain through s."""
    copy(theta, cost[f.node_start[s] : f.node_start[s + 1]])
    ahead, behind = 0, 0
    for q in range(f.near_start[s], f.near_start[s + 1]):
        k = f.near_edge[q]
        if f.edge_u[k] == s:
            at, to = f.row_start[k], f.row_message[k]
            for i in range(theta.size):
                theta[i] += message[to + f.row_of[at + i]]
            later = f.edge_v[k] > s
        else:
            at, to = f.col_start[k], f.col_message[k]
            for i in range(theta.size):
                theta[i] += message[to + f.col_of[at + i]]
            later = f.edge_u[k] > s
        if later:
            ahead += 1
        else:
            behind += 1
    return 1.0 / max(1, ahead, behind)


@njit(cache=True, nogil=True)
def message_pass(f: Flat, cost: np.ndarray, message: np.ndarray, forward: bool, marginal: np.ndarray) -> float:
    """One pass over the nodes, updating `message` in place; returns the bound.

    `marginal` [s]: how much the bound rises at least if that strategy is forced. Infinite costs forbid strategies; a
    node or an edge without a way left makes the bound infinite.
    """
    nodes = f.node_start.size - 1
    bound = 0.0
    widest = 1
    for k in range(f.rows.size):
        widest = max(widest, f.rows[k], f.cols[k])
    lean = np.empty(widest)
    sent = np.empty(widest)
    for step in range(nodes):
        s = step if forward else nodes - 1 - step
        a, b = f.node_start[s], f.node_start[s + 1]
        theta = marginal[a:b]
        share = _gather(f, cost, message, s, theta)
        least = theta.min()
        if least == np.inf:
            return np.inf
        bound += least
        theta -= least
        for q in range(f.near_start[s], f.near_start[s + 1]):
            k = f.near_edge[q]
            rows, cols, start = f.rows[k], f.cols[k], f.matrix_start[k]
            if f.edge_u[k] == s:
                if (f.edge_v[k] > s) != forward:
                    continue
                lean[:rows] = np.inf
                at, own, to = f.row_start[k], f.row_message[k], f.col_message[k]
                for i in range(b - a):
                    r = f.row_of[at + i]
                    lean[r] = min(lean[r], np.floor(share * theta[i]))
                sent[:cols] = np.inf
                for r in range(rows):
                    if lean[r] == np.inf:
                        continue  # forbidden; its message may be infinite too
                    x = lean[r] - message[own + r]
                    for c in range(cols):
                        sent[c] = min(sent[c], x + f.matrix[start + r * cols + c])
                size = cols
            else:
                if (f.edge_u[k] > s) != forward:
                    continue
                lean[:cols] = np.inf
                at, own, to = f.col_start[k], f.col_message[k], f.row_message[k]
                for i in range(b - a):
                    c = f.col_of[at + i]
                    lean[c] = min(lean[c], np.floor(share * theta[i]))
                for c in range(cols):
                    if lean[c] < np.inf:
                        lean[c] -= message[own + c]
                for r in range(rows):
                    x = np.inf
                    for c in range(cols):
                        x = min(x, lean[c] + f.matrix[start + r * cols + c])
                    sent[r] = x
                size = rows
            least = np.inf
            for c in range(size):
                least = min(least, sent[c])
            if least == np.inf:
                return np.inf
            bound += least
            for c in range(size):
                message[to + c] = sent[c] - least
    return bound


@njit(cache=True, nogil=True)
def rounded(f: Flat, cost: np.ndarray, message: np.ndarray, choice: np.ndarray) -> None:
    """A choice [n] read off the messages: each node its best given the nodes before it. Meant after a backward pass."""
    nodes = f.node_start.size - 1
    widest = 1
    for u in range(nodes):
        widest = max(widest, f.node_start[u + 1] - f.node_start[u])
    theta = np.empty(widest)
    for s in range(nodes):
        a, b = f.node_start[s], f.node_start[s + 1]
        for i in range(b - a):
            theta[i] = cost[a + i]
        for q in range(f.near_start[s], f.near_start[s + 1]):
            k = f.near_edge[q]
            start, cols = f.matrix_start[k], f.cols[k]
            if f.edge_u[k] == s:
                at = f.row_start[k]
                if f.edge_v[k] < s:
                    c = f.col_of[f.col_start[k] + choice[f.edge_v[k]]]
                    for i in range(b - a):
                        theta[i] += f.matrix[start + f.row_of[at + i] * cols + c]
                else:
                    for i in range(b - a):
                        theta[i] += message[f.row_message[k] + f.row_of[at + i]]
            else:
                at = f.col_start[k]
                if f.edge_u[k] < s:
                    r = f.row_of[f.row_start[k] + choice[f.edge_u[k]]]
                    for i in range(b - a):
                        theta[i] += f.matrix[start + r * cols + f.col_of[at + i]]
                else:
                    for i in range(b - a):
                        theta[i] += message[f.col_message[k] + f.col_of[at + i]]
        best = 0
        for i in range(1, b - a):
            if theta[i] < theta[best]:
                best = i
        choice[s] = best
