"""What the price of a group or of a want depends on, whatever the mesh: what is equal here costs the same."""

from __future__ import annotations

from collections.abc import Hashable

from passes.exposure import role_of
from passes.groups import Group, Place, Want
from passes.program import Program
from passes.strategies import same_choices


def place_of(program: Program, want: Want) -> Place:
    """Where the wanted value stands: wants are of values that have a place."""
    place = program.grouping.place(want.value)
    assert place is not None
    return place


def latency_share(program: Program, value: int, group: Group) -> float:
    """1 for a collective on the critical path; else the part of one combined collective's latency that is this
    value's."""
    size = program.graph.values[value].size_bytes
    if group.kind == "input" and program.count.get(value, 1) == 1:
        return _share(size, program.parameter_bytes)
    if value not in program.reaches:
        once = program.count.get(value, 1) == 1
        return _share(size, program.parameter_bytes if once else program.late_bytes.get(program.count[value], 0))
    return 1.0


def shared_members(program: Program, group: Group) -> list[int]:
    """Values of which several readers may use one moved copy."""
    return [v for v in group.members if program.readers.get(v, 0) > 1 and v not in program.outer]


def shares(program: Program, group: Group) -> bool:
    """Whether strategies with a shared copy are worth having."""
    return any(program.readers.get(v, 0) > 1 for v in group.members)


def moved_bytes(program: Program, group: Group) -> dict[tuple[int, ...], float]:
    """Bytes that are written and read again by what follows, by the classes that cut them."""
    moved: dict[tuple[int, ...], float] = {}
    kept = program.lives.present
    for v in group.members:
        place = program.grouping.place(v)
        if v in kept and place is not None and not (group.kind == "op" and v == group.root):
            key = tuple(sorted(c for c in place.dims if c >= 0))
            moved[key] = moved.get(key, 0.0) + 2.0 * program.graph.values[v].size_bytes * program.runs(v)
    return moved


def group_likeness(program: Program, group: Group) -> Hashable:
    """Equal for groups that have the same strategies at the same price by themselves."""
    values, leader, rule = program.graph.values, group.leader, group.rule
    root: tuple[Hashable, ...] = ()
    if group.root >= 0:
        share, role = latency_share(program, group.root, group), role_of(program, group.root, group)
        root = (values[group.root].size_bytes, share, role)
    runs = (leader.runs, leader.count) if leader is not None else ()
    ends = tuple((f.visit.runs, values[f.result].size_bytes, f.result_dims, f.classes) for f in group.finishes)
    copies = []
    for v in shared_members(program, group):
        place = program.grouping.place(v)
        assert place is not None
        share = latency_share(program, v, group)
        role = role_of(program, v, group)
        copies.append((values[v].shape, values[v].itemsize, share, role, program.runs(v), place.dims))
    moved = tuple(sorted(moved_bytes(program, group).items()))
    own: tuple[Hashable, ...] = (group.kind, root, runs, ends, tuple(copies), moved, shares(program, group))
    if leader is not None and rule is not None and group.kind == "op":
        op = leader.op
        arrays = [(a.shape, a.itemsize, a.dtype) for a in map(program.graph.value_of, (*op.inputs, *op.outputs))]
        own = (*own, rule.kind, rule.flop, *arrays)
    return (*same_choices(group), *own)


def want_likeness(program: Program, want: Want) -> tuple[Hashable, ...]:
    """Equal for wants that cost the same, if the strategies of both groups are the same. The last two say whether the
    value may have a shared copy, and whether the reader takes unfinished sums."""
    v, place = program.graph.values[want.value], place_of(program, want)
    group, consumer = program.grouping.groups[place.group], program.grouping.groups[want.consumer]
    has_copy = program.readers.get(want.value, 0) > 1
    leads = want.visit is not None and consumer.leader is not None and want.visit.op is consumer.leader.op
    sums = consumer.sums and want.role == "operand" and leads
    share = latency_share(program, want.value, group)
    role = role_of(program, want.value, group)
    return v.shape, v.itemsize, share, role, place.dims, want.slots, want.runs, has_copy, sums


def _share(size_bytes: int, total_bytes: int) -> float:
    return size_bytes / max(total_bytes, size_bytes, 1)
