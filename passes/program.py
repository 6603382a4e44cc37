"""What planning knows of a graph before a mesh is chosen: groups, lives, counts, and what is on the critical path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passes.groups import Grouping
from passes.ir import Graph, Literal, Op, control_of, has_control, region_share
from passes.memory import Lives, lives
from passes.rules import rule_for


@dataclass(frozen=True)
class Program:
    """What planning knows of a graph before a mesh is chosen."""

    graph: Graph
    grouping: Grouping
    lives: Lives
    count: Mapping[int, int]  # how often a value is made in one step
    share: Mapping[int, float]  # of values within branches: the part of these times that really happens
    reaches: frozenset[int]  # values that some later contraction depends on
    readers: Mapping[int, int]  # wants of a value by operations that lead groups
    parameter_bytes: int  # inputs that are carried to the next step and read by more than their own update
    late_bytes: Mapping[int, int]  # by count: bytes of contraction results that no contraction depends on (gradients)

    def runs(self, value: int) -> float:
        """How often a value is expected to be made in one step."""
        return self.count[value] * self.share.get(value, 1.0)


def analyse(graph: Graph, grouping: Grouping) -> Program:
    count: dict[int, int] = dict.fromkeys((*graph.inputs, *graph.constants), 1)
    share: dict[int, float] = {}
    readers: dict[int, int] = {}
    for v in grouping.visits:
        made = list(v.op.outputs)
        count.update(dict.fromkeys(made, v.count))
        for region in v.op.regions:
            count.update(dict.fromkeys(region.inputs, v.count * region.trip_count))
            made += region.inputs
        if has_control(v.op):
            control = control_of(v.op)
            for _, b in control.passed:
                count[b] = v.count  # what every iteration reads enters once
                readers[b] = int(v.op.primitive != "cond")  # and every iteration is a reader
        if v.share != 1.0 or region_share(v.op) != 1.0:
            share.update(dict.fromkeys(made, v.share))
            share.update((b, v.share * region_share(v.op)) for r in v.op.regions for b in r.inputs)
    reaches = _reaching(graph)
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
    known = lives(graph, grouping)
    return Program(graph, grouping, known, count, share, frozenset(reaches), readers, parameters, late)


def _reaching(graph: Graph) -> set[int]:
    """Values from which a contraction or an indexing operation is reached."""
    found: set[int] = set()

    def region(ops: tuple[Op, ...]) -> None:
        for op in reversed(ops):
            if has_control(op):
                control = control_of(op)
                ties = [(o, r) for outs, r in control.merges for o in outs]
                ties += [(c.after, c.result) for c in control.carries] + list(control.stacks)
                ties += [(c.after, b) for c in control.carries for b in c.inside]
                for _ in range(2):  # a carry reaches what the next iteration reaches
                    found.update(o for o, r in ties if r in found and not isinstance(o, Literal))
                    for body in reversed(op.regions):
                        region(body.ops)
                entering = [(op.inputs[i], b) for i, b in (*control.passed, *control.slices)]
                entering += [(op.inputs[c.operand], b) for c in control.carries for b in c.inside]
                found.update(o for o, b in entering if b in found and not isinstance(o, Literal))
            elif rule_for(graph, op).kind in ("contraction", "indexing") or any(r in found for r in op.outputs):
                found.update(o for o in op.inputs if not isinstance(o, Literal))

    region(graph.ops)
    return found
