"""Who sends what to whom: every block travels a tree, from one of its holders over the network and on inside each node.

Each byte crosses the network once per node that lacks it. The first copy leaves through the holders' cards, and enters
every node through its needers' cards, both balanced exactly (`balance`). Nodes hand it on in a chain, so that no card
carries more outwards than it takes in. Inside a node the needers take in different parts and pass them round: an
all-gather over the fast links. That is the `Style` for large arrays; small ones, where latency counts, go in others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from passes.cross_mesh.balance import balance
from passes.cross_mesh.tiles import Atom
from passes.cross_mesh.wiring import Path, Wiring


@dataclass(frozen=True, slots=True)
class Style:
    """How blocks travel.

    `once`: over the network once per node, else once per device that needs them, straight from a holder. `gather`:
    devices of a node that share a card take in different parts and exchange them, instead of one taking in everything.
    `shape` of the way from device to device: "chain" (least volume per sender), "tree" (binary), "star" (least
    latency). `ways`: parts that take different ways through a torus. `pairs`: each holder serves some of the needers
    with whole blocks, instead of all of them with its part.
    """

    once: bool = True
    gather: bool = True
    shape: str = "chain"
    ways: int = 1
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """Rows low ... high of a block go from one device to another.

    `parent` is the hop that brought them to the sender (-1: the sender holds them from the start), `depth` the number
    of hops before this one.
    """

    id: int
    atom: int
    low: int
    high: int
    size_bytes: int
    sender: int
    receiver: int
    path: Path
    parent: int
    depth: int


@dataclass(frozen=True, slots=True)
class _Portion:
    """Rows of an atom, and the devices that one of them is to be chosen from (on one card)."""

    low: int
    high: int
    devices: tuple[int, ...]


@dataclass(slots=True)
class _Builder:
    """Hops under construction."""

    atoms: Sequence[Atom]
    itemsize: int
    wiring: Wiring
    style: Style
    hops: list[Hop]
    paths: dict[tuple[int, int, int], Path]
    tours: dict[tuple[int, tuple[int, ...], int], list[int]]

    def add(self, atom: int, low: int, high: int, sender: int, receiver: int, parent: int, way: int) -> int:
        block = self.atoms[atom]
        size = (high - low) * (block.elements // block.rows) * self.itemsize
        path = self.path(sender, receiver, way)
        depth = 0 if parent < 0 else self.hops[parent].depth + 1
        self.hops.append(Hop(len(self.hops), atom, low, high, size, sender, receiver, path, parent, depth))
        return len(self.hops) - 1

    def pass_on(
        self, atom: int, low: int, high: int, sender: int, others: Sequence[int], parent: int, way: int, shape: str
    ) -> list[int]:
        """From the sender to all others in a shape (see `Style`); the hops in the order of `others`."""
        out: list[int] = []
        for k, receiver in enumerate(others):
            before = {"chain": k - 1, "tree": (k - 1) // 2 if k else -1, "star": -1}[shape]
            giver, arrived = (others[before], out[before]) if before >= 0 else (sender, parent)
            out.append(self.add(atom, low, high, giver, receiver, arrived, way))
        return out

    def path(self, sender: int, receiver: int, way: int) -> Path:
        key = (sender, receiver, way)
        if key not in self.paths:
            self.paths[key] = self.wiring.path(sender, receiver, way)
        return self.paths[key]

    def tour(self, start: int, devices: tuple[int, ...], way: int) -> list[int]:
        """`devices` but `start`, each the nearest to the one before; among equals the next in the cyclic order of the
        way (odd ways: the one before)."""
        key = (start, devices, way)
        if key not in self.tours:
            place = self.wiring.place
            left = sorted((d for d in devices if d != start), key=lambda d: place(d, way), reverse=way % 2 == 1)
            out, at = [], start
            while left:
                first = next((k for k, d in enumerate(left) if (place(d, way) < place(at, way)) == (way % 2 == 1)), 0)
                after = left[first:] + left[:first]
                at = min(after, key=lambda d: self.wiring.distance(at, d))
                left.remove(at)
                out.append(at)
            self.tours[key] = out
        return self.tours[key]

    def ways(self, low: int, high: int) -> list[tuple[int, int, int]]:
        """(low, high, way): the rows in as many parts as the style has ways."""
        n, rows = self.style.ways, high - low
        cuts = [low + rows * k // n for k in range(n + 1)]
        return [(a, b, k) for k, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)) if b > a]


def routes(atoms: Sequence[Atom], itemsize: int, wiring: Wiring, style: Style) -> tuple[Hop, ...]:
    """The hops of a transfer in a style, parents first."""
    build = _Builder(atoms, itemsize, wiring, style, [], {}, {})
    far = [_needy_islands(a, wiring, style.once) for a in atoms]
    senders = _spread(
        [(i, a.holders) for i, a in enumerate(atoms) if far[i]], atoms, itemsize, wiring.cards.__getitem__
    )
    entries: dict[int, dict[int, list[_Portion]]] = {}
    for island in sorted({i for needy in far for i in needy}):
        wanted = [(i, needy[island]) for i, needy in enumerate(far) if island in needy]
        portions = _spread(wanted, atoms, itemsize, wiring.cards.__getitem__)
        entries[island] = {i: _split(p) if style.gather else p for i, p in portions.items()}
    source_islands = {wiring.islands[d] for i, a in enumerate(atoms) if far[i] for d in a.holders}
    for i, needy in enumerate(far):
        if needy:
            _over_network(build, i, senders[i], {n: entries[n][i] for n in needy}, needy, source_islands)
    _inside(build, atoms, itemsize, wiring)
    return tuple(build.hops)


def _needy_islands(atom: Atom, wiring: Wiring, once: bool) -> dict[int, tuple[int, ...]]:
    """Per island without a holder, the devices there that need the block; not `once`, every such device by itself."""
    having = {wiring.islands[d] for d in atom.holders}
    out: dict[int, list[int]] = {}
    for d in atom.needers:
        if wiring.islands[d] not in having:
            out.setdefault(wiring.islands[d] if once else d, []).append(d)
    return {island: tuple(devices) for island, devices in out.items()}


def _spread(
    wanted: Sequence[tuple[int, tuple[int, ...]]],
    atoms: Sequence[Atom],
    itemsize: int,
    carrier_of: Callable[[int], int],
) -> dict[int, list[_Portion]]:
    """Divide atoms (by number, with the devices that may take them) over the carriers of these devices, evenly in time.

    Atoms with the same carriers are laid end to end and cut where a carrier has its share, so that few are cut.
    """
    groups: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for i, devices in wanted:
        groups.setdefault(tuple(sorted({carrier_of(d) for d in devices})), []).append((i, devices))
    amounts = [float(sum(atoms[i].elements for i, _ in members) * itemsize) for members in groups.values()]
    rates = {c: 1.0 for carriers in groups for c in carriers}  # all cards of a machine are alike
    shares = balance(amounts, list(groups), rates).shares
    out: dict[int, list[_Portion]] = {}
    for members, share, amount in zip(groups.values(), shares, amounts, strict=True):
        bounds, total = [], 0.0
        for carrier, part in sorted(share.items()):
            total += part
            bounds.append((total / amount if amount else 1.0, carrier))
        before = 0.0
        for i, devices in members:
            size = atoms[i].elements * itemsize / amount
            out[i] = _portions(atoms[i].rows, devices, bounds, before, size, carrier_of)
            before += size
    return out


def _portions(
    rows: int,
    devices: tuple[int, ...],
    bounds: Sequence[tuple[float, int]],
    before: float,
    size: float,
    carrier_of: Callable[[int], int],
) -> list[_Portion]:
    """The rows of one atom, which covers [before, before + size) of its group, cut at the carriers' bounds."""
    out: list[_Portion] = []
    low = 0
    for number, (bound, carrier) in enumerate(bounds):
        last = number == len(bounds) - 1
        high = rows if last else min(rows, max(low, round((bound - before) / size * rows)))
        if high > low:
            out.append(_Portion(low, high, tuple(d for d in devices if carrier_of(d) == carrier)))
            low = high
    return out


