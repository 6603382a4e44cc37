"""What planning knows of a graph before a mesh is chosen: groups, lives, counts, and what is on the critical path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    outer: Mapping[int, int]  # what a loop reads whose shared copy is that of the value outside
    copy_spans: Mapping[int, tuple[int, int]]  # from when to when a value's shared copy lives, if it has one
    parameter_bytes: int  # inputs that are carried to the next step and read by more than their own update
    late_bytes: Mapping[int, int]  # by count: bytes of contraction results that no contraction depends on (gradients)

    def runs(self, value: int) -> float:
        """How often a value is expected to be made in one step."""
        return self.count[value] * self.share.get(value, 1.0)

    def origin(self, value: int) -> int:
        """The value whose shared copy serves the readers of this one too."""
        while value in self.outer:
            value = self.outer[value]
        return value


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
    known, outer = lives(graph, grouping), _outer_copies(grouping, readers)
    program = Program(graph, grouping, known, count, share, frozenset(reaches), readers, outer, {}, parameters, late)
    position = {v.op.id: i for i, v in enumerate(grouping.visits)}
    spans: dict[int, tuple[int, int]] = {}
    for w in grouping.wants:
        if w.visit is not None:
            source, at = program.origin(w.value), position[w.visit.op.id]
            first, last = spans.get(source, (at, at + 1))
            spans[source] = (min(first, at), max(last, at + 1))
    return replace(program, copy_spans=spans)


def _outer_copies(grouping: Grouping, readers: dict[int, int]) -> dict[int, int]:
    """Value inside -> value outside, where a loop or branch uses the copy that is made outside; `readers` grows by the
    readers within. A loop within a loop uses the outer loop's copy, and a loop that of the program if it has one."""
    parents: dict[int, int] = {}
    loops: set[int] = set()
    for v in grouping.visits:
        for i, b in control_of(v.op).passed if has_control(v.op) else ():
            o = v.op.inputs[i]
            if not isinstance(o, Literal) and grouping.place(b) is not None and grouping.place(o) == grouping.place(b):
                parents[b] = o
                if v.op.primitive != "cond":
                    loops.add(b)
    read = {b: readers.get(b, 0) > (b in loops) for b in parents}
    for b, o in reversed(parents.items()):
        if read[b] and o in loops:
            readers[o] = readers.get(o, 0) + readers[b]
            read[o] = True
    outer = {}
    for b, o in parents.items():
        if read[b] and readers.get(o, 0) > 1:
            outer[b] = o
            readers[b] = max(2, readers[b])
    return outer


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
