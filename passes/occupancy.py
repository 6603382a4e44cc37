"""Bytes over time: what every strategy of every group keeps in one device's memory, and from when to when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from passes.groups import Group, Want
from passes.ir import Sharding
from passes.loops import brought_stacks
from passes.memory import Life, reused_outputs
from passes.price import Priced, Pricer
from passes.strategies import Strategy
from passes.tiling import stored_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Occupied:
    """`usage[s]` bytes are taken at positions start <= t < end if `group` takes strategy s. Equal lists of bytes are
    one array."""

    group: int
    start: int
    end: int
    usage: np.ndarray


@dataclass(frozen=True, slots=True)
class Occupancy:
    """All that takes memory: by decision, and `loose_bytes` that no decision cuts, which are there throughout."""

    items: tuple[Occupied, ...]
    loose_bytes: float


def occupancy(priced: Priced) -> Occupancy:
    """The memory of a priced program, as far as each decision knows it by itself."""
    return _Counter(priced.pricer, priced.strategies).run()


class _Counter:
    def __init__(self, pricer: Pricer, strategies: Mapping[int, tuple[Strategy, ...]]) -> None:
        self.pricer, self.strategies = pricer, strategies
        self.program, self.graph, self.grouping = pricer.program, pricer.graph, pricer.grouping
        self.known: dict[object, np.ndarray] = {}
        self.items: list[Occupied] = []

    def run(self) -> Occupancy:
        loose: list[Life] = []
        tpu = self.pricer.chip.platform == "tpu"
        reused = reused_outputs(self.graph)
        for life in self.program.lives.kept:
            if life.value in reused or life.rewritten or (life.copy and not tpu):
                continue
            place = self.grouping.place(life.value)
            if place is None:
                loose.append(life)
                continue
            self.add(place.group, life.start, life.end, self.kept_bytes(life, self.strategies[place.group]))
        for g, options in self.strategies.items():
            if any(s.shared is not None for s in options):
                self.shared_copies(self.grouping.groups[g], options)
        position = {v.op.id: i for i, v in enumerate(self.grouping.visits)}
        for want in self.grouping.wants:
            if want.role == "operand" and want.visit is not None:
                at = position[want.visit.op.id]
                self.add(want.consumer, at, at + 1, self.moved_bytes(want))
        for want, start, end in brought_stacks(self.grouping):
            self.add(want.consumer, start, end, self.moved_bytes(want))
        return Occupancy(tuple(self.items), float(sum(self.graph.values[x.value].size_bytes for x in loose)))

    def add(self, group: int, start: int, end: int, usage: np.ndarray) -> None:
        if start < end and usage.any():
            self.items.append(Occupied(group, start, end, usage))

    def kept_bytes(self, life: Life, options: tuple[Strategy, ...]) -> np.ndarray:
        """Bytes that one device stores of a value, per strategy of its group."""
        v, place = self.graph.values[life.value], self.grouping.place(life.value)
        assert place is not None
        platform = self.pricer.chip.platform
        itemsize = v.itemsize // 2 if life.narrow and platform == "tpu" else v.itemsize
        major = self.program.lives.major.get(life.value, frozenset())
        key = ("kept", self.pricer.known(options), place.dims, v.shape, itemsize, major)
        if key not in self.known:
            forms = [self.pricer.form(life.value, s) for s in options]
            sizes = {
                f: stored_bytes(Sharding(f).local_shape(v.shape, self.pricer.sizes), itemsize, platform, major)
                for f in set(forms)
            }
            self.known[key] = np.array([float(sizes[f]) for f in forms])
        return self.known[key]

    def moved_bytes(self, want: Want) -> np.ndarray:
        """Room for an operand that is brought to where it is used: what it has there beyond the smallest part.

        Whether it has to move depends on the other group too, which a memory item cannot see; counting it always is
        safe, and nothing for operands that are cut over all devices.
        """
        options, size = self.strategies[want.consumer], self.graph.values[want.value].size_bytes
        key = ("moved", self.pricer.known(options), want.slots, size)
        if key not in self.known:
            self.known[key] = size / self.pricer.cuts(options, want.slots) - size / self.pricer.mesh.num_devices
        return self.known[key]

    def shared_copies(self, group: Group, options: tuple[Strategy, ...]) -> None:
        for v in self.pricer.shared_members(group):
            place, size = self.grouping.place(v), self.graph.values[v].size_bytes
            assert place is not None
            key = ("shared", self.pricer.known(options), place.dims, size)
            if key not in self.known:
                pieces = [
                    math.inf if s.shared is None else math.prod(map(self.pricer.pieces, self.pricer.form(v, s, True)))
                    for s in options
                ]
                self.known[key] = size / np.array(pieces)
            self.add(group.id, *self.program.copy_spans[v], self.known[key])
