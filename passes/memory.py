"""What lives when: the values that a compiled program really keeps in memory, and from when to when.

XLA fuses element-wise work into its consumers, so most values of the jaxpr never exist. A value is kept when its
producer cannot be fused (a contraction, a loop, indexing, a reduction), when a consumer cannot read it from a fusion
(a contraction's operand, a loop's, the result of the program), or when it carries a contraction's result to several
consumers. A value that is fused away passes its uses on to what it was computed from: those stay alive until then.

Loops work in place: a carry has one buffer from the loop's operand to its result, an iteration's output is written
straight into the stacked result, and an iteration reads its slices from the stacked operands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from passes.groups import Grouping
from passes.ir import Graph, Literal, Op, Visit, control_of, has_control
from passes.narrow import narrow_values
from passes.orders import Turned, major_dims, turned_arguments
from passes.rules import rule_for

_FUSED_MOVES = frozenset(
    {"broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "pad", "rev", "concatenate",
    "iota", "split",
     "random_bits", "random_wrap", "random_unwrap", "copy", "dynamic_slice"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Life:
    """`value` occupies its local bytes during positions [start, end) of the flattened program.

    `narrow`: where the chip multiplies in bfloat16, it is stored as such (see `passes.narrow`). `copy`: it is such a
    narrow copy of an argument, which is also there in full; elsewhere there is no such copy. `rewritten`: only says
    that an iteration writes its part of the stacked value there. `first_read` and `last_read` are where an argument is
    read (else -1).
    """

    value: int
    start: int
    end: int
    narrow: bool = False
    copy: bool = False
    rewritten: bool = False
    first_read: int = -1
    last_read: int = -1


@dataclass(frozen=True, slots=True)
class Lives:
    """Kept values with their intervals; `end` is the program's length.

    `major` are the dimensions of values that a TPU does not store as minor ones, `turned` the arguments that it copies
    into another order for their update (see `passes.orders`).
    """

    kept: tuple[Life, ...]
    end: int
    present: frozenset[int]
    major: Mapping[int, frozenset[int]]
    turned: Mapping[int, Turned]

    def values(self) -> frozenset[int]:
        """Values that take memory of their own."""
        return self.present


def lives(graph: Graph, grouping: Grouping) -> Lives:
    """Intervals over positions in `grouping.visits`; a loop's operands live until its body ends."""
    found = tuple(_Analysis(graph, grouping.visits).run())
    present = frozenset(life.value for life in found)
    return Lives(
        found,
        len(grouping.visits),
        present,
        major_dims(graph, grouping.visits),
        turned_arguments(graph, grouping.visits),
    )


