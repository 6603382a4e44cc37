"""Plans of transfers between meshes: every block arrives, nothing is used twice at once, and the bound is a bound."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace

import pytest

from cost_model.hardware import chip
from cost_model.machine import Dim, Topology
from cost_model.topology import parse_topology
from passes.cross_mesh import (
    BadCards,
    BadPlacement,
    Placement,
    boxes,
    flows,
    least_s,
    lower_bound,
    order,
    plan_move,
    wiring,
)
from passes.cross_mesh.balance import balance
from passes.cross_mesh.plan import STYLES
from passes.cross_mesh.routes import routes
from passes.cross_mesh.tiles import atoms
from passes.ir.sharding import Sharding

GIB = 2**30
AXES = {"S0": ("h",), "S1": ("d",), "R": (), "S01": ("h", "d"), "S10": ("d", "h")}
FREE = replace(chip("a100-80"), launch_overhead_s=0.0, collective_launch_s=0.0)


def hosts(count: int, per_host: int, rate: float = GIB) -> Topology:
    """Hosts with one card each; links inside cost nothing, and there is no latency."""
    dims = (Dim(count, "network", rate / per_host, 0.0), Dim(per_host, "nvlink", 1e14, 0.0))
    return Topology(f"{count} hosts", FREE, dims)


def placed(grid: tuple[int, int], cuts: str, first: int, per_host: int) -> Placement:
    devices = tuple((first + h) * per_host + d for h in range(grid[0]) for d in range(grid[1]))
    return Placement(devices, (("h", grid[0]), ("d", grid[1])), Sharding(tuple(AXES[c] for c in cuts.split())))


def between(shape, source, destination, grids):
    """Plan in the reference's model."""
    per_host = max(grids[0][1], grids[1][1])
    a, b = placed(grids[0], source, 0, per_host), placed(grids[1], destination, grids[0][0], per_host)
    return plan_move(shape, 4, a, b, hosts(grids[0][0] + grids[1][0], per_host), per_host)


# arXiv:2211.05322 and Alpa's benchmark; in units of 1 GiB through one host's card.
CUBE = (1024, 1024, 512)
TWO = ((2, 4), (2, 4))
REFERENCE = [
    (CUBE, "S0 R R", "S0 R R", TWO, 1.0),
    (CUBE, "R R R", "S0 R R", TWO, 1.0),
    ((3072, 1024, 170), "S0 R R", "S0 R R", ((2, 4), (3, 4)), 0.99609375),
    (CUBE, "S1 R R", "R R R", ((1, 4), (2, 4)), 2.0),
    *(((2**28,), "R", "R", ((1, 1), g), 1.0) for g in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (3, 2), (4, 2)]),
    *(((2**18,), "R", "R", ((1, 1), g), 2**-10) for g in [(1, 4), (3, 2), (4, 2)]),
    (CUBE, "S0 R R", "R R R", TWO, 2.0),
    (CUBE, "S01 R R", "S1 R R", TWO, 2.0),
    (CUBE, "R S0 R", "S0 S1 R", TWO, 1.0),
    (CUBE, "S1 S0 R", "R R S01", TWO, 1.0),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("shape", "source", "destination", "grids", "best"), REFERENCE)
def test_the_reference_is_reached(shape, source, destination, grids, best) -> None:
    move = between(shape, source, destination, grids)
    assert move.bound.time_s == pytest.approx(best, rel=1e-9)
    assert move.bound.time_s <= move.makespan_s <= best * 1.005


def test_three_spellings_of_one_transfer_cost_the_same() -> None:
    times = [between(CUBE, s, s, TWO).makespan_s for s in ("S0 R R", "R S0 R", "R R S0")]
    assert times[0] == pytest.approx(1.0, rel=1e-4) and times == [times[0]] * 3


