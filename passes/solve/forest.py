"""Random induced forests, compiled: which nodes a move re-decides, and in which order.

Random numbers come from a state that the caller carries (xorshift), so that a seed gives the same moves everywhere.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .flat import Flat


@njit(cache=True, nogil=True)
def random(state: np.ndarray) -> float:
    """Uniform in [0, 1); xorshift64*, Marsaglia 2003, Vigna 2014."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True, nogil=True)
def normal(state: np.ndarray) -> float:
    total = 0.0
    for _ in range(12):
        total += random(state)
    return total - 6.0


@njit(cache=True, nogil=True)
def _find(parent: np.ndarray, u: int) -> int:
    while parent[u] != u:
        parent[u] = parent[parent[u]]
        u = parent[u]
    return u


@njit(cache=True, nogil=True)
def candidates(
    f: Flat, state: np.ndarray, wanted: int, local: bool, stamp: np.ndarray, mark: int, out: np.ndarray
) -> int:
    """Nodes to consider, in random order: a ball around a random node, or a random sample of all."""
    nodes = f.node_start.size - 1
    if not local:
        for i in range(nodes):
            out[i] = i
        for i in range(min(wanted, nodes)):
            j = i + int(random(state) * (nodes - i))
            out[i], out[j] = out[j], out[i]
        return min(wanted, nodes)
    count = 1
    out[0] = int(random(state) * nodes)
    stamp[out[0]] = mark
    head = 0
    while head < count and count < wanted:
        # Growing from a random open node instead of the oldest makes balls of varied shape.
        j = head + int(random(state) * (count - head))
        out[head], out[j] = out[j], out[head]
        u = out[head]
        head += 1
        for q in range(f.near_start[u], f.near_start[u + 1]):
            k = f.near_edge[q]
            w = f.edge_v[k] if f.edge_u[k] == u else f.edge_u[k]
            if stamp[w] != mark and count < wanted:
                stamp[w] = mark
                out[count] = w
                count += 1
    return count


@njit(cache=True, nogil=True)
def grow_forest(
    f: Flat, picked: np.ndarray, count: int, parent: np.ndarray, inside: np.ndarray, out: np.ndarray
) -> int:
    """The nodes of `picked` that keep the induced graph free of cycles, marked in `inside`; returns how many."""
    size = 0
    for i in range(count):
        u = picked[i]
        good = True
        first = f.near_start[u]
        for q in range(first, f.near_start[u + 1]):
            k = f.near_edge[q]
            w = f.edge_v[k] if f.edge_u[k] == u else f.edge_u[k]
            if inside[w]:
                root = _find(parent, w)
                for p in range(first, q):
                    e = f.near_edge[p]
                    x = f.edge_v[e] if f.edge_u[e] == u else f.edge_u[e]
                    if inside[x] and _find(parent, x) == root:
                        good = False
                        break
                if not good:
                    break
        if not good:
            continue
        parent[u] = u
        for q in range(first, f.near_start[u + 1]):
            k = f.near_edge[q]
            w = f.edge_v[k] if f.edge_u[k] == u else f.edge_u[k]
            if inside[w]:
                parent[_find(parent, w)] = u
        inside[u] = True
        out[size] = u
        size += 1
    return size


@njit(cache=True, nogil=True)
def ordered(
    f: Flat,
    forest: np.ndarray,
    size: int,
    inside: np.ndarray,
    stamp: np.ndarray,
    mark: int,
    order: np.ndarray,
    up: np.ndarray,
) -> None:
    """`order` [size]: roots before children; `up` [n]: the edge to the parent, -1 for roots."""
    count = 0
    for i in range(size):
        if stamp[forest[i]] == mark:
            continue
        root = forest[i]
        stamp[root] = mark
        up[root] = -1
        order[count] = root
        head = count
        count += 1
        while head < count:
            u = order[head]
            head += 1
            for q in range(f.near_start[u], f.near_start[u + 1]):
                k = f.near_edge[q]
                w = f.edge_v[k] if f.edge_u[k] == u else f.edge_u[k]
                if inside[w] and stamp[w] != mark:
                    stamp[w] = mark
                    up[w] = k
                    order[count] = w
                    count += 1
