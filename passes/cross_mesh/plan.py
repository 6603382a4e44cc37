"""From (shape, dtype, two placements, topology) to a plan of who sends what to whom in which order, and its bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cost_model.machine import Topology
from passes.cross_mesh import flows
from passes.cross_mesh.bound import Bound, lower_bound
from passes.cross_mesh.order import turns
from passes.cross_mesh.routes import Hop, Style, routes
from passes.cross_mesh.tiles import Atom, Box, Placement, atoms
from passes.cross_mesh.wiring import wiring

MOST_PIECES = 20_000
"""Pieces in all (times the links that they pass) that a plan is cut into: more would take longer to plan than they save
in the transfer."""
STYLES = (
    Style(once=False, pairs=True),
    Style(pairs=True),
    Style(),
    Style(gather=False),
    Style(ways=2),
    Style(ways=4),
    Style(ways=6),
    Style(shape="tree"),
    Style(shape="star"),
    Style(once=False, shape="star", pairs=True),
)
"""Ways to send, the simplest first; tried until one meets the bound."""
_ENOUGH = 1.002  # makespan over bound at which no finer pieces are tried


@dataclass(frozen=True, slots=True)
class Send:
    """One device sends the block `box` of the array to another, in `pieces`, between `start_s` and `end_s`.

    `after` is the task that brought the block to the sender (-1: it holds it), `network` whether it leaves the node.
    """

    id: int
    sender: int
    receiver: int
    box: Box
    size_bytes: int
    pieces: int
    after: int
    network: bool
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Move:
    """The plan of one transfer: `sends` in the order in which they start.

    `makespan_s` is simulated, `bound` certified; `size_bytes` of the whole array, `moved_bytes` the sum of all sends.
    """

    shape: tuple[int, ...]
    itemsize: int
    source: Placement
    destination: Placement
    topology: Topology
    sends: tuple[Send, ...]
    loads: tuple[flows.Load, ...]
    rounds: int
    makespan_s: float
    bound: Bound

    @property
    def ratio(self) -> float:
        """Simulated makespan over the bound; 1.0 when nothing moves."""
        return self.makespan_s / self.bound.time_s if self.bound.time_s > 0 else 1.0

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def moved_bytes(self) -> int:
        return sum(s.size_bytes for s in self.sends)


def plan_move(
    shape: tuple[int, ...],
    itemsize: int,
    source: Placement,
    destination: Placement,
    topology: Topology,
    devices_per_card: int | None = None,
) -> Move:
    """Plan to move an array of `shape` and `itemsize` bytes per element; device indices are the topology's.

    All of STYLES are tried, and pieces from coarse to fine while finer ones help; the shortest simulated makespan wins.
    Raises BadPlacement and BadCards.
    """
    source.check(shape)
    destination.check(shape)
    wires = wiring(topology, devices_per_card)
    blocks = atoms(shape, source, destination)
    bound = lower_bound(blocks, itemsize, wires)
    best: tuple[flows.Clock, int, tuple[Hop, ...]] | None = None
    seen: set[tuple[Hop, ...]] = set()
    for style in STYLES:
        if style.ways > 1 and all(dim.kind != "torus" for dim in topology.dims):
            continue
        hops = routes(blocks, itemsize, wires, style)
        seconds = flows.hop_seconds(hops, topology)
        # The busiest card alone may take longer than a plan that is known already.
        if hops in seen or (best is not None and _busiest(hops, seconds) >= best[0].makespan_s):
            continue
        seen.add(hops)
        clock, rounds = _timed(hops, seconds, topology, bound.time_s)
        if best is None or clock.makespan_s < best[0].makespan_s * (1 - 1e-9):
            best = (clock, rounds, hops)
        if best[0].makespan_s <= bound.time_s * _ENOUGH:
            break
    assert best is not None
    clock, rounds, hops = best
    sends = _sends(hops, blocks, clock, rounds, wires.islands)
    return Move(
        shape, itemsize, source, destination, topology, sends, clock.loads, rounds, clock.makespan_s, bound
    )  # fmt: skip


def least_s(
    shape: tuple[int, ...],
    itemsize: int,
    source: Placement,
    destination: Placement,
    topology: Topology,
    devices_per_card: int | None = None,
) -> float:
    """The lower bound alone, in seconds: a quick estimate of a transfer, which plans of large arrays come close to.

    Raises BadPlacement and BadCards.
    """
    source.check(shape)
    destination.check(shape)
    return lower_bound(atoms(shape, source, destination), itemsize, wiring(topology, devices_per_card)).time_s


def _timed(
    hops: Sequence[Hop], seconds: Sequence[float], topology: Topology, bound_s: float
) -> tuple[flows.Clock, int]:
    """The best number of rounds: 1, 4, 16, ... until two have not helped or the pieces are too many, then near it."""
    order = turns(hops, seconds)
    passed = sum(1 if hops[t.hop].path.at_once else len(hops[t.hop].path.resources) for t in order)
    pipelined = any(h.depth or not h.path.at_once for h in hops)
    most = max(1, MOST_PIECES // max(1, passed)) if pipelined else 1
    latency = max((h.path.latency_s for h in hops), default=0.0)
    busiest = _busiest(hops, seconds)

    def at(rounds: int) -> tuple[flows.Clock, int]:
        # What is handed on follows a round behind, and as many more as the latency lasts.
        lag = 1 + (min(rounds, math.ceil(latency * rounds / busiest)) if busiest > 0 else 0)
        return flows.run(hops, order, seconds, rounds, lag, topology), rounds

    best, rounds, worse = at(1), 1, 0
    while rounds < most and worse < 2 and best[0].makespan_s > bound_s * _ENOUGH:
        rounds = min(most, rounds * 4)
        found = at(rounds)
        worse = 0 if found[0].makespan_s < best[0].makespan_s else worse + 1
        best = best if worse else found
    if worse:
        near = [at(n) for n in (best[1] // 2, best[1] * 2) if 1 <= n <= most]
        best = min([best, *near], key=lambda found: (found[0].makespan_s, found[1]))
    return best


def _busiest(hops: Sequence[Hop], seconds: Sequence[float]) -> float:
    """The largest load of a card, port or link, in seconds."""
    load: dict[object, float] = {}
    for hop in hops:
        for r in hop.path.resources:
            load[r] = load.get(r, 0.0) + seconds[hop.id]
    return max(load.values(), default=0.0)


def _sends(
    hops: Sequence[Hop], blocks: Sequence[Atom], clock: flows.Clock, rounds: int, islands: Sequence[int]
) -> tuple[Send, ...]:
    order = sorted(hops, key=lambda h: (clock.starts_s[h.id], h.depth, h.id))
    number = {h.id: i for i, h in enumerate(order)}
    return tuple(
        Send(
            number[h.id], h.sender, h.receiver, blocks[h.atom].cut(h.low, h.high), h.size_bytes, rounds,
            number.get(h.parent, -1), islands[h.sender] != islands[h.receiver],
            clock.starts_s[h.id], clock.ends_s[h.id],
        )
        for h in order
    )  # fmt: skip
