"""Bytes over time: what every group keeps in one device's memory, from when to when, whatever the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from passes.groups import Group, Slot, slots_of
from passes.likeness import shared_members
from passes.loops import brought_stacks
from passes.memory import Life, reused_outputs
from passes.program import Program


@dataclass(frozen=True, slots=True)
class Spec:
    """An array in memory; `slots` say which class or factor of its group cuts each of its dimensions.

    kind "kept": a value; "shared": a copy that several readers use; "moved": an operand brought to where it is used,
    beyond the smallest part of it. `major` as in `passes.orders`.
    """

    kind: str
    slots: tuple[Slot, ...]
    shape: tuple[int, ...]
    itemsize: int
    major: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Occupied:
    """`specs[spec]` is there at positions start <= t < end, cut as `group` decides."""

    group: int
    start: int
    end: int
    spec: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """All that takes memory, and `loose_bytes` that no decision cuts, which are there throughout."""

    items: tuple[Occupied, ...]
    specs: tuple[Spec, ...]
    loose_bytes: float


def occupancy(program: Program, platform: str) -> Occupancy:
    """The memory of a program on devices of a platform, as far as each decision knows it by itself."""
    return _Counter(program, platform).run()


class _Counter:
    def __init__(self, program: Program, platform: str) -> None:
        self.program, self.graph, self.grouping = program, program.graph, program.grouping
        self.tpu = platform == "tpu"
        self.specs: dict[Spec, int] = {}
        self.items: list[Occupied] = []

    def run(self) -> Occupancy:
        loose: list[Life] = []
        reused = reused_outputs(self.graph)
        for life in self.program.lives.kept:
            if life.value in reused or life.rewritten or (life.copy and not self.tpu):
                continue
            place, v = self.grouping.place(life.value), self.graph.values[life.value]
            if place is None:
                loose.append(life)
                continue
            itemsize = v.itemsize // 2 if life.narrow and self.tpu else v.itemsize
            major = self.program.lives.major.get(life.value, frozenset())
            self.add(place.group, life.start, life.end, Spec("kept", slots_of(place), v.shape, itemsize, major))
        for group in self.grouping.groups.values():
            self.shared_copies(group)
        position = {v.op.id: i for i, v in enumerate(self.grouping.visits)}
        for want in self.grouping.wants:
            v = self.graph.values[want.value]
            if want.role == "operand" and want.visit is not None:
                at = position[want.visit.op.id]
                self.add(want.consumer, at, at + 1, Spec("moved", want.slots, v.shape, v.itemsize))
        for want, start, end in brought_stacks(self.grouping):
            v = self.graph.values[want.value]
            self.add(want.consumer, start, end, Spec("moved", want.slots, v.shape, v.itemsize))
        return Occupancy(
            tuple(self.items), tuple(self.specs), float(sum(self.graph.values[x.value].size_bytes for x in loose))
        )

    def shared_copies(self, group: Group) -> None:
        for member in shared_members(self.program, group):
            place, v = self.grouping.place(member), self.graph.values[member]
            assert place is not None
            self.add(group.id, *self.program.copy_spans[member], Spec("shared", slots_of(place), v.shape, v.itemsize))

    def add(self, group: int, start: int, end: int, spec: Spec) -> None:
        if start < end:
            self.items.append(Occupied(group, start, end, self.specs.setdefault(spec, len(self.specs))))
