"""In which operands operations are linear, which rules do not say: what may be done to a sum before it is complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from passes.ir.graph import Graph, Op, Operand

# "all": in all operands together, so that the others must be zero. "first": in the first one, whatever the others are.
# "both": as "all", of the first two. "cases": as "all", after the first. "product": in each one alone. "each": every
# result is its own operand.
_LINEAR: Mapping[str, str] = {
    **dict.fromkeys(("add", "add_any", "sub", "neg", "concatenate", "stack", "pad", "complex"), "all"),
    **dict.fromkeys(("mul", "dot_general"), "product"),
    **dict.fromkeys(("div", "convert_element_type", "reduce_sum", "cumsum", "real", "imag", "conj"), "first"),
    **dict.fromkeys(("reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "rev", "dynamic_slice"), "first"),
    **dict.fromkeys(("copy", "name", "stop_gradient", "sharding_constraint"), "first"),
    "dynamic_update_slice": "both", "select_n": "cases", "optimization_barrier": "each",
}  # fmt: skip
_FRACTIONS = ("float", "bfloat", "complex")


def is_linear(graph: Graph, op: Op, parts: Sequence[bool], is_zero: Callable[[Operand], bool]) -> bool:
    """Whether the operation on addends gives addends of its result. `parts` says which operands are addends of sums;
    `is_zero` whether another one is zero."""
    if _truncates(graph, op):
        return False
    rest = [o for o, part in zip(op.inputs, parts, strict=True) if not part]
    how = _LINEAR.get(op.primitive)
    if how == "all":
        return all(is_zero(o) for o in rest)
    if how == "both":
        pairs = zip(op.inputs[:2], parts[:2], strict=True)
        return not any(parts[2:]) and all(part or is_zero(o) for o, part in pairs)
    if how == "cases":
        return not parts[0] and all(is_zero(o) for o in rest[1:])
    if how == "first":
        return parts[0] and not any(parts[1:])
    return how == "each" or (how == "product" and sum(parts) == 1)


def _truncates(graph: Graph, op: Op) -> bool:
    """Quotients and conversions that leave whole numbers, or truth values, of something finer."""
    before, after = graph.value_of(op.inputs[0]).dtype, graph.values[op.outputs[0]].dtype
    if after.startswith(_FRACTIONS):
        return False
    finer = after == "bool" or before.startswith(_FRACTIONS)
    return op.primitive == "div" or (op.primitive == "convert_element_type" and finer)
