"""Graph and layout -> a JAX function that runs the program cut that way.

The program is replayed operation by operation. Where the layout decides, operands are brought to the form that the
decision wants and results are pinned; reshards and `manual` operations are local programs, so that the compiled program
has exactly the collectives of the plan. What the layout leaves open is bound as it was traced, for XLA to partition.

Everything bound or added for operation 12 carries the name `pz12` (the last such name in a loop is the operation's), so
that a compiled collective leads back to its operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax import lax
from jax.sharding import AbstractMesh, Mesh

from parallelizer import compat
from parallelizer.islands import Local, before_reductions, finish, run_local
from parallelizer.loops import Scope, run_control
from parallelizer.moves import Planner, gather_and_slice, island, pin, reshard
from parallelizer.own_programs import on_mesh
from parallelizer.packs import gather_together, reduce_together
from passes.ir.control import has_control
from passes.ir.graph import Graph, Literal, Op, Operand
from passes.ir.sharding import Layout, OpDecision, Sharding, Step, Use


def lower(
    graph: Graph, layout: Layout | None, mesh: Mesh | AbstractMesh | None, plan: Planner | None = None
) -> Callable[..., list[Any]]:
    """The program as a function from input leaves to output leaves.

    Without a layout it is the program as traced, bitwise. With one, `mesh` must have its axes (of Auto type) and `plan`
    chooses the steps of reshards (by default: gather, then slice). Outputs that are next step's inputs leave with the
    sharding of that input. ValueError while tracing the result if the layout asks for what cannot be done.
    """
    if layout is not None and mesh is None:
        raise ValueError("a layout needs a mesh")
    if plan is None:
        plan = _planned(layout)
    packs = enumerate(layout.packs if layout else ())
    packed = {(m.place, m.at): k for k, pack in packs for m in pack.members}
    run = _Lowering(graph, layout, mesh, plan, {v: op for op in _all_ops(graph.ops) for v in op.outputs}, packed)

    def flat(*inputs: Any) -> list[Any]:
        return run.program(inputs)

    return flat


def _planned(layout: Layout | None) -> Planner:
    """The plan's own steps; for a pair that it does not have, gather and slice."""
    sizes = dict(layout.axis_sizes) if layout else {}

    def plan(shape: tuple[int, ...], itemsize: int, source: Sharding, target: Sharding) -> tuple[Step, ...]:
        known = layout.moves.get((shape, itemsize, source.dims, target.dims)) if layout else None
        return known if known is not None else gather_and_slice(shape, itemsize, source, target, sizes)

    return plan


def _all_ops(ops: Sequence[Op]) -> Iterator[Op]:
    for op in ops:
        yield op
        for region in op.regions:
            yield from _all_ops(region.ops)


def _use(decision: OpDecision, i: int) -> Use | None:
    return decision.uses[i] if i < len(decision.uses) else None


