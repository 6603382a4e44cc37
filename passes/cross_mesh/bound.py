"""What no schedule can beat: the volume through cards, ports and cuts of a torus, and one latency.

The bound holds for every way to move the data in which only devices that hold or need a part of the array handle that
part, whatever the order, the pieces, and who sends. Three kinds of necessary volume, each a division or the dual of a
linear program (`balance`): every node takes in once what it lacks, through cards of devices that need it; the holders
give a first copy of what any other node lacks; and every device takes in its tile through all it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from passes.cross_mesh.balance import balance
from passes.cross_mesh.tiles import Atom
from passes.cross_mesh.wiring import Wiring


@dataclass(frozen=True, slots=True)
class Bound:
    """A certified lower bound in seconds, and in words what it comes from."""

    time_s: float
    reason: str


_MOST_CUTS = 200_000  # cuts times blocks: above that only cuts in the middle of a ring are looked at


def lower_bound(atoms: Sequence[Atom], itemsize: int, wiring: Wiring) -> Bound:
    """The largest of all bounds; zero when nothing moves."""
    moving = [a for a in atoms if set(a.needers) - set(a.holders)]
    if not moving:
        return Bound(0.0, "nothing moves")
    found = [*_cards(moving, itemsize, wiring), *_devices(moving, itemsize, wiring)]
    if len({wiring.islands[d] for a in moving for d in (*a.holders, *a.needers)}) == 1:
        found += _cuts(moving, itemsize, wiring)
    return max(found, key=lambda b: b.time_s)


def _fixed_s(wiring: Wiring, dims: Sequence[int]) -> float:
    """What even the smallest array takes: launches, and the least latency of any of the dimensions."""
    topology = wiring.topology
    latency = min((topology.dims[d].latency_s for d in dims if topology.dims[d].size > 1), default=0.0)
    return topology.chip.collective_launch_s + topology.chip.launch_overhead_s + latency


def _ramped(time_s: float, ramp_s: float) -> float:
    return time_s + math.sqrt(ramp_s * time_s)


def _cards(moving: Sequence[Atom], itemsize: int, wiring: Wiring) -> Iterator[Bound]:
    rates, ramp = dict.fromkeys(wiring.cards, wiring.card_rate_bytes_per_s), wiring.network_ramp_s
    fixed = _fixed_s(wiring, wiring.slow)
    out: dict[tuple[int, ...], float] = {}
    into: dict[int, dict[tuple[int, ...], float]] = {}
    for a in moving:
        having = {wiring.islands[d] for d in a.holders}
        lacking: dict[int, set[int]] = {}
        for d in a.needers:
            if wiring.islands[d] not in having:
                lacking.setdefault(wiring.islands[d], set()).add(wiring.cards[d])
        for island, cards in lacking.items():
            groups = into.setdefault(island, {})
            groups[tuple(sorted(cards))] = groups.get(tuple(sorted(cards)), 0.0) + a.elements * itemsize
        if lacking:
            mine = tuple(sorted({wiring.cards[d] for d in a.holders}))
            out[mine] = out.get(mine, 0.0) + a.elements * itemsize
    if out:
        yield Bound(fixed + _ramped(_least(out, rates), ramp), "a first copy leaves through the holders' cards")
    for island, groups in sorted(into.items()):
        time_s = fixed + _ramped(_least(groups, rates), ramp)
        yield Bound(time_s, f"node {island} takes in what it lacks through its cards")


def _least(groups: dict[tuple[int, ...], float], rates: Mapping[int, float]) -> float:
    return balance(list(groups.values()), list(groups), rates).bound_s


def _devices(moving: Sequence[Atom], itemsize: int, wiring: Wiring) -> Iterator[Bound]:
    """Volume in and out of single devices, through their fast links and (unless all is in one node) their card."""
    islands = {wiring.islands[d] for a in moving for d in (*a.holders, *a.needers)}
    card = wiring.card_rate_bytes_per_s if len(islands) > 1 else 0.0
    devices = sorted({d for a in moving for d in (*a.holders, *a.needers)})
    rates = {d: wiring.local_rate_bytes_per_s(d) + card for d in devices}
    ramp = min((wiring.topology.dims[d].ramp_s for d in wiring.fast), default=0.0) if len(islands) == 1 else 0.0
    fixed = _fixed_s(wiring, wiring.fast if len(islands) == 1 else (*wiring.slow, *wiring.fast))
    into: dict[int, float] = {}
    out: dict[tuple[int, ...], float] = {}
    for a in moving:
        for d in set(a.needers) - set(a.holders):
            into[d] = into.get(d, 0.0) + a.elements * itemsize
        out[a.holders] = out.get(a.holders, 0.0) + a.elements * itemsize
    worst = max(sorted(into), key=lambda d: into[d] / rates[d])
    time_s = fixed + _ramped(into[worst] / rates[worst], ramp)
    yield Bound(time_s, f"device {worst} takes in its tile through all its links")
    yield Bound(fixed + _ramped(_least(out, rates), ramp), "a first copy leaves the devices that hold it")


def _cuts(moving: Sequence[Atom], itemsize: int, wiring: Wiring) -> Iterator[Bound]:
    """What has to cross from one side of a torus to the other, through the links between them."""
    topology = wiring.topology
    island = wiring.islands[moving[0].holders[0]]
    for d in wiring.fast:
        dim = topology.dims[d]
        if dim.kind != "torus" or dim.size < 2:
            continue
        lines = math.prod(topology.dims[e].size for e in wiring.fast) // dim.size
        at = {x: topology.coordinates(x)[d] for a in moving for x in (*a.holders, *a.needers)}
        blocks = [({at[x] for x in a.holders}, {at[x] for x in a.needers}, a.elements * itemsize) for a in moving]
        few = dim.size * dim.size * len(blocks) <= _MOST_CUTS
        for side in _sides(dim.size, dim.wrap, few):
            size = sum(b for held, needed, b in blocks if not held & side and needed & side)
            rate = dim.bandwidth_bytes_per_s * lines * (2 if dim.wrap else 1)
            if size:
                where = f"positions {min(side)} to {max(side)} of dimension {d} of slice {island}"
                time_s = _fixed_s(wiring, (d,)) + _ramped(size / rate, dim.ramp_s)
                yield Bound(time_s, f"what {where} lack crosses the links")


def _sides(size: int, wrap: bool, few: bool) -> Iterator[frozenset[int]]:
    """Sets of neighbouring positions along a dimension: both ends of a line, or arcs of a ring."""
    if wrap:
        for length in range(1, size) if few else (size // 2,):
            for start in range(size):
                yield frozenset((start + i) % size for i in range(length))
        return
    for cut in range(1, size):
        yield frozenset(range(cut))
        yield frozenset(range(cut, size))
