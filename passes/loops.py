"""Loops in grouping: what enters, what is handed on, what is stacked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.groups import FREE, SCALAR, Alias, Place, State, slots_of
from passes.ir import Literal, Region, Visit

if TYPE_CHECKING:
    from passes.grouping import Builder


def group_loop(builder: Builder, visit: Visit) -> None:
    """States of a loop's body and results: a carry has one sharding at entry, in the body and at exit."""
    op, region = visit.op, visit.op.regions[0]
    consts = int(op.params["num_consts"])
    carry = int(op.params["num_carry"])
    for o, b in zip(op.inputs[:consts], region.inputs[:consts], strict=True):
        state = builder.state(o)
        if state is FREE and not isinstance(o, Literal):
            # A loop keeps its operands in memory: what could be made anywhere is now an array with a sharding.
            state = builder.plain_group("made", o)
        if isinstance(state, Place):
            builder.join(b, state)
        else:
            builder.states[b] = state
    for i in range(consts, consts + carry):
        o, b = op.inputs[i], region.inputs[i]
        if not builder.graph.values[b].shape or builder.graph.values[b].dtype.startswith("key"):
            builder.states[b] = SCALAR
            continue
        place = builder.plain_group("carry", b, visit)
        builder.want(o, place.group, slots_of(place), visit.count, visit=visit, operand=i, role="enter", target=b)
    for o, b in zip(op.inputs[consts + carry :], region.inputs[consts + carry :], strict=True):
        builder.states[b] = _slice_state(builder, b, builder.state(o))
    inner = visit.count * region.trip_count
    builder.region(region.ops, inner, (*visit.inside, op))
    _results(builder, visit, region, consts, carry, inner)


def _slice_state(builder: Builder, value: int, state: State) -> State:
    """State of one iteration's slice of a stacked operand: the stacking dimension stays whole."""
    if not builder.graph.values[value].shape:
        return SCALAR
    if isinstance(state, Place):
        if state.dims[0] >= 0:
            builder.groups[state.group].limits[state.dims[0]] = 1
        return builder.join(value, Place(state.group, state.dims[1:]))
    if isinstance(state, Alias):
        return Alias(state.source, state.dims[1:])
    return FREE if state is FREE or builder.graph.values[value].shape else state


def _results(builder: Builder, visit: Visit, region: Region, consts: int, carry: int, inner: int) -> None:
    op = visit.op
    for k in range(carry):
        b, out, result = region.inputs[consts + k], region.outputs[k], op.outputs[k]
        state = builder.state(b)
        if isinstance(state, Place):
            builder.want(out, state.group, slots_of(state), inner, role="return", target=b)
            builder.join(result, state)
        else:
            builder.states[result] = state
    for out, result in zip(region.outputs[carry:], op.outputs[carry:], strict=True):
        state = builder.state(out)
        if isinstance(state, Place):
            builder.join(result, Place(state.group, (-1, *state.dims)))
        else:
            place = builder.plain_group("made", result, visit, whole=frozenset({0}))
            builder.want(out, place.group, slots_of(place)[1:], inner, role="stack", target=result)
