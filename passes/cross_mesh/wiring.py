"""What a transfer can queue at: network cards, ports of a switch, links of a torus, and the way between two devices.

Each of these carries one thing at a time in each direction, at its own rate. A node (or TPU slice) is an island; its
devices reach other islands through cards. By default a GPU has a card of its own, the chips of a TPU host (2 x 2 of the
torus) share one, and so do all virtual devices of a CPU host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cost_model.machine import Topology

Resource = tuple[str, int, int]
"""("card out" or "card in", card, 0), ("port out" or "port in", device, dimension), ("link up" or "link down", device,
dimension): the link that leaves the device upwards or downwards along the dimension."""


class BadCards(ValueError):
    """Devices that do not share cards evenly: `devices_per_card` asked for, devices `per_island`."""

    def __init__(self, devices_per_card: int, per_island: int) -> None:
        self.devices_per_card = devices_per_card
        self.per_island = per_island
        super().__init__(f"{devices_per_card} devices per card do not divide the {per_island} devices of a node")


@dataclass(frozen=True, slots=True)
class Path:
    """From one device to another: everything that is busy meanwhile, the slowest rate, and the latency.

    `at_once`: the resources are held together (both ends of a switch), not one after the other (links of a torus).
    """

    resources: tuple[Resource, ...]
    rate_bytes_per_s: float
    latency_s: float
    at_once: bool = True


@dataclass(frozen=True, slots=True)
class Wiring:
    """A topology as a transfer sees it. `islands[d]` and `cards[d]` say where device d is; `card_devices` how many
    devices share a card; `slow` and `fast` are the positions of the network's and the island's dimensions, `at` the
    coordinates of every device."""

    topology: Topology
    islands: tuple[int, ...]
    cards: tuple[int, ...]
    card_devices: int
    slow: tuple[int, ...]
    fast: tuple[int, ...]
    at: tuple[tuple[int, ...], ...]

    @property
    def card_rate_bytes_per_s(self) -> float:
        """The most that one card carries in one direction."""
        rates = [self.topology.dims[d].bandwidth_bytes_per_s for d in self.slow]
        for d in self.slow:
            rates += [x for row in self.topology.dims[d].matrix_bytes_per_s for x in row]
        return self.card_devices * max(rates, default=math.inf)

    @property
    def network_ramp_s(self) -> float:
        return max((self.topology.dims[d].ramp_s for d in self.slow), default=0.0)

    def local_rate_bytes_per_s(self, device: int) -> float:
        """The most that a device can take in (or give) inside its island: all links of a torus, or its port."""
        total = 0.0
        for d in self.fast:
            dim, at = self.topology.dims[d], self.at[device][d]
            if dim.kind in ("torus", "die"):
                links = 2 if dim.wrap and dim.size > 2 else (at > 0) + (at < dim.size - 1)
                total += links * dim.bandwidth_bytes_per_s
            elif dim.size > 1:
                total += max([dim.bandwidth_bytes_per_s, *(x for row in dim.matrix_bytes_per_s for x in row)])
        return total

    def path(self, source: int, destination: int, turn: int = 0) -> Path:
        """The way of data from one device to another; on a torus, odd `turn`s go the other way round where both are
        equally long, and each pair of turns begins with another dimension."""
        if self.islands[source] != self.islands[destination]:
            return self._over_network(source, destination)
        a, b = self.at[source], self.at[destination]
        for d in self.fast:
            if a[d] != b[d] and self.topology.dims[d].kind not in ("torus", "die"):
                return self._over_switch(source, destination, d, a[d], b[d])
        return self._over_links(a, b, turn)

    def _dims(self, turn: int) -> tuple[int, ...]:
        """The island's dimensions, beginning with another one for each pair of turns."""
        first = turn // 2 % max(1, len(self.fast))
        return self.fast[first:] + self.fast[:first]

    def place(self, device: int, turn: int) -> tuple[int, ...]:
        """What the devices of an island are ordered by in a turn: coordinates, from the turn's first dimension on."""
        return tuple(self.at[device][d] for d in self._dims(turn))

    def distance(self, a: int, b: int) -> int:
        """Links of a torus between two devices of an island; 1 behind a switch."""
        links = 0
        for d in self.fast:
            dim, away = self.topology.dims[d], abs(self.at[a][d] - self.at[b][d])
            if away and dim.kind not in ("torus", "die"):
                return 1
            links += min(away, dim.size - away) if dim.wrap else away
        return links

    def _over_network(self, source: int, destination: int) -> Path:
        a, b = self.at[source], self.at[destination]
        outer = next(d for d in self.slow if a[d] != b[d])
        dim = self.topology.dims[outer]
        rows = dim.matrix_bytes_per_s
        rate = rows[a[outer]][b[outer]] if rows else dim.bandwidth_bytes_per_s
        out: Resource = ("card out", self.cards[source], 0)
        into: Resource = ("card in", self.cards[destination], 0)
        return Path((out, into), rate * self.card_devices, dim.latency_s)

    def _over_switch(self, source: int, destination: int, d: int, i: int, j: int) -> Path:
        dim = self.topology.dims[d]
        rate = dim.matrix_bytes_per_s[i][j] if dim.matrix_bytes_per_s else dim.bandwidth_bytes_per_s
        return Path((("port out", source, d), ("port in", destination, d)), rate, dim.latency_s)

    def _over_links(self, a: Sequence[int], b: Sequence[int], turn: int) -> Path:
        """Dimension by dimension, the shorter way round where there are two."""
        at, links, rates, latency = list(a), [], [], 0.0
        for d in self._dims(turn):
            dim = self.topology.dims[d]
            up = (b[d] - at[d]) % dim.size
            down = (at[d] - b[d]) % dim.size
            rises = b[d] > at[d]
            if dim.wrap and up != down:
                rises = up < down
            elif dim.wrap:
                rises = turn % 2 == 0
            while at[d] != b[d]:
                links.append(("link up" if rises else "link down", self.topology.index(tuple(at)), d))
                rates.append(dim.bandwidth_bytes_per_s)
                latency += dim.latency_s
                at[d] = (at[d] + (1 if rises else -1)) % dim.size
        return Path(tuple(links), min(rates, default=math.inf), latency, at_once=False)