def test_meshes_that_share_hosts_reach_the_bound_too() -> None:
    """Random meshes on the same few hosts, which then send and receive, forward and keep."""
    rng = random.Random(0)
    cuts = ["R R", "S0 R", "S1 R", "R S0", "S01 R", "S0 S1", "R S01", "R S1"]
    crossing = 0
    for _ in range(80):
        per_host, count = rng.choice([1, 2, 4]), rng.randint(2, 5)
        sides = []
        for _ in range(2):
            mine = rng.sample(range(count), rng.randint(1, count))
            inside = sorted(rng.sample(range(per_host), rng.choice([n for n in (1, 2, 4) if n <= per_host])))
            devices = tuple(h * per_host + d for h in mine for d in inside)
            axes = (("h", len(mine)), ("d", len(inside)))
            sides.append(Placement(devices, axes, Sharding(tuple(AXES[c] for c in rng.choice(cuts).split()))))
        move = plan_move((960, 1024), 4, *sides, hosts(count, per_host), per_host)
        if any(send.network for send in move.sends):
            crossing += 1
            assert move.bound.time_s <= move.makespan_s <= move.bound.time_s * 1.005
            assert least_s((960, 1024), 4, *sides, hosts(count, per_host), per_host) == move.bound.time_s
    assert crossing > 60


MACHINES = (
    "h100:8", "h100:4x3", "h100:2x4norails", "v5e:4x4", "v5e:2x4", "v5p:2x2x4", "v7x:2x2x1", "cpu:8", "v6e:2x2x3slices",
)  # fmt: skip


def drawn(rng: random.Random, machine: Topology, rank: int) -> Placement:
    """A random mesh on random devices, with a random sharding."""
    sizes = [s for s in [(1,), (2,), (3,), (4,), (2, 2), (2, 3), (6,), (4, 2), (8,)] if prod(s) <= machine.num_devices]
    size = rng.choice(sizes)
    names = "abc"[: len(size)]
    dims: list[list[str]] = [[] for _ in range(rank)]
    for name in rng.sample(names, len(names)):
        where = rng.randrange(rank + 1)
        if where < rank:
            dims[where].append(name)
    devices = tuple(rng.sample(range(machine.num_devices), prod(size)))
    return Placement(devices, tuple(zip(names, size, strict=True)), Sharding(tuple(map(tuple, dims))))


def prod(sizes) -> int:
    out = 1
    for n in sizes:
        out *= n
    return out


def elements(box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(a, b) for a, b in box)))


def check_delivery(move) -> None:
    """Walk the tasks: senders have what they send, nobody gets an element twice, all have their blocks in the end."""
    have: dict[int, set] = {}
    for device, box in zip(move.source.devices, boxes(move.source, move.shape), strict=True):
        have[device] = elements(box) if box is not None else set()
    for send in move.sends:
        block = elements(send.box)
        assert len(block) * move.itemsize == send.size_bytes and block
        assert block <= have[send.sender]
        if send.after >= 0:
            parent = move.sends[send.after]
            assert parent.receiver == send.sender and parent.id < send.id and parent.box == send.box
            assert send.start_s >= parent.start_s and send.end_s > parent.start_s
        there = have.setdefault(send.receiver, set())
        assert not block & there
        there |= block
    for device, box in zip(move.destination.devices, boxes(move.destination, move.shape), strict=True):
        assert box is None or elements(box) <= have[device]


@pytest.mark.parametrize("name", MACHINES)
def test_random_transfers_deliver_and_respect_the_bound(name: str) -> None:
    rng = random.Random(name)
    machine = parse_topology(name)
    for _ in range(200 if os.environ.get("TESTS") == "full" else 12):
        shape = rng.choice([(7,), (12,), (5, 6), (8, 3), (2, 3, 4), (1, 9), ()])
        a, b = drawn(rng, machine, len(shape)), drawn(rng, machine, len(shape))
        itemsize = rng.choice([1, 2, 4000, 10**6])
        move = plan_move(shape, itemsize, a, b, machine)
        check_delivery(move)
        assert move.makespan_s >= move.bound.time_s * (1 - 1e-12)
        assert (move.makespan_s == 0) == (not move.sends) == (move.bound.time_s == 0)
        assert plan_move(shape, itemsize, a, b, machine) == move