@dataclass(frozen=True, slots=True, eq=False)
class _Lowering:
    graph: Graph
    layout: Layout | None
    mesh: Any
    plan: Planner
    producer: Mapping[int, Op]
    packed: Mapping[tuple[str, int], int]

    def program(self, inputs: Sequence[Any]) -> list[Any]:
        graph = self.graph
        scope = Scope({**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))})
        for v in (*graph.inputs, *graph.constants):
            self.enter(scope, v)
        self.ops(graph.ops, scope)
        return [self.output(i, o, scope) for i, o in enumerate(graph.outputs)]

    def output(self, i: int, operand: Operand, scope: Scope) -> Any:
        """An output in the sharding that it leaves with, unfinished sums finished."""
        if ("output", i) in self.packed:
            return self.sent("output", i, scope)
        if self.layout is None or isinstance(operand, Literal) or operand not in scope.forms:
            return scope.read(operand)
        target = Sharding(scope.forms[operand].dims)
        if i in self.graph.carried:
            target = self.layout.values.get(self.graph.inputs[self.graph.carried[i]], target)
        with compat.names(None, f"pzout{i}"):
            return self.fetch(operand, target, scope)

    def enter(self, scope: Scope, v: int, form: Sharding | None = None) -> None:
        """A value that comes from outside (input, slice, carry) with its form, or the one that the layout gives it."""
        if self.layout is None:
            return
        form = form or self.layout.values.get(v)
        if form is not None and compat.is_plain_dtype(scope.values[v]):
            scope.forms[v] = form
            self.hold(scope, v)

    def hold(self, scope: Scope, v: int) -> None:
        """Pin a value to its known form, once."""
        if v not in scope.pinned:
            scope.values[v] = pin(scope.values[v], scope.forms[v], self.mesh)
            scope.pinned.add(v)

    def form(self, v: int, scope: Scope) -> Sharding | None:
        """How a value is cut: as it was put, or else as the layout says that it is."""
        known = scope.forms.get(v)
        if known is None and self.layout is not None and compat.is_plain_dtype(scope.values[v]):
            known = self.layout.values.get(v)
        return known

    def ops(self, ops: Sequence[Op], scope: Scope) -> None:
        """Replay operations in order; those that wait for a pack when all others are done and the packs are sent."""
        todo = ops
        while todo:
            later = []
            for op in todo:
                if scope.awaited and any(o in scope.awaited for o in op.inputs if not isinstance(o, Literal)):
                    scope.awaited.update(op.outputs)
                    later.append(op)
                else:
                    self.op(op, scope)
            self.send_sums(scope)
            todo = later

    def op(self, op: Op, scope: Scope) -> None:
        decision = self.layout.ops.get(op.id) if self.layout else None
        if has_control(op):
            run_control(self, op, scope)
        elif decision is None:
            args = [self.whole(o, scope, op) for o in op.inputs]
            if op.primitive == "sharding_constraint" and self.layout:
                scope.values[op.outputs[0]] = args[0]
                return
            scope.values.update(zip(op.outputs, compat.bind(op.binding, args, f"pz{op.id}"), strict=True))
        elif decision.manual:
            self.manual(op, decision, scope)
        else:
            self.automatic(op, decision, scope)

    def whole(self, operand: Operand, scope: Scope, op: Op) -> Any:
        """An operand for an operation that the compiler partitions: any cut will do, but no unfinished sum."""
        if isinstance(operand, Literal):
            return operand.value
        form = scope.forms.get(operand)
        if form is None or not form.partial:
            return scope.values[operand]
        with compat.names(op.binding, f"pz{op.id}"):
            return self.fetch(operand, Sharding(form.dims), scope)

    def automatic(self, op: Op, decision: OpDecision, scope: Scope) -> None:
        """Constraints around the operation. Where several axes are scattered they are constrained one after the other:
        asked for at once, the compiler reduces everywhere and slices."""
        args = []
        for i, operand in enumerate(op.inputs):
            target = decision.operands[i] if i < len(decision.operands) else None
            if target is None or isinstance(operand, Literal):
                args.append(self.whole(operand, scope, op))
            else:
                with compat.names(op.binding, f"pz{op.id}"):
                    args.append(self.operand(operand, target, _use(decision, i), scope))
        annotated = op.primitive == "sharding_constraint"  # the decision is what the annotation says, on our mesh
        changed = on_mesh(op, self.mesh) if op.primitive == "shard_map" else None
        results = args if annotated else compat.bind(op.binding, args, f"pz{op.id}", changed)
        for v, result, form in zip(op.outputs, results, decision.results, strict=True):
            scope.values[v] = result
            if form is None or not compat.is_plain_dtype(result):
                continue
            if form.partial:
                raise ValueError(f"op {op.id} {op.primitive}: an unfinished sum needs a local program")
            with compat.names(op.binding, f"pz{op.id}"):
                for k in range(1, len(decision.reductions)):
                    early = before_reductions(form, decision.reductions[k:])
                    scope.values[v] = pin(scope.values[v], early, self.mesh)
                scope.forms[v] = form
                self.hold(scope, v)

    def manual(self, op: Op, decision: OpDecision, scope: Scope) -> None:
        """The operation as a local program, its reductions spelled out."""
        graph = self.graph
        assert self.layout is not None
        arrays = [o for o in op.inputs if not isinstance(o, Literal)]
        forms: list[Sharding] = []
        for i, operand in enumerate(op.inputs):
            given = decision.operands[i] if i < len(decision.operands) else None
            if isinstance(operand, Literal):
                forms.append(Sharding(()))
            else:
                known = given or self.form(operand, scope)
                forms.append(known or Sharding.replicated(len(graph.shape_of(operand))))
        results: list[Sharding] = []
        for v, given in zip(op.outputs, decision.results, strict=True):
            rank = len(graph.values[v].shape)
            results.append(given or self.layout.values.get(v) or Sharding.replicated(rank))
        summed = tuple(a for r in decision.reductions if r.combine == "sum" for a in r.axes)
        reductions, held = decision.reductions, ("result", op.id) in self.packed
        if held:
            partial = tuple(a for r in reductions for a in r.axes)
            reductions, results = (), [Sharding(before_reductions(results[0], reductions).dims, partial)]
        local = Local(
            op=op,
            operands=tuple(forms),
            results=tuple(before_reductions(r, decision.reductions) for r in results),
            shapes=tuple(graph.shape_of(o) for o in op.inputs),
            result_shapes=tuple(graph.values[v].shape for v in op.outputs),
            sizes=dict(self.layout.axis_sizes),
            summed=(*summed, *(a for a in results[0].partial if a not in summed)),
        )

        def body(*blocks: Any) -> Any:
            rest = iter(blocks)
            full = []
            for operand, form in zip(op.inputs, forms, strict=True):
                block = operand.value if isinstance(operand, Literal) else next(rest)
                full.append(block[0] if form.partial else block)
            out = [finish(b, reductions) for b in run_local(local, full)]
            out = [b[None] if r.partial else b for b, r in zip(out, results, strict=True)]
            return out[0] if len(out) == 1 else tuple(out)

        with compat.names(op.binding, f"pz{op.id}"):
            wanted = [f for f, o in zip(forms, op.inputs, strict=True) if not isinstance(o, Literal)]
            uses = [_use(decision, i) for i, o in enumerate(op.inputs) if not isinstance(o, Literal)]
            args = [self.operand(o, f, u, scope) for o, f, u in zip(arrays, wanted, uses, strict=True)]
            made = island(body, wanted, results, self.mesh)(*args)
        if held:
            scope.held["result", op.id] = made
            scope.awaited.update(op.outputs)
            return
        for v, value, form in zip(op.outputs, (made,) if len(results) == 1 else made, results, strict=True):
            scope.values[v] = value
            scope.forms[v] = form
            scope.pinned.add(v)

    def sent(self, place: str, at: int, scope: Scope) -> Any:
        """A gathered array that travels in a pack, which is sent when the first of its arrays is asked for."""
        if (place, at) not in scope.sent:
            assert self.layout is not None
            k = self.packed[place, at]
            pack = self.layout.packs[k]
            forms = [self.form(m.value, scope) or self.layout.values[m.value] for m in pack.members]
            with compat.names(None, f"pzpack{k}"):
                made = gather_together(pack, [scope.values[m.value] for m in pack.members], forms, self.mesh)
            scope.sent.update(zip(((m.place, m.at) for m in pack.members), made, strict=True))
        return scope.sent[place, at]

    def send_sums(self, scope: Scope) -> None:
        """Finish the sums that were held back, a pack at a time."""
        for k in sorted({self.packed[place] for place in scope.held}):
            assert self.layout is not None
            pack = self.layout.packs[k]
            forms = [self.layout.values[m.value] for m in pack.members]
            with compat.names(None, f"pzpack{k}"):
                made = reduce_together(pack, [scope.held[m.place, m.at] for m in pack.members], forms, self.mesh)
            for m, x, form in zip(pack.members, made, forms, strict=True):
                scope.values[m.value], scope.forms[m.value] = x, form
                scope.pinned.add(m.value)
        scope.held.clear()
        scope.awaited.clear()

    def operand(self, v: int, target: Sharding, use: Use | None, scope: Scope) -> Any:
        """An operand in the form `target`, moved as the plan says; what repeats a moved array is made anew from it."""
        outside = use is not None and use.source not in scope.values  # a loop constant that repeats an outer value
        if use is None or outside or not compat.is_plain_dtype(scope.values[v]):
            return self.fetch(v, target, scope)
        if use.copy not in scope.served:
            scope.served[use.copy] = self.serve(use, scope)
        moved = scope.served[use.copy]
        if v == use.source:
            return moved
        return pin(self.again(v, use.source, moved, scope), target, self.mesh)

    def serve(self, use: Use, scope: Scope) -> Any:
        """The moved copy of a use's source."""
        v = use.source
        if ("use", use.copy) in self.packed:
            return self.sent("use", use.copy, scope)
        own = self.form(v, scope)
        if own is None or not use.shared or self.layout is None:
            return self.fetch(v, use.target, scope, shares=False)
        shared = self.layout.shared[v]
        copy = self.copy(v, own, shared, scope)
        if shared == use.target:
            return copy
        return self.move(v, copy, shared, use.target, self.steps(v, shared, use.target), scope, True)

    def again(self, v: int, source: int, moved: Any, scope: Scope) -> Any:
        """Value `v` computed once more from `moved`, which stands for `source`."""
        if v == source:
            return moved
        op = self.producer[v]
        if op.primitive == "optimization_barrier":
            return lax.optimization_barrier(self.again(self.behind(op, v), source, moved, scope))
        args = []
        for o in op.inputs:
            if isinstance(o, Literal) or not self.depends(o, source):
                args.append(scope.read(o))
            else:
                args.append(self.again(o, source, moved, scope))
        return compat.bind(op.binding, args, f"pz{op.id}")[op.outputs.index(v)]

    def behind(self, barrier: Op, v: int) -> int:
        """The value that leaves a barrier as `v`; the others that pass it have nothing to do with `v`."""
        operand = barrier.inputs[barrier.outputs.index(v)]
        assert not isinstance(operand, Literal)
        return operand

    def depends(self, v: int, source: int) -> bool:
        """Whether `v` is made from `source` within one scope (aliases are a few cheap operations away)."""
        todo, seen = [v], {v}
        while todo:
            at = todo.pop()
            if at == source:
                return True
            op = self.producer.get(at)
            if op is None or op.regions or at < source:  # ids grow in program order
                continue
            barrier = op.primitive == "optimization_barrier"
            from_ = {self.behind(op, at)} if barrier else {o for o in op.inputs if not isinstance(o, Literal)}
            todo += from_ - seen  # every value once: paths can be exponentially many
            seen |= from_
        return False

    def fetch(self, v: int, target: Sharding, scope: Scope, shares: bool = True) -> Any:
        """Value `v` in the form `target`: as it is, its shared copy, or whichever of them is closer, resharded."""
        value = scope.values[v]
        source = self.form(v, scope)
        if not compat.is_plain_dtype(value):
            return value
        if source is None:
            return pin(value, target, self.mesh)
        if source == target:
            scope.forms[v] = source
            self.hold(scope, v)
            return scope.values[v]
        steps = self.steps(v, source, target)
        shared = self.layout.shared.get(v) if self.layout and shares else None
        if shared is not None and shared != source:
            after = self.steps(v, shared, target)
            if sum(s.size_bytes for s in after) < sum(s.size_bytes for s in steps) or shared == target:
                copy = self.copy(v, source, shared, scope)
                return copy if shared == target else self.move(v, copy, shared, target, after, scope, True)
        return self.move(v, value, source, target, steps, scope, False)

    def steps(self, v: int, source: Sharding, target: Sharding) -> tuple[Step, ...]:
        value = self.graph.values[v]
        return tuple(self.plan(value.shape, value.itemsize, Sharding(source.dims), Sharding(target.dims)))

    def copy(self, v: int, source: Sharding, shared: Sharding, scope: Scope) -> Any:
        """The one copy of `v` that several consumers read, made when the first of them asks."""
        if ("copy", v) in self.packed:
            return self.sent("copy", v, scope)
        if v not in scope.copies:
            steps = self.steps(v, source, shared)
            scope.copies[v] = self.move(v, scope.values[v], source, shared, steps, scope, False)
        return scope.copies[v]

    def move(
        self, v: int, x: Any, source: Sharding, target: Sharding, steps: tuple[Step, ...], scope: Scope, copied: bool
    ) -> Any:
        """One reshard. If the same first step was already taken from this value the plan wants it twice (it did not
        share), and a barrier keeps the compiler from merging the two and holding the copy. Each further one takes the
        barrier's result of the one before: barriers with equal operands would be merged."""
        repeat = 0
        if steps and steps[0].kind != "slice":
            key = (v, copied, steps[0])
            if key in scope.moved:
                repeat, x = scope.moved[key]
                x = lax.optimization_barrier(x)
            scope.moved[key] = (repeat + 1, x)
        return reshard(x, source, target, steps, self.mesh, repeat)
