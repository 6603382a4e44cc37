"""The project's own program representation."""

from passes.ir.graph import Graph, Literal, Op, Operand, Region, Source, Value, Visit, verify, walk
from passes.ir.sharding import Dims, Layout, MoveKey, OpDecision, Reduction, Sharding, Step, Use

__all__ = [
    "Dims",
    "Graph",
    "Layout",
    "Literal",
    "MoveKey",
    "Op",
    "OpDecision",
    "Operand",
    "Reduction",
    "Region",
    "Sharding",
    "Source",
    "Step",
    "Use",
    "Value",
    "Visit",
    "verify",
    "walk",
]
