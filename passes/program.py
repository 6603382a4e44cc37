"""What planning knows of a graph before a mesh is chosen: groups, lives, counts, and what is on the critical path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passes.groups import Grouping
from passes.ir import Graph, Literal, Op
from passes.memory import Lives, lives
from passes.rules import rule_for


@dataclass(frozen=True)
class Program:
    """What planning knows of a graph before a mesh is chosen."""

    graph: Graph
    grouping: Grouping
    lives: Lives
    count: Mapping[int, int]  # how often a value is made in one step
    reaches: frozenset[int]  # values that some later contraction depends on
    readers: Mapping[int, int]  # wants of a value by operations that lead groups
    parameter_bytes: int  # inputs that are carried to the next step and read by more than their own update
    late_bytes: Mapping[int, int]  # by count: bytes of contraction results that no contraction depends on (gradients)


def analyse(graph: Graph, grouping: Grouping) -> Program:
    count: dict[int, int] = dict.fromkeys((*graph.inputs, *graph.constants), 1)
    for v in grouping.visits:
        for region in v.op.regions:
            for b in region.inputs:
                count[b] = v.count * region.trip_count
        for r in v.op.outputs:
            count[r] = v.count
    reaches = _reaching(graph)
    readers: dict[int, int] = {}
    for w in grouping.wants:
        leads = grouping.groups[w.consumer].leader
        if (
            w.role == "operand"
            and leads is not None
            and w.visit is not None
            and leads.op is w.visit.op
            and grouping.groups[w.consumer].kind == "op"
        ):
            readers[w.value] = readers.get(w.value, 0) + 1
    carried = {graph.inputs[i] for i in graph.carried.values()}
    parameters = sum(graph.values[v].size_bytes for v in carried if v in reaches)
    late: dict[int, int] = {}
    for g in grouping.groups.values():
        if g.kind == "op" and g.leader is not None and g.root not in reaches and g.root in graph.values:
            late[g.leader.count] = late.get(g.leader.count, 0) + graph.values[g.root].size_bytes
    return Program(graph, grouping, lives(graph, grouping), count, frozenset(reaches), readers, parameters, late)


def _reaching(graph: Graph) -> set[int]:
    """Values from which a contraction or an indexing operation is reached."""
    found: set[int] = set()

    def region(ops: tuple[Op, ...]) -> None:
        for op in reversed(ops):
            if op.primitive == "scan" and op.regions:
                body = op.regions[0]
                for _ in range(2):  # a carry reaches what the next iteration reaches
                    for out, result in zip(body.outputs, op.outputs, strict=True):
                        if result in found and not isinstance(out, Literal):
                            found.add(out)
                    first = int(op.params["num_consts"])
                    for k in range(int(op.params["num_carry"])):
                        out = body.outputs[k]
                        if body.inputs[first + k] in found and not isinstance(out, Literal):
                            found.add(out)
                    region(body.ops)
                found.update(
                    o for o, b in zip(op.inputs, body.inputs, strict=True) if b in found and not isinstance(o, Literal)
                )
            elif (
                op.regions
                or rule_for(graph, op).kind in ("contraction", "indexing")
                or any(r in found for r in op.outputs)
            ):
                found.update(o for o in op.inputs if not isinstance(o, Literal))

    region(graph.ops)
    return found
