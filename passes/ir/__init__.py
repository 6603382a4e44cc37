"""The project's own program representation."""

from passes.ir.graph import Graph, Literal, Op, Operand, Region, Source, Value, Visit, verify, walk
from passes.ir.sharding import Layout, OpDecision, Reduction, Sharding, Step, Use

__all__ = [
    "Graph", "Layout", "Literal", "Op", "OpDecision", "Operand", "Reduction", "Region", "Sharding", "Source", "Step",
    "Use", "Value", "Visit", "verify", "walk",
]
