"""Bytes of one device over the program, for a plan as it will be lowered: kept values, shared copies, moved operands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from passes.ir import Graph, Layout, Sharding, Step, Use
from passes.memory import peak_bytes
from passes.price import Priced, Pricer
from passes.realize import Realized


@dataclass(frozen=True, slots=True)
class Footprint:
    """peak_bytes of one device, the position where it occurs, and what lives there, by kind of array.

    `by_kind`: "arguments" (split in by_argument: first part of the path), "results", "activations" (kept values of the step),
    "copies" (gathered or moved operands).
    """

    peak_bytes: int
    position: int
    by_kind: tuple[tuple[str, int], ...]
    by_argument: tuple[tuple[str, int], ...]


def footprint(priced: Priced, realized: Realized) -> Footprint:
    """Evaluate the plan's memory over time; sizes are what one device holds."""
    graph, program = priced.program.graph, priced.program
    pricer = Pricer(program, priced.mesh)
    position = {v.op.id: i for i, v in enumerate(program.grouping.visits)}
    usages: list[tuple[int, int, float, str, str]] = []
    inputs = {v: graph.input_paths[i] for i, v in enumerate(graph.inputs)} if graph.input_paths else {}
    reused = pricer.reused_outputs()
    outputs = {o for o in graph.outputs if isinstance(o, int)}
    for life in program.lives.kept:
        if life.value in reused:
            continue
        size = local_bytes(priced, realized, life.value, realized.layout.values.get(life.value))
        kind = "arguments" if life.value in inputs else "results" if life.value in outputs else "activations"
        usages.append((life.start, life.end, size, kind, inputs.get(life.value, "")))
    wants: dict[int, list[int]] = {}
    for w in program.grouping.wants:
        if w.visit is not None:
            wants.setdefault(w.value, []).append(position[w.visit.op.id])
    for v, form in realized.layout.shared.items():
        usages.append((min(wants[v]), max(wants[v]) + 1, local_bytes(priced, realized, v, form), "copies", ""))
    for op, decision in realized.layout.ops.items():
        at = position[op]
        for use in decision.uses:
            if use is not None:
                steps = moves_of(realized.layout, graph, use)
                if any(s.kind != "slice" for s in steps):
                    size = max(local_bytes(priced, realized, use.source, s.to) for s in steps)
                    usages.append((at, at + 1, size, "copies", ""))
    peak, at = peak_bytes(((a, b, n) for a, b, n, _, _ in usages), program.lives.end)
    kinds: dict[str, float] = {}
    arguments: dict[str, float] = {}
    for start, end, size, kind, path in usages:
        if start <= at < end:
            kinds[kind] = kinds.get(kind, 0.0) + size
            if kind == "arguments":
                head = "/".join(path.split("/")[:2])
                arguments[head] = arguments.get(head, 0.0) + size
    ranked = sorted(arguments.items(), key=lambda item: -item[1])
    return Footprint(
        int(peak), at, tuple((k, int(n)) for k, n in sorted(kinds.items(), key=lambda item: -item[1])), tuple((k, int(n)) for k, n in ranked)
    )


def moves_of(layout: Layout, graph: Graph, use: Use) -> tuple[Step, ...]:
    """The steps that bring a use's source to where it is wanted."""
    v = graph.values[use.source]
    start = layout.shared[use.source] if use.shared else layout.values[use.source]
    return layout.moves.get((v.shape, v.itemsize, start.dims, use.target.dims), ())


def local_bytes(priced: Priced, realized: Realized, value: int, sharding: Sharding | None) -> int:
    v = priced.program.graph.values[value]
    if sharding is None:
        return v.size_bytes
    return v.itemsize * math.prod(sharding.local_shape(v.shape, priced.mesh.sizes))
