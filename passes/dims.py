"""Dimensions that are one axis of the problem: which dimensions of which arrays the operations tie together.

Every factor of a rule says that some dimensions of the operands and results are the same thing; following that through
the whole program, loops and branches included, leaves few *classes*: the examples of a batch, the positions, the width
of the residual stream. A dimension made of several ("(h e)", merged tokens) is a class of its own that knows its parts,
major first. What the classes are called is found in `dim_names.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from passes.ir import Graph, Literal, Op, Operand, control_of, has_control
from passes.rules import Rule, rule_for

ONE = -1
"""The class of dimensions of size 1, which are nobody's axis."""


@dataclass(frozen=True, slots=True)
class DimClasses:
    """The classes of a program, numbered in order of first appearance.

    values: per value the class of each dimension (ONE for size 1). sizes: elements per class. parts: of a class that
    is made of others, these, major first (two or more). near: pairs of classes of which one is a stretch of the other,
    or shares elements with it: what is sliced, padded or put together along them.
    """

    values: Mapping[int, tuple[int, ...]]
    sizes: tuple[int, ...]
    parts: Mapping[int, tuple[int, ...]]
    near: frozenset[tuple[int, int]] = frozenset()

    def majors(self, c: int) -> tuple[int, ...]:
        """The class, its major part, the major part of that, and so on: what a cut of the dimension cuts first."""
        out = [c]
        while out[-1] in self.parts:
            out.append(self.parts[out[-1]][0])
        return tuple(out)

    def family(self, c: int) -> tuple[int, ...]:
        """The class and all that it is made of."""
        return (c, *(x for p in self.parts.get(c, ()) for x in self.family(p)))

    def of_factor(self, graph: Graph, op: Op, rule: Rule, factor: str) -> int:
        """The class of a factor of an operation's rule, ONE where no dimension says."""
        arrays = ((op.inputs, rule.operands), (op.outputs, rule.results))
        for values, described in arrays:
            for o, dims in zip(values, described, strict=True):
                if isinstance(o, Literal):
                    continue
                for d, dim in enumerate(dims):
                    if dim == (factor,):
                        return self.values[o][d]
        return ONE