def _split(portions: Sequence[_Portion]) -> list[_Portion]:
    """Every portion in equal parts, one per device."""
    out = []
    for p in portions:
        n, rows = len(p.devices), p.high - p.low
        cuts = [p.low + rows * k // n for k in range(n + 1)]
        out += [
            _Portion(a, b, (d,)) for a, b, d in zip(cuts[:-1], cuts[1:], p.devices, strict=True) if b > a
        ]  # fmt: skip
    return out


def _over_network(
    build: _Builder,
    atom: int,
    senders: Sequence[_Portion],
    entries: Mapping[int, Sequence[_Portion]],
    needy: Mapping[int, tuple[int, ...]],
    source_islands: set[int],
) -> None:
    """Chains of nodes for one atom, and the way on inside each of them."""
    wiring, block = build.wiring, build.atoms[atom]
    cuts = {p.low for row in entries.values() for p in row} | {block.rows}
    if not build.style.pairs:
        cuts |= {p.low for p in senders}
    ends = sorted(cuts)
    places = sorted(needy)
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        for sender, mine in _shared_out(build.style, block.holders, senders, places, start):
            # Every sender begins the chain at another node; nodes that send first copies come last, where nothing is
            # handed on.
            turn = wiring.islands[sender] % len(mine)
            order = mine[turn:] + mine[:turn]
            order.sort(key=lambda n: wiring.islands[needy[n][0]] in source_islands)
            into = {n: _at(entries[n], start) for n in order}
            entry = [into[n][start % len(into[n])] for n in order]
            for low, high, way in build.ways(start, stop):
                # Single devices get their copies from the holders: a way from one to the next might stay in a node.
                shape = build.style.shape if build.style.once else "star"
                arrived = build.pass_on(atom, low, high, sender, entry, -1, way, shape)
                for n, first, hop in zip(order, entry, arrived, strict=True):
                    others = build.tour(first, needy[n], way)
                    build.pass_on(atom, low, high, first, others, hop, way, build.style.shape)


def _shared_out(
    style: Style, holders: Sequence[int], senders: Sequence[_Portion], places: list[int], row: int
) -> list[tuple[int, list[int]]]:
    """Who sends the rows from `row` on to which places."""
    if style.pairs:
        return [(h, places[i :: len(holders)]) for i, h in enumerate(holders) if i < len(places)]
    choice = _at(senders, row)
    return [(choice[row % len(choice)], places)]


def _at(portions: Sequence[_Portion], row: int) -> tuple[int, ...]:
    return next(p.devices for p in portions if p.low <= row < p.high)


def _inside(build: _Builder, atoms: Sequence[Atom], itemsize: int, wiring: Wiring) -> None:
    """What never leaves a node: from the holders there, balanced, along the needers."""
    wanted: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    needing: dict[tuple[int, int], tuple[int, ...]] = {}
    for i, a in enumerate(atoms):
        for island in sorted({wiring.islands[d] for d in a.holders}):
            here = tuple(d for d in a.needers if wiring.islands[d] == island and d not in a.holders)
            if here:
                wanted.setdefault(island, []).append((i, tuple(d for d in a.holders if wiring.islands[d] == island)))
                needing[i, island] = here
    for island, rows in wanted.items():
        if build.style.pairs:
            for i, holders in rows:
                for sender, mine in _shared_out(build.style, holders, (), list(needing[i, island]), 0):
                    _along(build, i, 0, atoms[i].rows, sender, tuple(mine))
            continue
        portions = _spread(rows, atoms, itemsize, lambda d: d)
        for i, _ in rows:
            for p in portions[i]:
                _along(build, i, p.low, p.high, p.devices[0], needing[i, island])


def _along(build: _Builder, atom: int, start: int, stop: int, sender: int, needers: tuple[int, ...]) -> None:
    """Rows of an atom from one device to others of its node; every sender begins with another one."""
    first = needers[sender % len(needers)]
    for low, high, way in build.ways(start, stop):
        others = [first, *build.tour(first, needers, way)]
        build.pass_on(atom, low, high, sender, others, -1, way, build.style.shape)
