"""The project's own program representation."""

from passes.ir.control import Carry, Control, control_of, has_control
from passes.ir.graph import Graph, Literal, Op, Operand, Region, Source, Value, Visit, region_share, verify, walk
from passes.ir.sharding import OPEN, Dims, Layout, MoveKey, OpDecision, Pack, Packed, Reduction, Sharding, Step, Use

__all__ = [
    "OPEN",
    "Carry",
    "Control",
    "Dims",
    "Graph",
    "Layout",
    "Literal",
    "MoveKey",
    "Op",
    "OpDecision",
    "Operand",
    "Pack",
    "Packed",
    "Reduction",
    "Region",
    "Sharding",
    "Source",
    "Step",
    "Use",
    "Value",
    "Visit",
    "control_of",
    "has_control",
    "region_share",
    "verify",
    "walk",
]
