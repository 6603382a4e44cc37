"""The clock of a transfer: pieces move over cards, ports and links that carry one thing at a time.

A piece starts when its data have arrived at the sender and what it needs is free, and arrives a latency after it is
through. Through a switch or network it holds the card (or port) at both ends together, and nothing overtakes: these
serve pieces in the order of the plan. Along the links of a torus it holds one after the other for its length and goes
on as soon as the next is free (cut-through); a link serves pieces in the order in which they reach it. Rates are those
of `wiring`; as in `cost_model.collectives`, what takes t at full rate takes t + sqrt(ramp * t), where t is the whole
load of the busiest card, port or link on a piece's way.
"""

from __future__ import annotations

import heapq
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
        h.size_bytes / h.path.rate_bytes_per_s * min((slowdown[r] for r in h.path.resources), default=1.0) for h in hops
    )


@dataclass(slots=True)
class _State:
    """The clock while it runs: per resource when it is `free` and how long it was `busy`, per hop when it began, per
    (hop, round) when that piece `arrived`."""

    hops: Sequence[Hop]
    ways: list[tuple[int, ...]]
    free: list[float]
    busy: list[float]
    starts: list[float]
    arrived: list[list[float]]
    begin_s: float
    overhead_s: float
    keep: bool
    sent: list[Sent]


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
    `keep`: list every piece. Raises ValueError where a card or port hands on what came over links of a torus.
    """
    known: dict[Resource, int] = {}
    ways = [tuple(known.setdefault(r, len(known)) for r in h.path.resources) for h in hops]
    volume = [0] * len(known)
    for hop, way in zip(hops, ways, strict=True):
        for i in way:
            volume[i] += hop.size_bytes
    chip, count = topology.chip, len(known)
    arrived = [[0.0] * rounds for _ in hops]
    state = _State(
        hops, ways, [0.0] * count, [0.0] * count, [math.inf] * len(hops), arrived, chip.collective_launch_s,
        chip.launch_overhead_s, keep, [],
    )  # fmt: skip
    if any(h.path.at_once and h.parent >= 0 and not hops[h.parent].path.at_once for h in hops):
        raise ValueError("a hop through a card or port follows one over links")
    # So links may wait for cards, and cards never for links: everything else goes first.
    _in_order(state, [t for t in order if hops[t.hop].path.at_once], seconds, rounds, lag)
    _as_they_come(state, [t.hop for t in order if not hops[t.hop].path.at_once], seconds, rounds)
    ends = tuple(max(row) for row in arrived)
    loads = tuple(Load(resource, volume[i], state.busy[i]) for resource, i in sorted(known.items()))
    return Clock(max(ends, default=0.0), tuple(state.starts), ends, loads, tuple(state.sent))


def _in_order(state: _State, order: Sequence[Turn], seconds: Sequence[float], rounds: int, lag: int) -> None:
    """What holds both ends at once, in the order of the plan."""
    hops, free, busy, arrived, starts = state.hops, state.free, state.busy, state.arrived, state.starts
    rows = []
    for t in order:
        h, (sender, receiver) = hops[t.hop], state.ways[t.hop]
        duration = (t.stop - t.start) * seconds[h.id] / rounds + state.overhead_s
        rows.append((h.id, h.parent, h.depth * lag, sender, receiver, h.path.latency_s, duration))
    for step in range(rounds + lag * max((hops[t.hop].depth for t in order), default=0)):
        for number, parent, delay, sender, receiver, latency, duration in rows:
            r = step - delay
            if not 0 <= r < rounds:
                continue
            start = max(state.begin_s if parent < 0 else arrived[parent][r], free[sender], free[receiver])
            end = start + duration
            free[sender] = free[receiver] = end
            busy[sender] += duration
            busy[receiver] += duration
            starts[number] = min(starts[number], start)
            arrived[number][r] = max(arrived[number][r], end + latency)
            if state.keep:
                state.sent.append(Sent(number, r, ((start, end), (start, end)), end + latency))


def _as_they_come(state: _State, numbers: Sequence[int], seconds: Sequence[float], rounds: int) -> None:
    """What passes links one after the other, first come, first served; at equal times in the order of the plan."""
    hops, free, busy = state.hops, state.free, state.busy
    rank = {number: i for i, number in enumerate(numbers)}
    following: dict[int, list[int]] = {}
    events: list[tuple[float, int, int, int, int]] = []  # when, round, rank, links passed, hop
    for number in numbers:
        parent = hops[number].parent
        if parent in rank:
            following.setdefault(parent, []).append(number)
            continue
        row = [state.begin_s] * rounds if parent < 0 else state.arrived[parent]
        events += [(row[r], r, rank[number], 0, number) for r in range(rounds)]
    heapq.heapify(events)
    held: dict[tuple[int, int], list[tuple[float, float]]] = {}
    while events:
        now, r, place, passed, number = heapq.heappop(events)
        link = state.ways[number][passed]
        duration = seconds[number] / rounds + state.overhead_s
        start = max(now, free[link])
        free[link] = start + duration
        busy[link] += duration
        if state.keep:
            held.setdefault((number, r), []).append((start, start + duration))
        if not passed:
            state.starts[number] = min(state.starts[number], start)
        if passed + 1 < len(state.ways[number]):
            heapq.heappush(events, (start, r, place, passed + 1, number))
            continue
        arrival = start + duration + hops[number].path.latency_s
        state.arrived[number][r] = arrival
        for child in following.get(number, ()):
            heapq.heappush(events, (arrival, r, rank[child], 0, child))
        if state.keep:
            state.sent.append(Sent(number, r, tuple(held[number, r]), arrival))
