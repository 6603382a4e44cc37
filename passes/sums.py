"""Facts about how values are read that grouping needs: sums that can be finished late, repeated reads, private
state."""

from __future__ import annotations

from dataclasses import replace

from passes.groups import Group, Place, State, Want
from passes.ir import Graph, Literal, Op
from passes.rules import rule_for


def merge_repeats(wants: list[Want]) -> list[Want]:
    """One want for all operands of a group that need the same value in the same way, in the same loop."""
    first: dict[object, int] = {}
    out: list[Want] = []
    for w in wants:
        inside = tuple(o.id for o in w.visit.inside) if w.visit is not None else ()
        key = (w.value, w.consumer, w.slots, w.count, inside)
        if w.role != "operand" or w.visit is None or key not in first:
            if w.role == "operand":
                first[key] = len(out)
            out.append(w)
        else:
            old = out[first[key]]
            out[first[key]] = replace(old, repeats=(*old.repeats, (w.visit, w.operand)))
    return out


def mark_sums(graph: Graph, groups: dict[int, Group], states: dict[int, State]) -> None:
    """Find sums of contractions that nothing else reads: one reduction after the sum does for all of them.

    The gradient of an input that feeds three projections is such a sum; so is that of a tied embedding.
    """
    uses: dict[int, int] = {}

    def count(ops: tuple[Op, ...]) -> None:
        for op in ops:
            for o in op.inputs:
                if not isinstance(o, Literal):
                    uses[o] = uses.get(o, 0) + 1
            for region in op.regions:
                count(region.ops)
                for o in region.outputs:
                    if not isinstance(o, Literal):
                        uses[o] = uses.get(o, 0) + 1

    count(graph.ops)
    for o in graph.outputs:
        if not isinstance(o, Literal):
            uses[o] = uses.get(o, 0) + 1
    for group in groups.values():
        if group.kind != "join" or group.leader is None or group.leader.op.primitive not in ("add", "add_any"):
            continue
        parts = []
        for o in group.leader.op.inputs:
            place = states.get(o) if not isinstance(o, Literal) else None
            source = groups.get(place.group) if isinstance(place, Place) else None
            if source is None or source.root != o or uses[o] != 1 or len(source.members) != 1 or source.finishes:
                break
            if not source.sums and (source.rule is None or "sum" not in source.rule.reduced.values()):
                break
            parts.append(source)
        else:
            group.sums = True
            for source in parts:
                source.defers = True


def private_state(graph: Graph) -> set[int]:
    """State inputs whose every use is element-wise: optimizer moments, which may be cut however their update likes."""
    inputs = {graph.inputs[i] for i in graph.carried.values()}
    bad: set[int] = set()

    def scan(ops: tuple[Op, ...]) -> None:
        for op in ops:
            used = [o for o in op.inputs if not isinstance(o, Literal) and o in inputs]
            if used and (op.regions or rule_for(graph, op).kind != "elementwise"):
                bad.update(used)
            for region in op.regions:
                scan(region.ops)

    scan(graph.ops)
    return inputs - bad
