"""From chosen strategies to the layout that lowering applies, and to the collectives that the compiled program must
show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from passes.borders import BorderMove, border_moves
from passes.groups import Finish, Group, Place, Want
from passes.ir import Dims, Layout, Literal, MoveKey, OpDecision, Reduction, Sharding, Step, Use, Visit
from passes.packing import pack_collectives
from passes.price import Priced
from passes.strategies import ARRIVING, Strategy

_WHY = {
    "operand": "brought to where it is used",
    "enter": "brought to the loop",
    "return": "handed to the next iteration",
    "stack": "stacked",
    "branch": "result of a branch",
    "output": "leaves as it came",
}


@dataclass(frozen=True, slots=True)
class PlannedCollective:
    """One collective of the plan.

    kind as in `Step`; `axes` of the mesh; `size_bytes` the larger of one device's operand and result; `count` runs
    per step; `op` the operation it belongs to (-1: it leaves the program), `value` the array that moves, `why` a
    short reason; `late` whether nothing in the forward or backward pass waits for it. `share` is the part of these
    runs that is expected to happen, less than 1 within branches.
    """

    kind: str
    axes: tuple[str, ...]
    size_bytes: int
    count: int
    op: int
    value: int
    why: str
    late: bool
    share: float = 1.0


@dataclass(frozen=True)
class Realized:
    """Layout and collectives of one solution; `position[k]` is where in the program collective k is issued."""

    layout: Layout
    collectives: tuple[PlannedCollective, ...]
    position: tuple[int, ...]
    chosen: dict[int, Strategy]


def realize(priced: Priced, choice: Sequence[int]) -> Realized:
    """Spell out the solution `choice` (a strategy per node of the priced problem)."""
    return _Realizer(priced, choice).run()


class _Realizer:
    def __init__(self, priced: Priced, choice: Sequence[int]) -> None:
        self.priced = priced
        self.graph = priced.program.graph
        self.grouping = priced.program.grouping
        self.mesh = priced.mesh
        self.pricer = priced.pricer
        self.chosen = {g: priced.strategies[g][choice[n]] for n, g in enumerate(priced.order)}
        self.position = {v.op.id: i for i, v in enumerate(self.grouping.visits)}
        self.made = {r: i for i, v in enumerate(self.grouping.visits) for r in v.op.outputs}
        self.values: dict[int, Sharding] = {}
        self.shared: dict[int, Sharding] = {}
        self.moves: dict[MoveKey, tuple[Step, ...]] = {}
        self.ops: dict[int, OpDecision] = {}
        self.uses: dict[int, dict[int, tuple[Use, Sharding]]] = {}
        self.found: list[tuple[int, PlannedCollective]] = []
        self.exchanged: set[tuple[BorderMove, tuple[int, ...]]] = set()

    def run(self) -> Realized:
        for g, strategy in self.chosen.items():
            group = self.grouping.groups[g]
            for v in group.members:
                partial = strategy.partial if v == group.root else ()
                self.values[v] = Sharding(self.pricer.form(v, strategy), partial)
        for copy, want in enumerate(self.grouping.wants):
            self.serve(want, copy)
        for g, strategy in self.chosen.items():
            group = self.grouping.groups[g]
            if group.leader is not None and group.rule is not None:
                self.lead(group, strategy)
            for finish in group.finishes:
                self.finish(finish, strategy)
        for op, uses in self.uses.items():
            if op not in self.ops:
                self.follow(op, uses)
        self.found.sort(key=lambda item: item[0])
        shares = {v.op.id: v.share for v in self.grouping.visits if v.share != 1.0}
        found = [(at, replace(c, share=min(c.share, shares.get(c.op, 1.0)))) for at, c in self.found]
        layout = Layout(tuple(self.mesh.sizes.items()), self.values, self.shared, self.ops, self.moves)
        layout = replace(layout, packs=pack_collectives(self.graph, layout, self.priced.program.reaches, self.mesh))
        return Realized(layout, tuple(c for _, c in found), tuple(p for p, _ in found), self.chosen)

    # ---- operands ----
    def serve(self, want: Want, copy: int) -> None:
        place = self.grouping.place(want.value)
        assert place is not None
        source, consumer = self.chosen[place.group], self.chosen[want.consumer]
        group, reader = self.grouping.groups[place.group], self.grouping.groups[want.consumer]
        table = self.pricer.table(want.value, group)
        form = self.values[want.value]
        target = Sharding(consumer.form(want.slots))
        sums = reader.sums and want.role == "operand" and want.visit is not None and reader.leader is not None
        if sums and want.visit is not None and reader.leader is not None and want.visit.op is reader.leader.op:
            target = Sharding(target.dims, tuple(consumer.axes_of(ARRIVING)))
        shared = False
        steps: tuple[Step, ...] = ()
        if not form.partial:
            start = form.dims
            if source.shared is not None and self.priced.program.readers.get(want.value, 0) > 1:
                gathered = self.pricer.form(want.value, source, shared=True)
                self.share(want, group, form, Sharding(gathered))
                if table.price(gathered, target.dims) < table.price(start, target.dims):
                    start, shared = gathered, True
            steps = self.steps(want.value, group, start, target.dims)
        use = Use(want.value, target, shared, copy)
        leaves = want.role in ("output", "return", "stack", "branch")
        at = self.end_of(want) if leaves or want.visit is None else self.position[want.visit.op.id]
        self.collect(
            steps, at, want.count, want.visit.op.id if want.visit is not None else -1, want.value, self.why(want),
            want.share,
        )  # fmt: skip
        if want.role == "operand":
            assert want.visit is not None
            for visit, operand in ((want.visit, want.operand), *want.repeats):
                self.uses.setdefault(visit.op.id, {})[operand] = (use, self.operand_form(visit, operand, want, target))

    def steps(self, value: int, group: Group, source: Dims, target: Dims) -> tuple[Step, ...]:
        """The steps of a reshard; the same for equal arrays, whatever share of latencies each of them pays."""
        v = self.graph.values[value]
        key = (v.shape, v.itemsize, source, target)
        if key not in self.moves:
            self.moves[key] = self.pricer.table(value, group).steps(source, target)
        return self.moves[key]

    def end_of(self, want: Want) -> int:
        """Where a value that leaves (the program, or an iteration) is moved: where it was made."""
        return self.made.get(want.value, len(self.grouping.visits))

    def operand_form(self, visit: Visit, operand: int, want: Want, target: Sharding) -> Sharding:
        """Sharding of the operand itself, which may repeat the moved value along new dimensions."""
        o = visit.op.inputs[operand]
        if o == want.value:
            return target
        consumer = self.chosen[want.consumer]
        group = self.grouping.groups[want.consumer]
        shape = self.graph.shape_of(o)
        if group.leader is not None and group.leader.op is visit.op and group.rule is not None:
            return Sharding(tuple(consumer.axes_of(d[0]) if d else () for d in group.rule.operands[operand]))
        result = self.values[visit.op.outputs[0]]
        full = self.graph.shape_of(visit.op.outputs[0])
        return Sharding(tuple(a if n == m else () for a, n, m in zip(result.dims, shape, full, strict=True)))

    def share(self, want: Want, group: Group, form: Sharding, gathered: Sharding) -> None:
        value = want.value
        while value in self.priced.program.outer:
            self.shared[value] = gathered
            value = self.priced.program.outer[value]
        if value in self.shared:
            return
        self.shared[value] = gathered
        steps = self.steps(value, group, form.dims, gathered.dims)
        at = self.position[want.visit.op.id] if want.visit is not None else 0
        op = want.visit.op.id if want.visit is not None else -1
        self.collect(steps, at, self.priced.program.count[value], op, value, "moved once for several uses")

    def why(self, want: Want) -> str:
        return _WHY[want.role]

    def collect(
        self, steps: tuple[Step, ...], at: int, count: int, op: int, value: int, why: str, share: float = 1.0
    ) -> None:
        late = value not in self.priced.program.reaches
        for s in steps:
            if s.kind != "slice":
                c = PlannedCollective(s.kind, s.axes, s.size_bytes, count, op, value, why, late, share)
                self.found.append((at, c))

    # ---- operations ----
    def lead(self, group: Group, strategy: Strategy) -> None:
        visit, rule = group.leader, group.rule
        assert visit is not None and rule is not None
        op = visit.op
        own = self.uses.get(op.id, {})
        forms: list[Sharding | None] = []
        for i, (o, dims) in enumerate(zip(op.inputs, rule.operands, strict=True)):
            wanted = Sharding(tuple(strategy.axes_of(d[0]) if d else () for d in dims))
            if strategy.axes_of(ARRIVING) and not isinstance(o, Literal):
                wanted = Sharding(wanted.dims, tuple(strategy.axes_of(ARRIVING)))
            forms.append(own[i][1] if i in own else wanted)
        results = tuple(self.values.get(r, Sharding.replicated(len(self.graph.values[r].shape))) for r in op.outputs)
        place = self.grouping.place(group.root)
        reductions = self.result_reductions(strategy, place)
        axes = [a for _, on in strategy.factors for a in on]
        manual = bool(axes) and (rule.local or bool(strategy.axes_of(ARRIVING)))
        uses = tuple(own[i][0] if i in own else None for i in range(len(op.inputs)))
        self.ops[op.id] = OpDecision(tuple(forms), results, reductions, manual, uses)
        self.reduce(group, strategy, visit)
        self.borders(group, strategy, visit)

    def result_reductions(self, strategy: Strategy, place: Place | None) -> tuple[Reduction, ...]:
        out = []
        for r in strategy.reductions:
            dim = None if r.dim is None or place is None else place.dims.index(r.dim)
            out.append(Reduction(r.axes, dim, r.combine))
        return tuple(out)

    def reduce(self, group: Group, strategy: Strategy, visit: Visit) -> None:
        size = self.graph.values[group.root].size_bytes // self.mesh.size(self.pricer.before_reduction(group, strategy))
        late = group.root not in self.priced.program.reaches
        for r in strategy.reductions:
            kind = "all_reduce" if r.dim is None else "reduce_scatter"
            at = self.position[visit.op.id]
            self.found.append(
                (at, PlannedCollective(kind, r.axes, size, visit.count, visit.op.id, group.root, "partial sum", late))
            )
            if r.dim is not None:
                size //= self.mesh.size(r.axes)

    def borders(self, group: Group, strategy: Strategy, visit: Visit) -> None:
        assert group.rule is not None
        late = group.root not in self.priced.program.reaches
        at = self.position[visit.op.id]
        inside = tuple(o.id for o in visit.inside)
        for m in border_moves(self.graph, visit.op, group.rule, strategy, self.mesh.sizes):
            # The gradient of a kernel needs the borders that the convolution had: compilers send them once.
            key = (m, inside)
            if m.form == self.values.get(m.value) and key in self.exchanged:
                continue
            self.exchanged.add(key)
            why = "borders of windows" if m.kind == "permute" else "totals of blocks"
            why = "in the user's own local program" if group.rule.own else why
            count = visit.count * m.runs
            planned = PlannedCollective(m.kind, m.axes, m.size_bytes, count, visit.op.id, m.value, why, late)
            self.found.append((at, planned))

    def finish(self, finish: Finish, strategy: Strategy) -> None:
        op = finish.visit.op
        axes = tuple(a for c in finish.classes for a in strategy.classes[c])
        if not axes:
            return
        operand = op.inputs[0]
        assert not isinstance(operand, Literal)
        result = Sharding(tuple(strategy.classes[c] if c >= 0 else () for c in finish.result_dims))
        self.ops[op.id] = OpDecision(
            (self.values[operand],), (result,), (Reduction(axes, None, finish.combine),), True, (None,)
        )
        value = self.graph.values[op.outputs[0]]
        size = value.itemsize * math.prod(result.local_shape(value.shape, self.mesh.sizes))
        late = finish.result not in self.priced.program.reaches
        at = self.position[op.id]
        self.found.append(
            (
                at,
                PlannedCollective(
                    "all_reduce", axes, size, finish.visit.count, op.id, finish.result, "statistic", late
                ),
            )
        )

    def follow(self, op_id: int, uses: dict[int, tuple[Use, Sharding]]) -> None:
        op = self.grouping.visits[self.position[op_id]].op
        forms = tuple(uses[i][1] if i in uses else None for i in range(len(op.inputs)))
        results = tuple(self.values.get(r) for r in op.outputs)
        self.ops[op_id] = OpDecision(
            forms, results, (), False, tuple(uses[i][0] if i in uses else None for i in range(len(op.inputs)))
        )