@pytest.mark.parametrize("name", MACHINES)
def test_no_card_port_or_link_carries_two_things_at_once(name: str) -> None:
    rng = random.Random(f"{name} pieces")
    machine = parse_topology(name)
    for turn in range(len(STYLES)):
        shape = rng.choice([(64, 48), (30, 14), (96,)])
        a, b = drawn(rng, machine, len(shape)), drawn(rng, machine, len(shape))
        hops = routes(atoms(shape, a, b), 4, wiring(machine), STYLES[turn])
        seconds = flows.hop_seconds(hops, machine)
        rounds, lag = rng.choice([1, 3, 8]), rng.choice([1, 2])
        clock = flows.run(hops, order.turns(hops, seconds), seconds, rounds, lag, machine, keep=True)
        check_pieces(hops, clock, rounds, seconds, machine)


def check_pieces(hops, clock, rounds: int, seconds, machine: Topology) -> None:
    """From the list of pieces alone: exclusive use, data before sending, whole hops, and the clock's own figures."""
    busy: dict = {}
    arrivals: dict = {}
    sent = dict.fromkeys(range(len(hops)), 0.0)
    for piece in clock.sent:
        for resource, span in zip(hops[piece.hop].path.resources, piece.held_s, strict=True):
            busy.setdefault(resource, []).append(span)
        first, last = piece.held_s[0], piece.held_s[-1]
        sent[piece.hop] += last[1] - last[0] - machine.chip.launch_overhead_s
        assert all(x[0] <= y[0] for x, y in itertools.pairwise(piece.held_s))
        assert piece.arrival_s >= last[1]
        parent = hops[piece.hop].parent
        ready = machine.chip.collective_launch_s if parent < 0 else arrivals[parent, piece.round]
        assert first[0] >= ready
        key = piece.hop, piece.round
        arrivals[key] = max(arrivals.get(key, 0.0), piece.arrival_s)
    assert set(arrivals) == {(h.id, r) for h in hops for r in range(rounds)}
    for spans in busy.values():
        spans.sort()
        assert all(before[1] <= after[0] + 1e-15 for before, after in itertools.pairwise(spans))
    assert [sent[h.id] for h in hops] == pytest.approx(list(seconds), rel=1e-6, abs=1e-12)
    assert clock.makespan_s == max(arrivals.values(), default=0.0)
    assert {load.resource: load.size_bytes for load in clock.loads} == {
        r: sum(h.size_bytes for h in hops if r in h.path.resources) for r in busy
    }


def test_atoms_are_the_array_cut_by_both_sides() -> None:
    rng = random.Random(5)
    machine = parse_topology("h100:8x2")
    for _ in range(40):
        shape = rng.choice([(7,), (10, 3), (4, 5, 3)])
        a, b = drawn(rng, machine, len(shape)), drawn(rng, machine, len(shape))
        found = atoms(shape, a, b)
        where = {e: atom for atom in found for e in elements(atom.box)}
        assert len(where) == sum(atom.elements for atom in found) == prod(shape)
        for side, devices_of in ((a, lambda x: x.holders), (b, lambda x: x.needers)):
            for device, box in zip(side.devices, boxes(side, shape), strict=True):
                mine = elements(box) if box is not None else set()
                assert mine == {e for e, atom in where.items() if device in devices_of(atom)}


def test_blocks_of_a_dimension_that_does_not_divide_are_rounded_up() -> None:
    four = Placement((0, 1, 2, 3), (("x", 4),), Sharding((("x",),)))
    assert boxes(four, (10,)) == (((0, 3),), ((3, 6),), ((6, 9),), ((9, 10),))
    assert boxes(four, (5,)) == (((0, 2),), ((2, 4),), ((4, 5),), None)
    three = Placement((4, 5, 6), (("y", 3),), Sharding((("y",),)))
    move = plan_move((10,), 1, four, three, parse_topology("h100:8"))
    assert sorted((s.sender, s.receiver, s.box[0]) for s in move.sends) == [
        (0, 4, (0, 3)), (1, 4, (3, 4)), (1, 5, (4, 6)), (2, 5, (6, 8)), (2, 6, (8, 9)), (3, 6, (9, 10)),
    ]  # fmt: skip


