"""Path relinking, compiled: from one choice towards another, block by block, keeping what is better on the way.

Two good choices mostly differ in many places that have nothing to do with each other. The nodes in which they differ
fall into blocks that no edge joins; a path adopts the other choice one block at a time. Blocks that save cost and fit
are kept first, then the whole path is walked in the order of what a block gains at the memory prices, which repairs
memory on the way: a block that frees bytes makes room for one that saves cost.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .flat import Flat, copy
from .moves import difference, moved_usage

# A connected block beyond this many nodes is cut into pieces, or the path would be a single step.
_BLOCK_NODES = 40
# Times that all blocks are tried before the walk: one that is kept may make room for another.
_TURNS = 3


@njit(cache=True, nogil=True)
def _blocks(f: Flat, choice: np.ndarray, guide: np.ndarray, order: np.ndarray, starts: np.ndarray) -> int:
    """`order`: the nodes that differ, block after block; block b is `order[starts[b]:starts[b + 1]]`. How many."""
    nodes = choice.size
    seen = np.zeros(nodes, np.bool_)
    count, blocks = 0, 0
    for first in range(nodes):
        if seen[first] or choice[first] == guide[first]:
            continue
        seen[first] = True
        starts[blocks] = count
        order[count] = first
        head = count
        count += 1
        while head < count:
            if head - starts[blocks] == _BLOCK_NODES:
                blocks += 1
                starts[blocks] = head
            u = order[head]
            head += 1
            for q in range(f.near_start[u], f.near_start[u + 1]):
                k = f.near_edge[q]
                w = f.edge_v[k] if f.edge_u[k] == u else f.edge_u[k]
                if not seen[w] and choice[w] != guide[w]:
                    seen[w] = True
                    order[count] = w
                    count += 1
        blocks += 1
    starts[blocks] = count
    return blocks


@njit(cache=True, nogil=True)
def relink(
    f: Flat, choice: np.ndarray, usage: np.ndarray, price: np.ndarray, status: np.ndarray, guide: np.ndarray
) -> int:
    """Improve `choice` [n], its `usage` [t] and `status` [cost, over-use, ...] in place by parts of `guide` [n].

    Returns the number of blocks in which the two differed.
    """
    nodes = choice.size
    order = np.zeros(nodes, np.int64)
    starts = np.zeros(nodes + 1, np.int64)
    blocks = _blocks(f, choice, guide, order, starts)
    inside = np.zeros(nodes, np.bool_)
    new, change, moved = choice.copy(), np.zeros(usage.size + 1), np.zeros(usage.size)
    worth = np.zeros(blocks)
    for _ in range(_TURNS):
        kept = 0
        for b in range(blocks):
            block = order[starts[b] : starts[b + 1]]
            for u in block:
                new[u], inside[u] = guide[u], True
            over = moved_usage(f, block, block.size, choice, new, usage, change, moved)
            gain = difference(f, block, block.size, inside, choice, new)
            worth[b] = gain
            for t in range(usage.size):
                if price[t] > 0:
                    worth[b] += price[t] * (moved[t] - usage[t])
            better = over < status[1] or (over == status[1] and gain < 0)
            if better:
                kept += 1
                status[0] += gain
                status[1] = over
                copy(usage, moved)
            for u in block:
                if better:
                    choice[u] = guide[u]
                new[u], inside[u] = choice[u], False
        if kept == 0:
            break
    _walk(f, choice, usage, status, guide, order, starts, np.argsort(worth))
    return blocks


@njit(cache=True, nogil=True)
def _walk(
    f: Flat,
    choice: np.ndarray,
    usage: np.ndarray,
    status: np.ndarray,
    guide: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    sequence: np.ndarray,
) -> None:
    """The whole path from `choice` to `guide`, blocks in this sequence; `choice` becomes the best seen."""
    here, there = choice.copy(), choice.copy()
    inside = np.zeros(choice.size, np.bool_)
    at, change, moved = usage.copy(), np.zeros(usage.size + 1), np.zeros(usage.size)
    cost = status[0]
    least_over, least_cost, best = status[1], status[0], 0
    for steps in range(sequence.size):
        b = sequence[steps]
        block = order[starts[b] : starts[b + 1]]
        for u in block:
            there[u], inside[u] = guide[u], True
        over = moved_usage(f, block, block.size, here, there, at, change, moved)
        cost += difference(f, block, block.size, inside, here, there)
        copy(at, moved)
        for u in block:
            here[u], inside[u] = guide[u], False
        if over < least_over or (over == least_over and cost < least_cost):
            least_over, least_cost, best = over, cost, steps + 1
    if best == 0:
        return
    for b in sequence[:best]:
        block = order[starts[b] : starts[b + 1]]
        for u in block:
            new_u = guide[u]
            for k in range(f.item_start[u], f.item_start[u + 1]):
                more = f.usage[f.usage_start[k] + new_u] - f.usage[f.usage_start[k] + choice[u]]
                if more != 0:
                    usage[f.item_first[k] : f.item_last[k]] += more
            choice[u] = new_u
    status[0], status[1] = least_cost, least_over
