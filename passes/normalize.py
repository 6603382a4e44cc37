"""Removes what nobody reads and what undoes itself, in the open and before anything is counted or priced.

A traced gradient step is full of it: forward results of a loss that is only differentiated, residuals that a loop saves
and no one uses, a transpose of a transpose between a product and the sum that its result belongs to. XLA would drop
them too; a cost model that counted them would not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from passes.ir.graph import Graph, Literal, Op, Operand, Region


def drop_dead(graph: Graph) -> Graph:
    """The graph without operations whose results are unused, inside loops as well; what has effects stays. Two
    transposes that undo each other are gone too.

    Ids of the values and operations that stay are unchanged. Loops lose unused constants, carried values, inputs and
    outputs, branches unused operands and results.
    """
    ops, same = _without_undone(graph.ops, {})
    graph = replace(graph, ops=ops, outputs=tuple(_named(o, same) for o in graph.outputs))
    live = _ids(graph.outputs)
    ops = _sweep(graph.ops, live)
    kept = {v for v in _mentioned(ops)} | set(graph.inputs) | _ids(graph.outputs)
    return replace(
        graph,
        ops=ops,
        values={i: v for i, v in graph.values.items() if i in kept},
        constants={i: c for i, c in graph.constants.items() if i in kept},
    )


def _ids(operands: Iterable[Operand]) -> set[int]:
    return {o for o in operands if not isinstance(o, Literal)}


def _mentioned(ops: Sequence[Op]) -> Iterable[int]:
    for op in ops:
        yield from _ids(op.inputs)
        yield from op.outputs
        for region in op.regions:
            yield from region.inputs
            yield from _ids(region.outputs)
            yield from _mentioned(region.ops)


def _without_undone(ops: Sequence[Op], outer: Mapping[int, int]) -> tuple[tuple[Op, ...], dict[int, int]]:
    """The operations reading past pairs of transposes that undo each other; which value each stands for."""
    same = dict(outer)
    turned: dict[int, tuple[Operand, tuple[int, ...]]] = {}
    out = []
    for op in ops:
        inputs = tuple(_named(o, same) for o in op.inputs)
        regions = []
        for region in op.regions:
            inner, names = _without_undone(region.ops, same)
            outputs = tuple(_named(o, names) for o in region.outputs)
            regions.append(replace(region, ops=inner, outputs=outputs))
        op = replace(op, inputs=inputs, regions=tuple(regions))
        out.append(op)
        if op.primitive == "transpose":
            (operand,), order = op.inputs, tuple(int(d) for d in op.params["permutation"])
            before = turned.get(operand) if not isinstance(operand, Literal) else None
            undone = before is not None and all(before[1][d] == i for i, d in enumerate(order))
            if before is not None and undone and not isinstance(before[0], Literal):
                same[op.outputs[0]] = before[0]
            turned[op.outputs[0]] = (operand, order)
    return tuple(out), same


def _named(operand: Operand, same: Mapping[int, int]) -> Operand:
    return operand if isinstance(operand, Literal) else same.get(operand, operand)


def _sweep(ops: Sequence[Op], live: set[int]) -> tuple[Op, ...]:
    """The operations that `live` needs, in order; `live` grows by what they read."""
    kept: list[Op] = []
    for op in reversed(ops):
        if not has_effects(op) and live.isdisjoint(op.outputs):
            continue
        if op.primitive == "scan":
            op = _sweep_scan(op, live)
        elif op.primitive == "while":
            op = _sweep_while(op, live)
        elif op.primitive == "cond":
            op = _sweep_cond(op, live)
        elif op.primitive == "optimization_barrier":
            op = _sweep_barrier(op, live)
        live.update(_ids(op.inputs))
        kept.append(op)
    return tuple(reversed(kept))


def has_effects(op: Op) -> bool:
    """Whether the operation does something beyond its results (prints, writes to a reference)."""
    return bool(op.params.get("has_effects", False))


def _sweep_barrier(op: Op, live: set[int]) -> Op:
    """A barrier passes its operands through one by one; those whose result is unused need not pass."""
    keep = [i for i, v in enumerate(op.outputs) if v in live]
    return replace(op, inputs=tuple(op.inputs[i] for i in keep), outputs=tuple(op.outputs[i] for i in keep))


def _sweep_scan(op: Op, live: set[int]) -> Op:
    """Remove from a scan what no iteration and nobody outside needs.

    A carried value is needed if it is read outside, or by anything needed in a later iteration: found by growing the
    set of needed carries until the body asks for no more.
    """
    region = op.regions[0]
    n, m = op.params["num_consts"], op.params["num_carry"]
    carry_in = region.inputs[n : n + m]
    carried = {i for i in range(m) if op.outputs[i] in live}
    stacked = [i for i in range(m, len(op.outputs)) if op.outputs[i] in live]
    while True:
        inner = _ids(region.outputs[i] for i in [*sorted(carried), *stacked])
        body = _sweep(region.ops, inner)
        more = {i for i in range(m) if carry_in[i] in inner} - carried
        if not more:
            break
        carried |= more
    outputs = [*sorted(carried), *stacked]
    consts = [i for i in range(n) if region.inputs[i] in inner]
    slices = [i for i in range(n + m, len(region.inputs)) if region.inputs[i] in inner]
    inputs = [*consts, *(n + i for i in sorted(carried)), *slices]
    return replace(
        op,
        inputs=tuple(op.inputs[i] for i in inputs),
        outputs=tuple(op.outputs[i] for i in outputs),
        params={**op.params, "num_consts": len(consts), "num_carry": len(carried)},
        regions=(_part(region, inputs, outputs, body),),
    )


def _part(region: Region, inputs: Sequence[int], outputs: Sequence[int], ops: tuple[Op, ...]) -> Region:
    """A region with some of its inputs and outputs."""
    kept = tuple(region.inputs[i] for i in inputs)
    return replace(region, inputs=kept, outputs=tuple(region.outputs[i] for i in outputs), ops=ops)


def _sweep_while(op: Op, live: set[int]) -> Op:
    """As for a scan; the condition needs carried values too."""
    test, body = op.regions
    n, m = op.params["cond_nconsts"], op.params["body_nconsts"]
    asked = _ids(test.outputs)
    tested = _sweep(test.ops, asked)
    carried = {k for k, r in enumerate(op.outputs) if r in live or test.inputs[n + k] in asked}
    while True:
        inner = _ids(body.outputs[k] for k in carried)
        kept = _sweep(body.ops, inner)
        more = {k for k in range(len(op.outputs)) if body.inputs[m + k] in inner} - carried
        if not more:
            break
        carried |= more
    carries = sorted(carried)
    test_consts = [i for i in range(n) if test.inputs[i] in asked]
    body_consts = [i for i in range(m) if body.inputs[i] in inner]
    inputs = [*test_consts, *(n + i for i in body_consts), *(n + m + k for k in carries)]
    return replace(
        op,
        inputs=tuple(op.inputs[i] for i in inputs),
        outputs=tuple(op.outputs[k] for k in carries),
        params={**op.params, "cond_nconsts": len(test_consts), "body_nconsts": len(body_consts)},
        regions=(
            _part(test, [*test_consts, *(n + k for k in carries)], range(len(test.outputs)), tested),
            _part(body, [*body_consts, *(m + k for k in carries)], carries, kept),
        ),
    )


def _sweep_cond(op: Op, live: set[int]) -> Op:
    """A result that nobody reads goes from every branch, an operand that no branch reads goes too."""
    results = [k for k, r in enumerate(op.outputs) if r in live]
    bodies: list[tuple[Op, ...]] = []
    read: set[int] = set()
    for region in op.regions:
        inner = _ids(region.outputs[k] for k in results)
        bodies.append(_sweep(region.ops, inner))
        read |= {i for i, b in enumerate(region.inputs) if b in inner}
    operands = sorted(read)
    return replace(
        op,
        inputs=(op.inputs[0], *(op.inputs[i + 1] for i in operands)),
        outputs=tuple(op.outputs[k] for k in results),
        regions=tuple(_part(r, operands, results, b) for r, b in zip(op.regions, bodies, strict=True)),
    )
