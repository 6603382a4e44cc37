"""What every iteration of a loop computes alike is computed once, before the loop.

XLA does the same to the compiled program ("while-loop-invariant code motion"), so that a plan which left it inside
would move an array in every iteration that is moved once. An operation stays if its result has more elements than what
it is made of: repeating an array is cheap, keeping it through the loop is not. Products stay where the user wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from passes.ir.graph import Graph, Literal, Op, Operand, Region, Value, walk
from passes.normalize import drop_dead
from passes.numbering import renumbered
from passes.rules import rule_for

_MOVES = frozenset({"reshape", "rev", "slice", "squeeze", "transpose"})
# Element-wise by their rule, but about the place where they stand.
_STAYS = frozenset({"device_put", "name", "reshard", "sharding_constraint"})


def hoist(graph: Graph) -> Graph:
    """The graph with invariant operations before their loops, numbered anew (the graph itself where there are none)."""
    if not any(v.op.primitive in ("scan", "while") for v in walk(graph)):
        return graph
    values = dict(graph.values)
    hoister = _Hoister(replace(graph, values=values), values, max(values) + 1)
    ops = hoister.region(graph.ops)
    if len(hoister.values) == len(graph.values):
        return graph
    return renumbered(drop_dead(replace(graph, ops=ops, values=hoister.values)))


@dataclass(slots=True)
class _Hoister:
    graph: Graph  # with all values, for rules
    values: dict[int, Value]
    next_value: int

    def region(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """The operations with what loops among them need not repeat in front of those."""
        out: list[Op] = []
        for op in ops:
            op = replace(op, regions=tuple(replace(r, ops=self.region(r.ops)) for r in op.regions))
            if op.primitive in ("scan", "while"):
                before, op = self.loop(op)
                out += before
            out.append(op)
        return tuple(out)

    def loop(self, op: Op) -> tuple[list[Op], Op]:
        """The operations that leave the loop's body, and the loop that reads their results."""
        body = op.regions[-1]
        first, count = _constants(op)
        outside: dict[int, Operand] = dict(zip(body.inputs[:count], op.inputs[first : first + count], strict=True))
        outside.update((c, c) for c in self.graph.constants)
        before, kept, entering = list[Op](), list[Op](), list[tuple[int, int]]()
        for inner in body.ops:
            if not self.leaves(inner, outside):
                kept.append(inner)
                continue
            inputs = tuple(o if isinstance(o, Literal) else outside[o] for o in inner.inputs)
            outputs = tuple(self.copied(r) for r in inner.outputs)
            outside.update(zip(inner.outputs, outputs, strict=True))
            before.append(replace(inner, inputs=inputs, outputs=outputs))
            entering += zip(inner.outputs, outputs, strict=True)
        read = {o for v in walk(Region((), (), tuple(kept), 1)) for o in v.op.inputs if not isinstance(o, Literal)}
        read |= {o for v in walk(Region((), (), tuple(kept), 1)) for r in v.op.regions for o in _read(r.outputs)}
        read |= _read(body.outputs)
        entering = [(i, o) for i, o in entering if i in read]
        return before, _entered(op, tuple(kept), entering, first, count)

    def copied(self, value: int) -> int:
        """A value outside the loop that is like one inside."""
        new, self.next_value = self.next_value, self.next_value + 1
        self.values[new] = replace(self.values[value], id=new)
        return new

    def leaves(self, op: Op, outside: Mapping[int, Operand]) -> bool:
        arrays = _read(op.inputs)
        if not arrays or not arrays <= set(outside) or op.regions or op.primitive in _STAYS:
            return False
        if op.primitive not in _MOVES and rule_for(self.graph, op).kind != "elementwise":
            return False
        made, read = (sum(self.values[v].elements for v in vs) for vs in (op.outputs, arrays))
        return made <= read and not op.params.get("has_effects", False)


def _read(operands: tuple[Operand, ...]) -> set[int]:
    return {o for o in operands if not isinstance(o, Literal)}


def _constants(op: Op) -> tuple[int, int]:
    """Where the constants of a loop's body begin among its operands, and how many there are."""
    if op.primitive == "scan":
        return 0, int(op.params["num_consts"])
    return int(op.params["cond_nconsts"]), int(op.params["body_nconsts"])


def _entered(op: Op, ops: tuple[Op, ...], entering: list[tuple[int, int]], first: int, count: int) -> Op:
    """The loop with more constants: (value inside, value outside) of each."""
    body = op.regions[-1]
    inside, outside = tuple(i for i, _ in entering), tuple(o for _, o in entering)
    body = replace(body, inputs=(*body.inputs[:count], *inside, *body.inputs[count:]), ops=ops)
    at = first + count
    key = "num_consts" if op.primitive == "scan" else "body_nconsts"
    return replace(
        op,
        inputs=(*op.inputs[:at], *outside, *op.inputs[at:]),
        params={**op.params, key: count + len(entering)},
        regions=(*op.regions[:-1], body),
    )
