"""The clock of a transfer: pieces run in a given order over cards, ports and links that carry one thing at a time.

A piece starts when its data have arrived at the sender and what it needs is free. It holds a card (or port) at both
ends until it is through; of the links of a torus it holds one after the other for its length, and goes on as soon as
the next is free (cut-through). It arrives a latency later. Nothing overtakes: each card, port and link serves pieces in
the order of the list. Rates are those of `wiring`; as in `cost_model.collectives`, what takes t at full rate on a card
takes t + sqrt(ramp * t) in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cost_model.machine import Topology
from passes.cross_mesh.order import Turn
from passes.cross_mesh.routes import Hop
from passes.cross_mesh.wiring import Resource


@dataclass(frozen=True, slots=True)
class Load:
    """What one card, port or link carries in one direction."""

    resource: Resource
    size_bytes: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A piece: when it began and ended to hold each resource of its hop's path, and when it was there."""

    hop: int
    round: int
    held_s: tuple[tuple[float, float], ...]
    arrival_s: float


@dataclass(frozen=True, slots=True)
class Clock:
    """`makespan_s` from the call to the last arrival, when every hop `starts_s` and is complete at its receiver
    (`ends_s`), the `loads` in the order of resources, and, where asked for, every piece."""

    makespan_s: float
    starts_s: tuple[float, ...]
    ends_s: tuple[float, ...]
    loads: tuple[Load, ...]
    sent: tuple[Sent, ...] = ()


def ramp_s(topology: Topology, resource: Resource) -> float:
    """The ramp of the links that a resource belongs to."""
    kind, _, dim = resource
    if kind.startswith("card"):
        return max(d.ramp_s for d in topology.dims if d.slow)
    return topology.dims[dim].ramp_s


def hop_seconds(hops: Sequence[Hop], topology: Topology) -> tuple[float, ...]:
    """What every hop takes on its way in all, ramps included, latency not."""
    full: dict[Resource, float] = {}
    for hop in hops:
        for resource in hop.path.resources:
            full[resource] = full.get(resource, 0.0) + hop.size_bytes / hop.path.rate_bytes_per_s
    slowdown = {r: 1.0 + math.sqrt(ramp_s(topology, r) / t) if t > 0 else 1.0 for r, t in full.items()}
    return tuple(
        h.size_bytes / h.path.rate_bytes_per_s * max((slowdown[r] for r in h.path.resources), default=1.0) for h in hops
    )


def run(
    hops: Sequence[Hop],
    order: Sequence[Turn],
    seconds: Sequence[float],
    rounds: int,
    lag: int,
    topology: Topology,
    keep: bool = False,
) -> Clock:
    """Send everything in `rounds` pieces: round r of a hop is sent in step r + `lag` * depth.

    Each piece costs the chip's launch overhead as well, and the whole transfer starts with one collective's launch.
    `keep`: list every piece.
    """
    known: dict[Resource, int] = {}
    ways = [tuple(known.setdefault(r, len(known)) for r in h.path.resources) for h in hops]
    volume, busy, free = [0] * len(known), [0.0] * len(known), [0.0] * len(known)
    for hop, way in zip(hops, ways, strict=True):
        for i in way:
            volume[i] += hop.size_bytes
    overhead, begin = topology.chip.launch_overhead_s, topology.chip.collective_launch_s
    arrived = [[0.0] * rounds for _ in hops]
    starts = [math.inf] * len(hops)
    rows = []
    for t in order:
        h = hops[t.hop]
        duration = (t.stop - t.start) * seconds[h.id] / rounds + overhead
        rows.append((h.id, h.parent, h.depth * lag, ways[h.id], h.path.at_once, h.path.latency_s, duration))
    sent: list[Sent] = []
    for step in range(rounds + lag * max((h.depth for h in hops), default=0)):
        for number, parent, delay, way, at_once, latency, duration in rows:
            r = step - delay
            if not 0 <= r < rounds:
                continue
            start = begin if parent < 0 else arrived[parent][r]
            held = []
            if at_once:
                for i in way:
                    if free[i] > start:
                        start = free[i]
            if start < starts[number]:
                starts[number] = start
            for i in way:
                if free[i] > start:
                    start = free[i]
                free[i] = start + duration
                busy[i] += duration
                if keep:
                    held.append((start, start + duration))
            arrival = start + duration + latency
            if arrival > arrived[number][r]:
                arrived[number][r] = arrival
            if keep:
                sent.append(Sent(number, r, tuple(held), arrival))
    ends = tuple(max(row) for row in arrived)
    loads = tuple(Load(resource, volume[i], busy[i]) for resource, i in sorted(known.items()))
    return Clock(max(ends, default=0.0), tuple(starts), ends, loads, tuple(sent))