@dataclass(slots=True)
class _Union:
    """Nodes that may turn out to be one. A node may be made of parts; where two ways to make it meet, they are brought
    to their common refinement, as far as their sizes divide each other."""

    parent: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    parts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def new(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        return len(self.parent) - 1

    def find(self, a: int) -> int:
        parent = self.parent
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        return a

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a == b or self.size[a] != self.size[b]:
            return
        a, b = min(a, b), max(a, b)
        self.parent[b] = a
        parts = self.parts.pop(b, None)
        if parts is not None:
            self.make_of(a, parts)

    def make_of(self, a: int, parts: Sequence[int]) -> None:
        """Node `a` is made of `parts`, major first."""
        a = self.find(a)
        real = tuple(p for p in parts if self.size[p] > 1)
        if len(real) == 1:
            self.join(a, real[0])
        elif real and a in self.parts:
            self.refine(self.parts[a], real)
        elif real:
            self.parts[a] = real

    def refine(self, first: Sequence[int], second: Sequence[int]) -> None:
        left, right = [*first], [*second]
        while left and right:
            a, b = left.pop(0), right.pop(0)
            n, m = self.size[a], self.size[b]
            if n == m:
                self.join(a, b)
            elif n % m == 0:
                rest = self.new(n // m)
                self.make_of(a, (b, rest))
                left.insert(0, rest)
            elif m % n == 0:
                rest = self.new(m // n)
                self.make_of(b, (a, rest))
                right.insert(0, rest)
            else:
                return

    def join_alike(self) -> None:
        """Nodes made of the same parts are the same: merged heads before and after attention."""
        again = True
        while again:
            again, seen = False, dict[tuple[int, ...], int]()
            for node, parts in list(self.parts.items()):
                first = seen.setdefault(tuple(self.find(p) for p in parts), node)
                if self.find(first) != self.find(node):
                    self.join(first, node)
                    again = True


class _Walk:
    """Ties dimensions together, operation by operation."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.union = _Union()
        self.nodes = {v.id: [self.union.new(n) if n > 1 else ONE for n in v.shape] for v in graph.values.values()}
        self.near: list[tuple[int, int]] = []

    def region(self, ops: tuple[Op, ...]) -> None:
        for op in ops:
            for body in op.regions:
                self.region(body.ops)
            if has_control(op):
                self.control(op)
            elif op.primitive == "optimization_barrier":
                for o, r in zip(op.inputs, op.outputs, strict=True):
                    self.same(o, r)
            else:
                self.operation(op)

    def same(self, a: Operand, b: Operand, drop_a: int = 0, drop_b: int = 0) -> None:
        """The dimensions of two values correspond, the first `drop_a` and `drop_b` left out."""
        if isinstance(a, Literal) or isinstance(b, Literal):
            return
        for x, y in zip(self.nodes[a][drop_a:], self.nodes[b][drop_b:], strict=True):
            if x != ONE and y != ONE:
                self.union.join(x, y)

    def control(self, op: Op) -> None:
        control = control_of(op)
        for i, inside in control.passed:
            self.same(op.inputs[i], inside)
        for carry in control.carries:
            for inside in carry.inside:
                self.same(op.inputs[carry.operand], inside)
                self.same(carry.after, inside)
            self.same(op.inputs[carry.operand], carry.result)
        for i, inside in control.slices:
            self.same(op.inputs[i], inside, drop_a=1)
        for part, result in control.stacks:
            self.same(result, part, drop_a=1)
        for yielded, result in control.merges:
            for o in yielded:
                self.same(o, result)
        # The stacks of one loop are stacked along one axis.
        stacked = [op.inputs[i] for i, _ in control.slices] + [r for _, r in control.stacks]
        along = [self.nodes[o][0] for o in stacked if not isinstance(o, Literal)]
        for node in along[1:]:
            if node != ONE and along[0] != ONE:
                self.union.join(along[0], node)

    def operation(self, op: Op) -> None:
        rule = rule_for(self.graph, op)
        factors: dict[str, int] = {}
        merged: list[tuple[int, tuple[str, ...]]] = []
        for values, described in ((op.inputs, rule.operands), (op.outputs, rule.results)):
            for o, dims in zip(values, described, strict=True):
                if isinstance(o, Literal):
                    continue
                for node, dim in zip(self.nodes[o], dims, strict=True):
                    if node == ONE or not dim:
                        continue
                    if len(dim) > 1:
                        merged.append((node, dim))
                    elif dim[0] in factors:
                        self.union.join(factors[dim[0]], node)
                    else:
                        factors[dim[0]] = node
        for node, dim in merged:
            for f in dim:
                if f not in factors:
                    factors[f] = self.union.new(rule.sizes[f])
            self.union.make_of(node, [factors[f] for f in dim])
        if rule.kind in ("movement", "lines", "reduction", "local"):
            self.whole(op, rule)

    def whole(self, op: Op, rule: Rule) -> None:
        """A dimension that must stay whole is the same before and after where all others are and its size is (running
        sums, sorting, reversing); else it is near (slices, padding, pieces put together)."""
        for o, left in zip(op.inputs, rule.operands, strict=True):
            for r, right in zip(op.outputs, rule.results, strict=True):
                if (
                    isinstance(o, Literal)
                    or len(left) != len(right)
                    or any(bool(a) != bool(b) for a, b in zip(left, right, strict=True))
                ):
                    continue
                same = len(op.inputs) == 1 and self.graph.values[o].shape == self.graph.values[r].shape
                for a, b, factors in zip(self.nodes[o], self.nodes[r], left, strict=True):
                    if factors or a == ONE or b == ONE:
                        continue
                    if same:
                        self.union.join(a, b)
                    else:
                        self.near.append((a, b))


def dim_classes(graph: Graph) -> DimClasses:
    """The classes of all dimensions of a program. Linear in the number of operations."""
    walk = _Walk(graph)
    walk.region(graph.ops)
    for position, source in graph.carried.items():
        walk.same(graph.outputs[position], graph.inputs[source])
    union = walk.union
    union.join_alike()
    numbers: dict[int, int] = {}
    sizes: list[int] = []

    def number(node: int) -> int:
        root = union.find(node)
        if root not in numbers:
            numbers[root] = len(sizes)
            sizes.append(union.size[root])
        return numbers[root]

    values = {v: tuple(ONE if n == ONE else number(n) for n in nodes) for v, nodes in walk.nodes.items()}
    parts: dict[int, tuple[int, ...]] = {}
    for root in list(union.parts):
        parts[number(root)] = tuple(number(p) for p in union.parts[root])
    near = {(number(a), number(b)) for a, b in walk.near}
    return DimClasses(values, tuple(sizes), parts, frozenset((a, b) for a, b in near if a != b))
