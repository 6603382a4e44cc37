"""Loops and branches in grouping: what enters, what is handed on, what is stacked, what branches agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from passes.groups import FREE, SCALAR, Alias, Group, Grouping, Place, State, Want, slots_of
from passes.ir import Carry, Control, Literal, Operand, Visit, control_of, region_share

if TYPE_CHECKING:
    from passes.grouping import Builder


def group_control(builder: Builder, visit: Visit) -> None:
    """States of the regions and results of a loop or branch.

    A carry has one sharding at entry, in every region and at exit, and the results of branches have one too: a group of
    its own, which the search cuts, and wants of all that flows into it.
    """
    op, control = visit.op, control_of(visit.op)
    for i, b in control.passed:
        _passed(builder, op.inputs[i], b)
    for carry in control.carries:
        _carry(builder, visit, carry)
    for i, b in control.slices:
        builder.states[b] = _slice_state(builder, visit, i, b)
    share = visit.share * region_share(op)
    for region in op.regions:
        builder.region(region.ops, visit.count * region.trip_count, (*visit.inside, op), share)
    _results(builder, visit, control)


def _passed(builder: Builder, operand: Operand, inside: int) -> None:
    state = builder.state(operand)
    if state is FREE and not isinstance(operand, Literal):
        # A loop keeps its operands in memory: what could be made anywhere is now an array with a sharding.
        state = builder.plain_group("made", operand)
    if isinstance(state, Place):
        builder.join(inside, state)
    else:
        builder.states[inside] = state


def _carry(builder: Builder, visit: Visit, carry: Carry) -> None:
    value = builder.graph.values[carry.result]
    if not value.shape or value.dtype.startswith("key"):
        for b in carry.inside:
            builder.states[b] = SCALAR
        return
    first, *others = carry.inside
    place = builder.plain_group("carry", first, visit)
    for b in others:
        builder.join(b, place)
    at = {"visit": visit, "operand": carry.operand, "role": "enter", "target": first}
    builder.want(visit.op.inputs[carry.operand], place.group, slots_of(place), visit.count, **at)


def _slice_state(builder: Builder, visit: Visit, operand: int, inside: int) -> State:
    """State of one iteration's slice of a stacked operand, whose stacking dimension is whole within the loop.

    Where it could be cut outside, the slices are a decision of their own and the stack is brought to them before the
    loop. Inputs that are for the loop alone are stored as it reads them.
    """
    stacked = visit.op.inputs[operand]
    state = builder.state(stacked)
    shape = builder.graph.values[inside].shape
    if not isinstance(state, Place) or builder.graph.values[inside].dtype.startswith("key"):
        if not shape:
            return SCALAR
        return Alias(state.source, state.dims[1:]) if isinstance(state, Alias) else FREE
    group = builder.groups[state.group]
    if state.dims[0] >= 0:
        if builder.useful(group.limits[state.dims[0]]) and not (shape and _stays_whole(builder, group)):
            return _brought(builder, visit, operand, inside)
        group.limits[state.dims[0]] = 1
    if shape and not builder.held.allows(inside, Place(state.group, state.dims[1:])):
        return _brought(builder, visit, operand, inside)
    return builder.join(inside, Place(state.group, state.dims[1:])) if shape else SCALAR


def _stays_whole(builder: Builder, group: Group) -> bool:
    """Whether nothing is lost if an input over which a loop runs is stored as the loop reads it: it is handed to the
    next step, or nobody else reads it."""
    own = [m for m in group.members if m in builder.inputs]
    alone = all(builder.reads.get(m, 0) <= 1 for m in own)
    return group.kind == "input" and (alone or bool(builder.trained & set(own))) and builder.pinned.isdisjoint(own)


def _brought(builder: Builder, visit: Visit, operand: int, inside: int) -> State:
    """Slices that are cut as the search likes; single numbers are whole."""
    at = {"visit": visit, "operand": operand, "role": "enter", "target": inside}
    if builder.graph.values[inside].shape:
        place = builder.plain_group("made", inside, visit)
        builder.want(visit.op.inputs[operand], place.group, (None, *slots_of(place)), visit.count, **at)
        return place
    whole = builder.new_group("made", inside, [], leader=visit)
    builder.want(visit.op.inputs[operand], whole.id, (None,), visit.count, **at)
    return SCALAR


def brought_stacks(grouping: Grouping) -> Iterator[tuple[Want, int, int]]:
    """Stacks that are brought to a loop in another sharding: the want, and from when to when the copy lives."""
    position = {v.op.id: i for i, v in enumerate(grouping.visits)}
    last = {outer.id: i for i, v in enumerate(grouping.visits) for outer in v.inside}
    for want in grouping.wants:
        if want.role == "enter" and want.visit is not None and want.visit.op.primitive == "scan":
            op = want.visit.op
            if want.operand >= int(op.params["num_consts"]) + int(op.params["num_carry"]):
                yield want, position[op.id], last.get(op.id, position[op.id]) + 1


def _results(builder: Builder, visit: Visit, control: Control) -> None:
    inner = visit.count * visit.op.regions[-1].trip_count
    for carry in control.carries:
        state = builder.state(carry.inside[0])
        if isinstance(state, Place):
            at = {"visit": visit, "role": "return", "target": carry.inside[0]}
            builder.want(carry.after, state.group, slots_of(state), inner, **at)
            builder.join(carry.result, state)
        else:
            builder.states[carry.result] = state
    for out, result in control.stacks:
        state = builder.state(out)
        if isinstance(state, Place) and builder.held.allows(result, Place(state.group, (-1, *state.dims))):
            builder.join(result, Place(state.group, (-1, *state.dims)))
        else:
            place = builder.plain_group("made", result, visit, whole=frozenset({0}))
            at = {"visit": visit, "role": "stack", "target": result}
            builder.want(out, place.group, slots_of(place)[1:], inner, **at)
    for outs, result in control.merges:
        _merge(builder, visit, outs, result)


def _merge(builder: Builder, visit: Visit, outs: tuple[Operand, ...], result: int) -> None:
    """The result of branches: where all of them yield values of one place it follows, else it is a decision."""
    value = builder.graph.values[result]
    if not value.shape or value.dtype.startswith("key"):
        builder.states[result] = SCALAR
        return
    states = [builder.state(o) for o in outs]
    places = list(dict.fromkeys(s for s in states if isinstance(s, Place)))
    alike = len(places) == 1 and all(isinstance(s, Place) or s is FREE for s in states)
    if alike and builder.held.allows(result, places[0]):
        builder.join(result, places[0])
        return
    place = builder.plain_group("made", result, visit)
    share = visit.share * region_share(visit.op)
    for o in outs:
        at = {"visit": visit, "role": "branch", "target": result, "share": share}
        builder.want(o, place.group, slots_of(place), visit.count, **at)