def wiring(topology: Topology, devices_per_card: int | None = None) -> Wiring:
    """The cards, ports and links of a topology. `devices_per_card` None: as the module's text says.

    Raises BadCards where the devices of a node do not share cards evenly.
    """
    dims = topology.dims
    slow = tuple(d for d, dim in enumerate(dims) if dim.slow)
    fast = tuple(d for d, dim in enumerate(dims) if not dim.slow)
    per_island = math.prod(dims[d].size for d in fast)
    coordinates = tuple(topology.coordinates(i) for i in range(topology.num_devices))
    islands = tuple(_number([at[d] for d in slow], [dims[d].size for d in slow]) for at in coordinates)
    torus = [d for d in fast if dims[d].kind == "torus"]
    if devices_per_card is None and torus:
        labels = [tuple(at[d] // 2 if d in torus[:2] else at[d] for d in (*slow, *torus)) for at in coordinates]
        known = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        return Wiring(
            topology,
            islands,
            tuple(known[x] for x in labels),
            topology.num_devices // len(known),
            slow,
            fast,
            coordinates,
        )
    if devices_per_card is None:
        devices_per_card = 1 if topology.platform == "gpu" else per_island
    if devices_per_card < 1 or per_island % devices_per_card:
        raise BadCards(devices_per_card, per_island)
    inside = [_number([at[d] for d in fast], [dims[d].size for d in fast]) for at in coordinates]
    per = per_island // devices_per_card
    cards = tuple(island * per + i // devices_per_card for island, i in zip(islands, inside, strict=True))
    return Wiring(topology, islands, cards, devices_per_card, slow, fast, coordinates)


def _number(at: Sequence[int], sizes: Sequence[int]) -> int:
    out = 0
    for i, size in zip(at, sizes, strict=True):
        out = out * size + i
    return out
