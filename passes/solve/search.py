"""The anytime search: walkers that make forest moves, side by side and in step.

A walker's moves depend on its seed alone. Walkers meet after a fixed number of moves: the best takes what is better in
the others (path relinking) and all go on from there, so a run is repeatable up to the meeting where its deadline falls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .flat import Flat
from .messages import cost_of, usage_of
from .moves import improve
from .relink import relink

# Prices tried per forest; more finds the edge of the room better, fewer sees more forests.
_TRIES = 8
# A chunk of moves between looks at the clock takes about this long.
_CHUNK_S = 0.25


@dataclass(slots=True)
class Walker:
    """One search: its choice [n], usage [t], prices [t], the state of its random numbers, and how far it is.

    `status`: scaled cost, over-use summed over rows, moves accepted, moves that improved. `pace_s`: seconds per move.
    """

    choice: np.ndarray
    usage: np.ndarray
    price: np.ndarray
    unit: float
    state: np.ndarray
    status: np.ndarray
    pace_s: float = 0.0

    @property
    def key(self) -> tuple[float, float]:
        return float(self.status[1]), float(self.status[0])


def new_walker(f: Flat, choice: np.ndarray, price: np.ndarray, unit: float, seed: int) -> Walker:
    """A walker at `choice`; `unit` is a small price per byte to begin with on rows that have none."""
    usage = np.zeros(f.room.size)
    usage_of(f, choice, usage)
    over = float(np.maximum(usage - f.room, 0.0).sum())
    priced = price[price > 0]
    # splitmix64 of the seed: neighbouring seeds give unrelated streams, and the state is never zero.
    x = (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    state = np.array([(x ^ (x >> 31)) or 1], dtype=np.uint64)
    first = float(priced.mean()) * 0.01 if priced.size else unit
    return Walker(choice.copy(), usage, price.copy(), first, state, np.array([cost_of(f, choice), over, 0.0, 0.0]))


def walk(f: Flat, walkers: Sequence[Walker], moves: int, deadline: float) -> None:
    """Every walker makes `moves` moves, fewer only if `deadline` (monotonic seconds) comes; then they meet."""
    if len(walkers) == 1:
        _walk_one(f, walkers[0], moves, deadline)
        return
    with ThreadPoolExecutor(len(walkers)) as pool:
        for job in [pool.submit(_walk_one, f, w, moves, deadline) for w in walkers]:
            job.result()
    best = min(walkers, key=lambda w: w.key)
    for walker in walkers:
        if walker is not best:
            learn(f, best, walker.choice)
    for walker in walkers:
        if walker.key > best.key:
            take_over(walker, best)


def learn(f: Flat, walker: Walker, guide: np.ndarray) -> bool:
    """Relink the walker's choice with `guide` [n]; whether that made it better."""
    before = walker.key
    relink(f, walker.choice, walker.usage, walker.price, walker.status, guide)
    return walker.key < before


def take_over(walker: Walker, best: Walker) -> None:
    """Go on from where `best` is."""
    walker.choice[:], walker.usage[:], walker.price[:] = best.choice, best.usage, best.price
    walker.status[:2] = best.status[:2]


def _walk_one(f: Flat, walker: Walker, moves: int, deadline: float) -> None:
    nodes = f.node_start.size - 1
    while moves > 0:
        begin = time.monotonic()
        left = deadline - begin
        if left <= 0:
            return
        chunk = 1 if walker.pace_s == 0 else max(1, int(min(_CHUNK_S, left) / walker.pace_s))
        chunk = min(chunk, moves, 1000)
        improve(
            f, walker.choice, walker.usage, walker.price, walker.status, walker.state, chunk, walker.unit, _TRIES, nodes
        )
        walker.pace_s = max(1e-7, (time.monotonic() - begin) / chunk)
        moves -= chunk
