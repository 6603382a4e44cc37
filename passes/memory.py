"""What lives when: the values that a compiled program really keeps in memory, and from when to when.

XLA fuses element-wise work into its consumers, so most values of the jaxpr never exist. A value is kept when its producer
cannot be fused (a contraction, a loop, indexing, a reduction) or a consumer cannot read it from a fusion (a contraction's
operand, a loop's, the result of the program). A value that is fused away passes its uses on to what it was computed from:
those stay alive until then. A contraction whose only consumer is element-wise is fused with it and not kept itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from passes.groups import Grouping
from passes.ir import Graph, Literal, Op, Operand, Visit
from passes.rules import rule_for

_FUSED_MOVES = frozenset(
    {"broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "pad", "rev", "concatenate", "iota", "split",
     "random_bits", "random_wrap", "random_unwrap", "copy", "dynamic_slice"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Life:
    """`value` occupies its local bytes during positions [start, end) of the flattened program."""

    value: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Lives:
    """Kept values with their intervals; `end` is the program's length; `root[v]` is the kept value that v shares memory with."""

    kept: tuple[Life, ...]
    end: int

    def values(self) -> set[int]:
        return {life.value for life in self.kept}


def lives(graph: Graph, grouping: Grouping) -> Lives:
    """Intervals over positions in `grouping.visits`; a loop's operands live until its body ends."""
    return _Analysis(graph, grouping.visits).run()


class _Analysis:
    def __init__(self, graph: Graph, visits: tuple[Visit, ...]) -> None:
        self.graph = graph
        self.visits = visits
        self.position = {v.op.id: i for i, v in enumerate(visits)}
        self.end = len(visits)
        self.producer: dict[int, Op] = {r: v.op for v in visits for r in v.op.outputs}
        self.uses: dict[int, list[Op]] = {}
        self.same_as: dict[int, int] = {}  # a value that is another one's memory (loop constants, barriers)
        self.loop_outputs: dict[int, int] = {}  # body output -> position where its iteration ends
        self.last_inside: dict[int, int] = {}
        for i, v in enumerate(visits):
            for outer in v.inside:
                self.last_inside[outer.id] = i
            for o in v.op.inputs:
                if not isinstance(o, Literal):
                    self.uses.setdefault(o, []).append(v.op)
        self.fusible = {v.op.id: self._fusible(v.op) for v in visits}

    def _fusible(self, op: Op) -> bool:
        if op.primitive in _FUSED_MOVES:
            return True
        return not op.regions and rule_for(self.graph, op).kind == "elementwise"

    def run(self) -> Lives:
        outputs = {o for o in self.graph.outputs if not isinstance(o, Literal)}
        body_outputs: set[int] = set()
        carried: dict[int, int] = {}
        for v in self.visits:
            if v.op.primitive == "scan" and v.op.regions:
                region = v.op.regions[0]
                body_outputs |= {o for o in region.outputs if not isinstance(o, Literal)}
                consts = int(v.op.params["num_consts"])
                for o, b in zip(v.op.inputs[:consts], region.inputs[:consts], strict=True):
                    if not isinstance(o, Literal):
                        self.same_as[b] = o
                for k in range(int(v.op.params["num_carry"])):
                    carried[region.inputs[consts + k]] = self.last_inside.get(v.op.id, self.position[v.op.id])
            elif v.op.primitive.startswith("scatter") or v.op.primitive == "dynamic_update_slice":
                into = v.op.inputs[0]
                if not isinstance(into, Literal) and len(self.uses[into]) == 1 and into in self.producer:
                    self.same_as[into] = v.op.outputs[0]  # written in place
            elif v.op.primitive == "optimization_barrier":
                for o, r in zip(v.op.inputs, v.op.outputs, strict=True):
                    if not isinstance(o, Literal):
                        self.same_as[r] = o
        kept = []
        for value in self._all_values():
            if value in self.same_as or not self._is_kept(value, outputs | body_outputs):
                continue
            start, end = self._interval(value, outputs, carried)
            if end > start:
                kept.append(Life(value, start, end))
        return Lives(tuple(kept), self.end)

    def _all_values(self) -> Iterable[int]:
        yield from self.graph.inputs
        for v in self.visits:
            for region in v.op.regions if v.op.primitive == "scan" else ():
                yield from region.inputs
            yield from v.op.outputs

    def _is_kept(self, value: int, leaving: set[int]) -> bool:
        op = self.producer.get(value)
        if op is None or value in leaving:
            return True
        consumers = self.uses.get(value, [])
        if not self.fusible[op.id]:
            if op.primitive == "dot_general" and len(consumers) == 1 and self._swallows(consumers[0], value):
                return False
            return True
        return any(not self.fusible[c.id] and rule_for(self.graph, c).kind != "reduction" for c in consumers)

    def _swallows(self, consumer: Op, value: int) -> bool:
        """An element-wise consumer of equal shape is computed where the contraction writes its result."""
        return (
            self.fusible[consumer.id]
            and consumer.primitive not in _FUSED_MOVES
            and self.graph.shape_of(consumer.outputs[0]) == self.graph.shape_of(value)
        )

    def _interval(self, value: int, outputs: set[int], carried: dict[int, int]) -> tuple[int, int]:
        op = self.producer.get(value)
        start = self.position[op.id] if op is not None else self._entry(value)
        if value in self.graph.inputs:
            return 0, self.end
        end = max(start + 1, self._last_use(value, set()) + 1)
        if value in outputs:
            end = self.end
        if value in carried:
            end = max(end, carried[value] + 1)
        return start, end

    def _entry(self, value: int) -> int:
        for v in self.visits:
            if any(value in region.inputs for region in v.op.regions):
                return self.position[v.op.id]
        return 0

    def _last_use(self, value: int, seen: set[int]) -> int:
        """Position of the last operation that reads the value, through whatever is fused or shares its memory."""
        if value in seen:
            return -1
        seen.add(value)
        last = -1
        for op in self.uses.get(value, []):
            at = self.last_inside.get(op.id, self.position[op.id])
            last = max(last, at)
            if op.primitive == "optimization_barrier":
                k = op.inputs.index(value)
                last = max(last, self._last_use(op.outputs[k], seen))
            elif self.fusible.get(op.id):
                for r in op.outputs:
                    if not self._is_kept(r, set()):
                        last = max(last, self._last_use(r, seen))
        return last


def peak_bytes(usages: Iterable[tuple[int, int, float]], end: int) -> tuple[float, int]:
    """(largest sum of overlapping intervals, position where it occurs) of (start, end, bytes) triples."""
    steps: dict[int, float] = {}
    for start, stop, size in usages:
        steps[start] = steps.get(start, 0.0) + size
        steps[stop] = steps.get(stop, 0.0) - size
    level, best, at = 0.0, 0.0, 0
    for position in sorted(steps):
        level += steps[position]
        if level > best and position < end:
            best, at = level, position
    return best, at


def operand_ids(operands: Iterable[Operand]) -> list[int]:
    return [o for o in operands if not isinstance(o, Literal)]