def test_balance_is_the_densest_set_of_carriers() -> None:
    """Least largest load = max over sets S of carriers of (what only S can carry) / (rates of S)."""
    rng = random.Random(1)
    for _ in range(60):
        carriers = range(rng.randint(1, 5))
        rates = {c: rng.choice([1.0, 1.0, 2.0, 0.5]) for c in carriers}
        groups = [tuple(sorted(rng.sample(carriers, rng.randint(1, len(carriers))))) for _ in range(rng.randint(1, 6))]
        groups = list(dict.fromkeys(groups))
        amounts = [rng.choice([1.0, 3.0, 10.0, 1e9]) for _ in groups]
        used = sorted({c for g in groups for c in g})
        best = max(
            sum(a for a, g in zip(amounts, groups, strict=True) if set(g) <= set(s)) / sum(rates[c] for c in s)
            for n in range(1, len(used) + 1)
            for s in itertools.combinations(used, n)
        )
        found = balance(amounts, groups, rates)
        assert found.bound_s <= best * (1 + 1e-9) and found.bound_s == pytest.approx(best, rel=1e-6)
        assert found.time_s == pytest.approx(best, rel=1e-6)
        load = dict.fromkeys(used, 0.0)
        for amount, group, share in zip(amounts, groups, found.shares, strict=True):
            assert set(share) <= set(group) and sum(share.values()) == pytest.approx(amount)
            for c, part in share.items():
                load[c] += part
        assert max(load[c] / rates[c] for c in used) <= best * (1 + 1e-6)


def test_matchings_take_as_long_as_the_busiest_node() -> None:
    rng = random.Random(2)
    for _ in range(40):
        n, m = rng.randint(1, 6), rng.randint(1, 6)
        weight = {
            (("card out", i, 0), ("card in", j, 0)): rng.choice([1.0, 2.0, 0.3, 7.0])
            for i in range(n)
            for j in range(m)
            if rng.random() < 0.6
        }
        found = order.matchings(weight)
        busiest = [sum(w for e, w in weight.items() if e[k] == node) for k in (0, 1) for node in {e[k] for e in weight}]
        assert sum(length for length, _ in found) <= max(busiest, default=0.0) * (1 + 1e-9)
        done = dict.fromkeys(weight, 0.0)
        for length, edges in found:
            assert len({e[0] for e in edges}) == len({e[1] for e in edges}) == len(edges)
            for e in edges:
                done[e] += length
        assert all(done[e] >= w * (1 - 1e-6) for e, w in weight.items())


