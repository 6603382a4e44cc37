"""Cuts the batch over time: a step becomes a loop over microbatches, with what does not contain the batch around it.

What reduces over the batch is accumulated, with the divisors of means where they stand: a mean over the batch divides
by the size of the whole batch in every microbatch, and a weighted loss by the sum of all weights, which an earlier loop
over the weights alone has found. So nothing is rescaled, and nothing is assumed about the loss. Where a sum over the
batch feeds back into single examples through products of matrices (batch norm, the balance of experts), the examples
would have to be computed once for the sum and once again: refused unless `recompute` allows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from passes.batch_loop import LoopWriter, Numbers
from passes.batchwise import Batchwise, MicrobatchError
from passes.ir.control import has_control
from passes.ir.graph import Graph, Literal, Op, verify, walk
from passes.rules import rule_for
from passes.spans import Maker


class MicrobatchDivisionError(MicrobatchError):
    """So many microbatches do not divide the batch; `possible` are the counts next to it that do."""

    def __init__(self, path: str, size: int, count: int) -> None:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        below, above = [d for d in divisors if d < count][-1:], [d for d in divisors if d > count][:1]
        self.possible = (*below, *above)
        ways = " or ".join(map(str, self.possible))
        super().__init__(f"{path} has a batch of {size}: {size} / {count} is not whole; {ways} would do")
        self.path, self.size, self.count = path, size, count


def microbatch(graph: Graph, batch: Mapping[int, int], count: int, maker: Maker, recompute: bool = False) -> Graph:
    """The same program with its batch taken in `count` parts, one after the other.

    `batch` maps values among the graph's inputs to the dimension that counts examples. `maker` says how operations that
    the program does not have are run: add, broadcast_in_dim, convert_element_type, dynamic_slice, iota, max, min,
    reshape, scan, transpose as JAX has them, element types by name.
    Results are equal but for the order in which sums over the batch are taken; those of bfloat16 and float16 are added
    up in float32. With `recompute`, products of matrices may run once more for a sum over the batch that feeds back.

    Raises MicrobatchDivisionError, and MicrobatchError with the reason and the user's line where the results would
    change.
    """
    for value, dim in batch.items():
        size = graph.values[value].shape[dim]
        if size % count:
            position = graph.inputs.index(value)
            path = graph.input_paths[position] if position < len(graph.input_paths) else f"input {position}"
            raise MicrobatchDivisionError(path, size, count)
    if count == 1:
        return graph
    found = Batchwise(graph, count)
    found.run(batch)
    first_op = max((v.op.id for v in walk(graph)), default=-1) + 1
    numbers = Numbers(dict(graph.values), max(graph.values, default=-1) + 1, first_op)
    made = _Rewriter(graph, found, numbers, maker, recompute).run()
    verify(made)
    return made


def batch_of(graph: Graph, positions: Iterable[int], dim: int = 0) -> dict[int, int]:
    """The inputs at these positions, cut along `dim`, as `microbatch` wants them; scalars among them are left out."""
    inputs = [graph.inputs[i] for i in positions]
    return {v: dim for v in inputs if len(graph.values[v].shape) > dim}


@dataclass(slots=True)
class _Rewriter:
    """Writes the new program: whole operations, then a loop over the microbatches, then more whole operations, ..."""

    graph: Graph
    found: Batchwise
    numbers: Numbers
    maker: Maker
    recompute: bool
    ops: list[Op] = field(default_factory=list)
    written: set[int] = field(default_factory=set)  # whole operations that are there already
    heavy: set[int] = field(default_factory=set)  # operations with products of matrices that a loop runs already
    early: list[int] = field(default_factory=list)  # what the loops so far hand out

    def run(self) -> Graph:
        outputs = [o for o in self.graph.outputs if not isinstance(o, Literal)]
        for handed in self._loops(outputs):
            self._section(self._cone(handed)[1])
            self._loop(handed)
        self._section(outputs)
        return replace(self.graph, ops=tuple(self.ops), values=self.numbers.values)

    def _loops(self, outputs: Sequence[int]) -> list[list[int]]:
        """What each loop hands out. The last one makes all that results and whole operations need; an earlier one only
        what the next waits for, so that as little as possible is computed in two of them."""
        loops: list[list[int]] = []
        wanted = self._handed_to(outputs)
        while wanted:
            handed = wanted
            while True:
                early = self._handed_to(self._cone(handed)[1])
                rest = [v for v in handed if v not in set(early)]
                if rest == handed:
                    break
                handed = rest
            loops.insert(0, handed)
            wanted = sorted({*early, *(v for v in wanted if v not in set(handed))})
        return loops

    def _handed_to(self, wanted: Iterable[int]) -> list[int]:
        """The values per microbatch that these, or whole operations on the way to them, read."""
        needed, seen, stack = set(), set(), list(wanted)
        while stack:
            v = stack.pop()
            if v in seen or v not in self.found.producer:
                continue
            seen.add(v)
            if v in self.found.states:
                needed.add(v)
            else:
                stack += [o for o in self.found.producer[v].inputs if not isinstance(o, Literal)]
        return sorted(needed)

    def _cone(self, handed: Iterable[int]) -> tuple[set[int], list[int]]:
        """(operations that a loop handing out these runs, whole values that it reads)."""
        ops: set[int] = set()
        reads: set[int] = set()
        stack = list(handed)
        while stack:
            v = stack.pop()
            op = self.found.producer.get(v)
            if v not in self.found.states:
                reads.add(v)
            elif op is not None and op.id not in ops:
                ops.add(op.id)
                stack += [o for o in op.inputs if not isinstance(o, Literal)]
        return ops, sorted(reads)

    def _section(self, wanted: Iterable[int]) -> None:
        """The whole operations that these values need and that are not there yet, in the program's order."""
        needed: set[int] = set()
        stack = list(wanted)
        while stack:
            v = stack.pop()
            op = self.found.producer.get(v)
            if v not in self.found.states and op is not None and op.id not in needed:
                needed.add(op.id)
                stack += [o for o in op.inputs if not isinstance(o, Literal)]
        for op in self.graph.ops:
            if op.id in needed and op.id not in self.written:
                self.written.add(op.id)
                self.ops.append(op)

    def _loop(self, handed: Sequence[int]) -> None:
        ops, _ = self._cone(handed)
        loop = LoopWriter(self.graph, self.found, self.numbers, self.maker)
        for op in self.graph.ops:
            if op.id in ops:
                self._count(op)
                loop.write(op)
        self.ops += loop.close(handed)
        self.early += handed

    def _count(self, op: Op) -> None:
        """Refuse to run for every example twice what takes long."""
        if has_control(op) or rule_for(self.graph, op).kind in ("contraction", "window"):
            if op.id in self.heavy and not self.recompute:
                raise MicrobatchError(f"{self._feeding()} feeds back into its examples: this would run twice", op)
            self.heavy.add(op.id)

    def _feeding(self) -> str:
        origins = [self.found.origin[v] for v in self.early if v in self.found.origin]
        where = f" ({origins[0].primitive} at {origins[0].source or 'an unknown line'})" if origins else ""
        return f"a statistic of the whole batch{where}"
