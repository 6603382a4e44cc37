"""Operations and values numbered in program order, which lowering relies on."""

from __future__ import annotations

from dataclasses import replace

from passes.ir.graph import Graph, Literal, Op, Operand, walk


def renumbered(graph: Graph) -> Graph:
    """The same graph, numbered anew; inputs keep their numbers if these are the first ones."""
    number = {v: i for i, v in enumerate((*graph.inputs, *graph.constants))}
    ids = {v.op.id: k for k, v in enumerate(walk(graph))}

    def new(operand: Operand) -> Operand:
        return operand if isinstance(operand, Literal) else number[operand]

    def define(values: tuple[int, ...]) -> tuple[int, ...]:
        for v in values:
            number[v] = len(number)
        return tuple(number[v] for v in values)

    def region(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        out = []
        for op in ops:
            inputs = tuple(new(o) for o in op.inputs)
            regions = []
            for r in op.regions:
                entering = define(r.inputs)
                inner = region(r.ops)
                regions.append(replace(r, inputs=entering, ops=inner, outputs=tuple(new(o) for o in r.outputs)))
            outputs = define(op.outputs)
            out.append(replace(op, id=ids[op.id], inputs=inputs, outputs=outputs, regions=tuple(regions)))
        return tuple(out)

    ops = region(graph.ops)
    values = {number[v]: replace(x, id=number[v]) for v, x in graph.values.items() if v in number}
    return replace(
        graph,
        values=values,
        inputs=tuple(number[v] for v in graph.inputs),
        outputs=tuple(new(o) for o in graph.outputs),
        ops=ops,
        constants={number[v]: c for v, c in graph.constants.items()},
    )