def test_very_many_pairs_take_turns_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many for matchings: everybody sends to everybody, and nobody waits for a receiver."""
    monkeypatch.setattr(order, "MOST_PAIRS", 10)
    assert between((1024, 1024), "S0 R", "R S0", ((8, 1), (8, 1))).ratio <= 1.005
    assert between((1024, 1024), "S0 R", "R S0", ((8, 1), (4, 1))).ratio <= 1.3


def least_steps(blocks: list[tuple[frozenset[int], frozenset[int]]], everyone: int) -> int:
    """Brute force over all schedules of whole blocks of equal size: a host sends one and receives one in each step."""
    start = tuple(held for held, _ in blocks)
    goal = tuple(needed for _, needed in blocks)
    states, steps = {start}, 0
    while not any(all(g <= s for g, s in zip(goal, state, strict=True)) for state in states):
        following = set()
        for state in states:
            choices = []
            for receiver in range(everyone):
                may = [
                    (b, sender)
                    for b, have in enumerate(state)
                    if receiver in goal[b] and receiver not in have
                    for sender in have
                ]
                choices.append([None, *may])
            for picked in itertools.product(*choices):
                senders = [p[1] for p in picked if p]
                if len(set(senders)) == len(senders):
                    new = [set(s) for s in state]
                    for receiver, p in enumerate(picked):
                        if p:
                            new[p[0]].add(receiver)
                    following.add(tuple(map(frozenset, new)))
        states, steps = following, steps + 1
    return steps


SMALL = [
    ((1, 1), "R", (1, 1), "R"), ((1, 1), "R", (2, 1), "R"), ((1, 1), "R", (3, 1), "R"), ((2, 1), "R", (1, 1), "R"),
    ((2, 1), "R", (2, 1), "R"), ((2, 1), "S0", (2, 1), "S0"), ((2, 1), "S0", (2, 1), "R"), ((2, 1), "R", (2, 1), "S0"),
    ((1, 1), "R", (2, 1), "S0"), ((2, 1), "S0", (1, 1), "R"), ((2, 1), "S0", (3, 1), "R"), ((3, 1), "S0", (2, 1), "R"),
    ((3, 1), "R", (2, 1), "R"), ((2, 1), "R", (3, 1), "R"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "cut_a", "b", "cut_b"), SMALL)
def test_no_schedule_of_whole_blocks_beats_the_bound_and_the_plan_beats_them_all(a, cut_a, b, cut_b) -> None:
    machine = hosts(a[0] + b[0], 1, rate=6 * 1024.0)
    source, destination = placed(a, cut_a, 0, 1), placed(b, cut_b, a[0], 1)
    move = plan_move((6 * 1024,), 1, source, destination, machine, 1)  # the whole array takes one second
    blocks = atoms((6 * 1024,), source, destination)
    assert len({x.elements for x in blocks}) == 1
    whole = [(frozenset(x.holders), frozenset(x.needers)) for x in blocks]
    best_s = least_steps(whole, a[0] + b[0]) * blocks[0].elements / 6144
    assert move.bound.time_s <= best_s * (1 + 1e-9)
    assert move.bound.time_s <= move.makespan_s <= min(best_s, move.bound.time_s) * 1.005


def test_the_bound_knows_the_links_between_halves_of_a_torus() -> None:
    """v5e:4x4, rows 0-1 to rows 2-3: the array crosses 4 links of 45 GB/s, which do not wrap."""
    machine = parse_topology("v5e:4x4")
    half = [Placement(tuple(range(k, k + 8)), (("x", 8),), Sharding((("x",),))) for k in (0, 8)]
    size = 2**26
    bound = lower_bound(atoms((size,), *half), 1, wiring(machine))
    dim, kind = machine.dims[0], machine.chip
    full = size / (4 * dim.bandwidth_bytes_per_s)
    fixed = dim.latency_s + kind.collective_launch_s + kind.launch_overhead_s
    assert bound.time_s == pytest.approx(full + (dim.ramp_s * full) ** 0.5 + fixed, rel=1e-9)
    assert plan_move((size,), 1, *half, machine).ratio < 1.1


def test_a_ring_is_used_both_ways() -> None:
    """v5p axes of 4 are rings, so that opposite halves have two links per line: both directions carry the same."""
    machine = parse_topology("v5p:4x4x4")
    half = [Placement(tuple(range(k, k + 32)), (("x", 32),), Sharding((("x",),))) for k in (0, 32)]
    move = plan_move((2**28,), 1, *half, machine)
    carried = {load.resource[0]: 0 for load in move.loads}
    for load in move.loads:
        if load.resource[2] == 0:
            carried[load.resource[0]] += load.size_bytes
    assert carried["link up"] == carried["link down"] > 0
    assert move.ratio < 1.3


def test_the_clock_of_a_few_pieces_by_hand() -> None:
    """v5e:4x4, a row of devices 0 1 2 3: from 0 to 3 over three links at once, then the last one shared with 2."""
    machine = parse_topology("v5e:4x4")
    dim, kind = machine.dims[1], machine.chip
    one = [Placement((d,), (("x", 1),), Sharding(((),))) for d in range(4)]
    size = 45 * 10**6
    full = size / dim.bandwidth_bytes_per_s
    fixed = kind.collective_launch_s + kind.launch_overhead_s
    far = plan_move((size,), 1, one[0], one[3], machine)
    passing = full + (dim.ramp_s * full) ** 0.5  # one stream of bytes: three links at a time, the rest is latency
    assert far.makespan_s == pytest.approx(fixed + passing + 3 * dim.latency_s, rel=1e-9)
    both = Placement((0, 2), (("x", 2),), Sharding((("x",),)))
    joint = plan_move((2 * size,), 1, both, one[3], machine)
    shared = 2 * full + (dim.ramp_s * 2 * full) ** 0.5 + 2 * kind.launch_overhead_s
    assert joint.makespan_s == pytest.approx(kind.collective_launch_s + shared + dim.latency_s, rel=1e-9)


def test_measured_links_between_nodes_count() -> None:
    rows = ((0.0, 1e9, 1e9), (1e9, 0.0, 25e7), (1e9, 25e7, 0.0))
    network = Dim(3, "network", 1e9, 0.0, matrix_bytes_per_s=rows)
    machine = Topology("lab", FREE, (network, Dim(1, "nvlink", 1e14, 0.0)))
    one = [Placement((d,), (("x", 1),), Sharding(((),))) for d in range(3)]
    assert plan_move((10**9,), 1, one[0], one[1], machine).makespan_s == pytest.approx(1.0)
    assert plan_move((10**9,), 1, one[1], one[2], machine).makespan_s == pytest.approx(4.0)


def test_cards_of_each_kind_of_machine() -> None:
    assert wiring(parse_topology("h100:8x2")).cards == tuple(range(16))
    assert wiring(parse_topology("cpu:4x2")).cards == (0,) * 4 + (1,) * 4
    assert wiring(parse_topology("h100:8x2"), 4).cards == tuple(i // 4 for i in range(16))
    hosts_of_v5e = wiring(parse_topology("v5e:4x4x2slices"))
    assert hosts_of_v5e.card_devices == 4 and len(set(hosts_of_v5e.cards)) == 8
    assert hosts_of_v5e.cards[0] == hosts_of_v5e.cards[1] == hosts_of_v5e.cards[4] == hosts_of_v5e.cards[5]
    assert wiring(parse_topology("v7x:2x2x2")).card_devices == 8
    with pytest.raises(BadCards) as caught:
        wiring(parse_topology("h100:8x2"), 3)
    assert (caught.value.devices_per_card, caught.value.per_island) == (3, 8)


def test_ways_through_a_torus_are_shortest_and_go_round_rings() -> None:
    wires = wiring(parse_topology("v5p:4x4x4"))
    index = wires.topology.index
    assert [r[0] for r in wires.path(index((0, 0, 0)), index((3, 0, 0))).resources] == ["link down"]
    across = [wires.path(index((0, 0, 0)), index((2, 0, 0)), turn).resources for turn in (0, 1)]
    assert [[r[0] for r in way] for way in across] == [["link up"] * 2, ["link down"] * 2]
    for a, b in itertools.product(range(0, 64, 5), range(0, 64, 7)):
        assert all(len(wires.path(a, b, turn).resources) == wires.distance(a, b) for turn in range(6))
    line = wiring(parse_topology("v5e:4x4"))
    assert len(line.path(0, 12).resources) == 3 == line.distance(0, 12)


@pytest.mark.parametrize(
    ("devices", "axes", "dims", "shape", "problem"),
    [
        ((0, 1, 2), (("x", 2),), (("x",),), (4,), "devices"),
        ((0, 0), (("x", 2),), (("x",),), (4,), "repeated"),
        ((0, 1), (("x", 2),), (("y",),), (4,), "axis"),
        ((0, 1), (("x", 2),), (("x",), ("x",)), (4, 4), "repeated"),
        ((0, 1), (("x", 2),), (("x",),), (4, 4), "rank"),
    ],
)
def test_placements_that_cannot_be_are_refused(devices, axes, dims, shape, problem) -> None:
    bad = Placement(devices, axes, Sharding(dims))
    with pytest.raises(BadPlacement) as caught:
        plan_move(shape, 1, bad, bad, parse_topology("cpu:8"))
    assert caught.value.problem == problem
    with pytest.raises(BadPlacement, match="unfinished sum"):
        Placement((0, 1), (("x", 2),), Sharding(((),), ("x",))).check((4,))
