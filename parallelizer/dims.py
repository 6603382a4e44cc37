"""The named dimensions of a plan: how large they are, and over which mesh axes each is cut, by kind of array."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.dim_names import Dims, named_dims
from passes.ir import Graph, Layout

if TYPE_CHECKING:
    from parallelizer.plans import Plan

KINDS = ("parameters", "optimizer state", "data", "activations")


@dataclass(frozen=True, slots=True)
class DimCut:
    """`kind` of arrays (one of KINDS) cut over `axes` along a dimension (none: whole there), and which share of the
    bytes of such arrays with this dimension they are."""

    kind: str
    axes: tuple[str, ...]
    share: float


@dataclass(frozen=True, slots=True)
class PlannedDim:
    """A named dimension: its size in elements, how many arguments have it, and how it is cut, the largest share
    first."""

    name: str
    size: int
    arguments: int
    cuts: tuple[DimCut, ...]

    def of(self, kind: str) -> tuple[DimCut, ...]:
        return tuple(c for c in self.cuts if c.kind == kind)


def dims_of(plan: Plan) -> tuple[PlannedDim, ...]:
    """The named dimensions of a plan: as its file says, or of its program; empty where it has met neither."""
    if plan.dims or plan.graph is None:
        return plan.dims
    return planned_dims(plan.graph, plan.layout)


def planned_dims(graph: Graph, layout: Layout) -> tuple[PlannedDim, ...]:
    """The named dimensions of a program and how a layout cuts them. Takes about as long as tracing did."""
    dims = named_dims(graph)
    inputs = frozenset(graph.inputs)
    size_bytes: dict[str, dict[str, Counter[tuple[str, ...]]]] = {}
    arguments: Counter[str] = Counter()
    for value, sharding in layout.values.items():
        if value not in dims.classes.values:
            continue
        kind = _kind(dims, inputs, value)
        for axes, chain in zip(sharding.dims, dims.along(value), strict=True):
            if chain:
                per_kind = size_bytes.setdefault(chain[0].name, {})
                per_kind.setdefault(kind, Counter())[axes] += graph.values[value].size_bytes
                arguments[chain[0].name] += value in inputs
    out = []
    for dim in dims.named:
        cuts = [
            DimCut(kind, axes, part / max(1, sum(found.values())))
            for kind in KINDS
            if (found := size_bytes.get(dim.name, {}).get(kind)) is not None
            for axes, part in sorted(found.items(), key=lambda row: (-row[1], row[0]))
        ]
        out.append(PlannedDim(dim.name, dim.size, arguments[dim.name], tuple(cuts)))
    return tuple(out)


def _kind(dims: Dims, inputs: frozenset[int], value: int) -> str:
    if value not in inputs:
        return "activations"
    if value not in dims.weights:
        return "data"
    return "parameters" if value in dims.parameters else "optimizer state"
