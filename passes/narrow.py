"""Which float32 values a TPU keeps in bfloat16.

Its matrix unit multiplies bfloat16 by default, and the compiler stores a float32 value that only products read (however
it is reshaped, sliced or stacked on the way) as the bfloat16 that they want. Arguments stay as they are, with a narrow
copy beside them. (XLA calls this bfloat16 propagation.)
"""

from __future__ import annotations

from collections.abc import Iterable

from passes.ir import Graph, Literal, Op, Operand

# Operations that only move what they read: their operand may be narrow where their result is.
_MOVES = frozenset(
    {"broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "pad", "rev", "concatenate",
     "split", "dynamic_slice", "dynamic_update_slice", "gather", "select_n", "copy", "max", "min",
     "optimization_barrier"}
)  # fmt: skip
_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})
# Computed where their operand is made, before it is stored.
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min"})


def narrow_values(graph: Graph) -> set[int]:
    """Float32 values that nothing reads in full precision; a loop's carries are not among them."""
    found = _Backwards(graph)
    found.read_by(graph.outputs, [False] * len(graph.outputs))
    found.ops(graph.ops)
    return {v for v in found.read if found.is_narrow(v)}


class _Backwards:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.read: set[int] = set()
        self.wide: set[int] = set()

    def is_narrow(self, value: Operand) -> bool:
        if isinstance(value, Literal) or value not in self.read or value in self.wide:
            return False
        return self.graph.values[value].dtype == "float32"

    def read_by(self, operands: Iterable[Operand], narrow: Iterable[bool]) -> None:
        for o, keeps in zip(operands, narrow, strict=True):
            if not isinstance(o, Literal):
                self.read.add(o)
                if not keeps:
                    self.wide.add(o)

    def ops(self, ops: tuple[Op, ...]) -> None:
        for op in reversed(ops):
            if op.primitive == "scan" and op.regions:
                self.scan(op)
                continue
            for region in op.regions:
                self.read_by(region.outputs, [False] * len(region.outputs))
                self.ops(region.ops)
            if op.primitive in _REDUCTIONS:
                continue
            if op.primitive in _PRODUCTS:
                narrow = multiplies_in_bfloat16(op)
            elif op.primitive == "convert_element_type":
                narrow = self.graph.values[op.outputs[0]].dtype == "bfloat16"
            else:
                narrow = op.primitive in _MOVES and all(self.is_narrow(r) for r in op.outputs)
            self.read_by(op.inputs, [narrow] * len(op.inputs))

    def scan(self, op: Op) -> None:
        region = op.regions[0]
        consts, carries = int(op.params["num_consts"]), int(op.params["num_carry"])
        self.read_by(region.outputs, [k >= carries and self.is_narrow(r) for k, r in enumerate(op.outputs)])
        carried = range(consts, consts + carries)
        self.wide.update(op.outputs[:carries], (region.inputs[k] for k in carried))
        self.ops(region.ops)
        self.read_by(op.inputs, [k not in carried and self.is_narrow(b) for k, b in enumerate(region.inputs)])


def multiplies_in_bfloat16(op: Op) -> bool:
    """Whether it is a product whose precision was left open (one, a pair, or nothing; its members have names)."""
    if op.primitive not in _PRODUCTS:
        return False
    precision = op.params.get("precision")
    each = precision if isinstance(precision, tuple) else (precision,)
    return all(p is None or getattr(p, "name", str(p)) == "DEFAULT" for p in each)