class _Analysis:
    def __init__(self, graph: Graph, visits: tuple[Visit, ...]) -> None:
        self.graph = graph
        self.visits = visits
        self.position = {v.op.id: i for i, v in enumerate(visits)}
        self.end = len(visits)
        self.producer: dict[int, Op] = {r: v.op for v in visits for r in v.op.outputs}
        self.inside: dict[int, tuple[Op, ...]] = {r: v.inside for v in visits for r in v.op.outputs}
        self.uses: dict[int, list[Op]] = {}
        self.last_inside: dict[int, int] = {}
        self.stored_in: dict[int, int] = {}  # a value that lies in another one's buffer
        self.stacked: set[int] = set()  # what an iteration writes into a stacked result
        self.outputs = {o for o in graph.outputs if not isinstance(o, Literal)}
        for i, v in enumerate(visits):
            for outer in v.inside:
                self.last_inside[outer.id] = i
            for o in v.op.inputs:
                if not isinstance(o, Literal):
                    self.uses.setdefault(o, []).append(v.op)
        self.kind = {v.op.id: "loop" if v.op.regions else rule_for(graph, v.op).kind for v in visits}
        self.fusible = {v.op.id: self._fusible(v.op) for v in visits}
        self.inputs = set(graph.inputs) | set(graph.constants)
        self.heavy: set[int] = set()  # fused away, but made from a contraction's result

    def _fusible(self, op: Op) -> bool:
        return self.kind[op.id] == "elementwise" or op.primitive in _FUSED_MOVES or _selects(op)

    def run(self) -> Iterator[Life]:
        for v in self.visits:
            if has_control(v.op):
                self.enter_loop(v.op)
            elif v.op.primitive == "optimization_barrier":
                for o, r in zip(v.op.inputs, v.op.outputs, strict=True):
                    if not isinstance(o, Literal):
                        self.stored_in[r] = o
        self.kept = self.find_kept()
        self.last = self.last_reads()
        self.first = self.first_reads()
        for v in self.visits:
            if has_control(v.op):
                self.share_carries(v.op)
            elif v.op.primitive.startswith("scatter") or v.op.primitive == "dynamic_update_slice":
                self.share(v.op.inputs[0], v.op.outputs[0], self.position[v.op.id])
        return self.intervals()

    # ---- loops ----
    def enter_loop(self, op: Op) -> None:
        control = control_of(op)
        for carry in control.carries:
            self.stored_in.update(dict.fromkeys(carry.inside, carry.result))
        for i, b in (*control.passed, *control.slices):
            operand = op.inputs[i]
            if not isinstance(operand, Literal):
                self.stored_in[b] = operand
        self.stacked.update(o for o, _ in control.stacks if not isinstance(o, Literal))

    def share_carries(self, op: Op) -> None:
        control = control_of(op)
        for carry in control.carries:
            operand, after = op.inputs[carry.operand], carry.after
            self.share(operand, carry.result, self.last_inside.get(op.id, self.position[op.id]))
            if not isinstance(after, Literal) and after in self.producer:
                made = self.position[self.producer[after].id]
                read = max(self.last.get(b, -1) for b in carry.inside)
                if read <= made and after not in self.stored_in:
                    self.stored_in[after] = carry.result
        for outs, result in control.merges:
            for out in outs:
                if not isinstance(out, Literal) and out not in self.stored_in and op in self.inside.get(out, ()):
                    self.stored_in[out] = result

    def share(self, operand: object, result: int, at: int) -> None:
        """The result is written over an operand that nobody reads later."""
        if not isinstance(operand, int) or operand not in self.producer or operand not in self.kept:
            return
        if operand not in self.outputs and operand not in self.stored_in and self.last.get(operand, -1) <= at:
            self.stored_in[operand] = result

    # ---- fusion ----
    def find_kept(self) -> set[int]:
        kept = set(self.inputs)
        for v in self.visits:
            heavy = any(o in self.heavy for o in v.op.inputs if not isinstance(o, Literal))
            for r in v.op.outputs:
                if self.is_kept(r, v.op, heavy):
                    kept.add(r)
                elif heavy or self.kind[v.op.id] == "contraction":
                    self.heavy.add(r)
        return kept

    def is_kept(self, value: int, op: Op, heavy: bool) -> bool:
        if value in self.outputs:
            return True
        consumers = self.uses.get(value, [])
        readers = len(consumers) + (value in self.stacked)
        if not self.fusible[op.id] or heavy:
            if readers == 0:
                return False
            if self.kind[op.id] == "contraction" or heavy:
                if value in self.stacked and readers == 1:
                    return False
                return not (readers == 1 and self.swallows(consumers[0], value))
            return True
        return any(not self.fusible[c.id] and self.kind[c.id] not in ("reduction", "contraction") for c in consumers)

    def swallows(self, consumer: Op, value: int) -> bool:
        """An element-wise consumer of equal shape is computed where the contraction writes its result."""
        return (
            self.fusible[consumer.id]
            and self.graph.values[consumer.outputs[0]].elements == self.graph.values[value].elements
        )

    def last_reads(self) -> dict[int, int]:
        """Position of the last operation that reads each value, through whatever is fused or lies in its buffer."""
        last: dict[int, int] = {}
        for v in reversed(self.visits):
            op, at = v.op, self.last_inside.get(v.op.id, self.position[v.op.id])
            through = at
            for r in op.outputs:
                passes = (self.fusible[op.id] or self.kind[op.id] == "contraction") and r not in self.kept
                if passes or self.stored_in.get(r) in op.inputs:
                    through = max(through, last.get(r, -1))
            for o in op.inputs:
                if not isinstance(o, Literal):
                    last[o] = max(last.get(o, -1), through)
        return last

    def first_reads(self) -> dict[int, int]:
        """Position of the first operation that reads each value, where it really runs: with what it is fused into."""
        first: dict[int, int] = {}
        for v in reversed(self.visits):
            at = self.position[v.op.id]
            if self.fusible[v.op.id] and self.kept.isdisjoint(v.op.outputs):
                at = max(at, min((first[r] for r in v.op.outputs if r in first), default=at))
            for o in v.op.inputs:
                if not isinstance(o, Literal):
                    first[o] = min(first.get(o, at), at)
        return first

    # ---- intervals ----
    def root(self, value: int) -> int:
        while value in self.stored_in:
            value = self.stored_in[value]
        return value

    def intervals(self) -> Iterator[Life]:
        narrow = narrow_values(self.graph)
        spans: dict[int, tuple[int, int]] = {}
        for value in self.kept | set(self.stored_in):
            root = self.root(value)
            if value != root and value not in self.kept and value in self.producer:
                continue
            op = self.producer.get(value)
            start = self.position[op.id] if op is not None else self.end
            stop = max(start, self.last.get(value, -1)) + 1 if op is not None else self.last.get(value, -1) + 1
            if value in self.outputs or root in self.inputs:
                start, stop = 0, self.end  # results have a place of their own from the beginning
            a, b = spans.get(root, (start, stop))
            spans[root] = (min(a, start), max(b, stop))
        for root in sorted(spans):
            start, stop = spans[root]
            if stop <= start:
                continue
            if root in self.inputs:
                yield Life(root, start, stop, first_read=self.first.get(root, -1), last_read=self.last.get(root, -1))
            else:
                yield Life(root, start, stop, narrow=root in narrow)
        yield from self.narrow_copies(narrow)
        yield from self.writes(narrow)

    def writes(self, narrow: set[int]) -> Iterator[Life]:
        made: dict[int, int] = {}  # where a value is computed, counting what it is fused with
        for i, v in enumerate(self.visits):
            heavy = self.kind[v.op.id] != "loop" and not self.fusible[v.op.id]
            before = [made.get(o, -1) for o in v.op.inputs if isinstance(o, int)]
            for r in v.op.outputs:
                made[r] = i if heavy else max(before, default=-1)
        for v in self.visits:
            if has_control(v.op):
                for b, r in control_of(v.op).stacks:
                    at = made.get(b, -1) if isinstance(b, int) else -1
                    if at >= 0 and r in self.kept:
                        yield Life(r, at, at + 1, narrow=r in narrow, rewritten=True)

    def narrow_copies(self, narrow: set[int]) -> Iterator[Life]:
        """Arguments that a loop reads in bfloat16 only are converted whole before it."""
        spans: dict[int, tuple[int, int]] = {}
        for v in self.visits:
            if has_control(v.op):
                control = control_of(v.op)
                entering = [(v.op.inputs[i], b) for i, b in (*control.passed, *control.slices)]
                for o, b in entering:
                    if o in self.inputs and b in narrow and isinstance(o, int):
                        at = self.position[v.op.id]
                        first, last = spans.get(o, (at, at))
                        spans[o] = (min(first, at), max(last, self.last_inside.get(v.op.id, at)))
        for value, (first, last) in spans.items():
            yield Life(value, first, last + 1, narrow=True, copy=True)


def _selects(op: Op) -> bool:
    """A scatter of one element into each row: the compiler compares positions instead, which fuses."""
    if not op.primitive.startswith("scatter"):
        return False
    numbers = op.params["dimension_numbers"]
    return bool(numbers.operand_batching_dims) and not numbers.update_window_dims


def reused_outputs(graph: Graph) -> set[int]:
    """Results that are written into a donated input's buffer."""
    donated = {position for position, source in graph.carried.items() if source in graph.donated}
    return {o for i, o in enumerate(graph.outputs) if i in donated and not isinstance(o, Literal)}


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
