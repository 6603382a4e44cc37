"""What is almost all of an array is computed on all of it, so that it can be cut: shifts, rolls, associative scans.

Next-token losses on `logits[:, :-1]`, `jnp.roll`, shifts by padding and slicing, and every level of
`lax.associative_scan` make arrays of n - 1 elements, which no mesh cuts in equal blocks. Here they stay spans of the n
elements that they come from (`passes/spans.py`): element-wise operations and the like run on all n, spans that lie
differently are turned (a neighbour's border where the dimension is cut), and where the n - 1 elements become n again,
or are summed, those that do not count are replaced. A span that is needed as it is anyway is given up: nothing is
computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from passes.ir.graph import Graph, Literal, Op, Operand, Region, walk
from passes.normalize import drop_dead
from passes.numbering import renumbered
from passes.rules import Rule, rule_for
from passes.spans import LARGE, Maker, Span, Writer, twos

# Operations that are not element-wise and run on more elements as they are, but for parameters that hold the shape.
_WIDENS: Mapping[str, str | None] = {
    "argmax": None, "argmin": None, "broadcast_in_dim": "shape", "dot_general": None, "gather": None,
    "reduce_max": None, "reduce_min": None, "reduce_sum": None, "reshape": "new_sizes", "scatter-add": None,
    "squeeze": None, "transpose": None,
}  # fmt: skip
# Element-wise by their rule, and yet about this array and no other one.
_STAYS = frozenset({"device_put", "name", "reshard", "sharding_constraint"})
_NEUTRAL = {"sum": 0.0, "max": -math.inf, "min": math.inf}


def widen(graph: Graph, maker: Maker) -> Graph:
    """The graph with spans computed on their bases where that leaves nothing to be computed twice; else the graph
    itself. Values and operations are numbered anew, in program order; inputs keep their numbers."""
    given_up: frozenset[int] = frozenset()
    while True:
        walked = _Widener(graph, maker, given_up)
        wide = drop_dead(walked.run())
        if not walked.ended:
            return graph
        live = {r for v in walk(wide) for r in v.op.outputs}
        twice = [roots for narrow, large, roots in walked.twins if narrow in live and large in live]
        if not twice:
            return renumbered(wide)
        given_up = given_up.union(*twice)


@dataclass(slots=True)
class _Widener:
    graph: Graph
    maker: Maker
    given_up: frozenset[int]
    spans: dict[int, Span] = field(default_factory=dict)
    names: dict[int, int] = field(default_factory=dict)
    twins: list[tuple[int, int, frozenset[int]]] = field(default_factory=list)
    ended: int = 0  # how often something ceased to be a span
    to: Writer = field(init=False)
    seen: Graph = field(init=False)  # for rules: with the values that are added

    def __post_init__(self) -> None:
        ops = [v.op.id for v in walk(self.graph)]
        self.to = Writer(
            dict(self.graph.values), self.maker, max(self.graph.values, default=0) + 1, max(ops, default=0) + 1
        )

        self.seen = replace(self.graph, values=self.to.values)

    def run(self) -> Graph:
        ops, outputs = self.region(self.graph.ops, self.graph.outputs)
        return replace(self.graph, ops=ops, outputs=outputs, values=self.to.values)

    def region(self, ops: tuple[Op, ...], outputs: tuple[Operand, ...]) -> tuple[tuple[Op, ...], tuple[Operand, ...]]:
        outer, self.to.ops = self.to.ops, []
        made, self.to.made = self.to.made, {}
        for op in ops:
            self.visit(op)
        found, self.to.ops, self.to.made = tuple(self.to.ops), outer, made
        return found, tuple(self.named(o) for o in outputs)

    def named(self, operand: Operand) -> Operand:
        return operand if isinstance(operand, Literal) else self.names.get(operand, operand)

    def visit(self, op: Op) -> None:
        op = replace(op, inputs=tuple(self.named(o) for o in op.inputs))
        if op.primitive == "slice" and self.to.shape(op.inputs[0]) == self.to.shape(op.outputs[0]):
            (x,) = op.inputs
            assert not isinstance(x, Literal)
            self.names[op.outputs[0]] = x
            return
        if op.regions:
            regions = []
            for r in op.regions:
                inner, outputs = self.region(r.ops, r.outputs)
                regions.append(Region(r.inputs, outputs, inner, r.trip_count, r.known))
            op = replace(op, regions=tuple(regions))
        special = {"slice": self.slice, "split": self.split, "pad": self.pad, "concatenate": self.concatenate}
        result = special.get(op.primitive, self.by_rule)(op)
        if result is None:
            self.to.write(op)
        else:
            self.names[op.outputs[0]] = result
            self.ended += 1

    def span(self, operand: Operand) -> Span | None:
        return None if isinstance(operand, Literal) else self.spans.get(operand)

    def size(self, operand: Operand, dim: int) -> int:
        return self.to.shape(operand)[dim]

    # ---- where spans begin and end ----
    def slice(self, op: Op) -> int | None:
        (x,) = op.inputs
        source, target = self.to.shape(x), self.to.shape(op.outputs[0])
        starts, strides = op.params["start_indices"], op.params["strides"] or (1,) * len(source)
        dims = [d for d, (n, m) in enumerate(zip(source, target, strict=True)) if n != m]
        if len(dims) != 1 or isinstance(x, Literal) or op.id in self.given_up:
            return None
        (d,) = dims
        if strides[d] == 1:
            return self.part(op, x, d, int(starts[d]), op.outputs[0])
        return self.steps(op, x, d, int(starts[d]), int(strides[d]))

    def steps(self, op: Op, x: int, d: int, start: int, stride: int) -> int | None:
        """Every so many elements, of `x` or of what `x` is a span of: of all elements that there are, or a span."""
        span, roots, n = self.span(x), frozenset({op.id}), self.size(op.outputs[0], d)
        if span is not None and span.dim == d and self.inside(span, self.size(x, d)):
            x, start, roots = span.base, start + span.offset, roots | span.roots
        if self.size(x, d) % stride:
            return None
        whole = self.size(x, d) // stride
        if whole == n and start < stride and len(roots) > 1:
            return self.to.strided(x, d, stride, start, op)
        if twos(whole) > twos(n):
            base = self.to.strided(x, d, stride, start % stride, op)
            self.spans[op.outputs[0]] = Span(base, d, start // stride, 0, n, roots)
        return None

    def split(self, op: Op) -> None:
        (x,), dim, at = op.inputs, op.params["axis"], 0
        if isinstance(x, Literal) or op.id in self.given_up:
            return
        for r, n in zip(op.outputs, op.params["sizes"], strict=True):
            if self.span(x) is None and twos(self.size(x, dim)) > twos(n):
                self.begin(op, r, x, dim, at)
            at += n

    def part(self, op: Op, x: int, d: int, start: int, result: int) -> int | None:
        """`result` is a part of `x`, or of what `x` is a span of."""
        m, span = self.size(result, d), self.span(x)
        if span is None:
            if twos(self.size(x, d)) > twos(m):
                self.begin(op, result, x, d, start)
            return None
        if span.dim != d:
            return None
        first, last = (min(max(end - start, 0), m) for end in (span.first, span.last))
        found = replace(span, offset=span.offset + start, first=first, last=last, roots=span.roots | {op.id})
        if m == self.size(span.base, d) and found.fill is not None:
            base = self.to.turned(span.base, d, -found.offset, op)
            return self.to.within(base, found.fill, d, first, last, op)
        self.spans[result] = found
        return None

    def begin(self, op: Op, result: int, base: int, dim: int, offset: int) -> None:
        self.spans[result] = Span(base, dim, offset, 0, self.size(result, dim), frozenset({op.id}))

    def pad(self, op: Op) -> int | None:
        x, fill = op.inputs
        config = op.params["padding_config"]
        dims = [d for d, c in enumerate(config) if any(c)]
        if len(dims) != 1 or isinstance(x, Literal) or op.id in self.given_up:
            return None
        (d,) = dims
        low, high, inner = (int(n) for n in config[d])
        if not inner and low <= 0 and high <= 0:
            return self.part(op, x, d, -low, op.outputs[0])
        n, m, span = self.size(x, d), self.size(op.outputs[0], d), self.span(x)
        if span is None or span.dim != d or not self.inside(span, n):
            if span is None and not inner and n == m:
                return self.to.within(self.to.turned(x, d, low, op), fill, d, low, low + n, op)
            if span is None and not inner and low >= 0 and high >= 0 and twos(n) > twos(m):
                self.spans[op.outputs[0]] = Span(x, d, -low, low, low + n, frozenset({op.id}), fill)
            return None
        whole = self.size(span.base, d)
        if not inner and m == whole:
            return self.to.within(self.to.turned(span.base, d, low - span.offset, op), fill, d, low, low + n, op)
        if n == 1 and m % whole == 0:
            inner = m // whole - 1  # one element alone: the others that would lie between are masked
        begins = low - span.offset * (inner + 1)
        if not inner or m != whole * (inner + 1) or not 0 <= begins <= inner:
            return None
        masked = self.to.within(span.base, fill, d, span.offset, span.offset + n, op)
        config = tuple((begins, inner - begins, inner) if e == d else tuple(c) for e, c in enumerate(config))
        (made,) = self.to.again(op, (masked, fill), (self.to.shape(op.outputs[0]),), padding_config=config)
        return made

    def inside(self, span: Span, n: int) -> bool:
        """Whether all `n` elements of a span are elements of its base."""
        return span.first == 0 and span.last == n

    def concatenate(self, op: Op) -> int | None:
        """Pieces that are spans of arrays as long as the result, or the same everywhere, chosen by position."""
        d, whole = op.params["dimension"], self.size(op.outputs[0], op.params["dimension"])
        at, pieces = 0, list[tuple[int, int]]()  # (where it ends, the array that it is in place in)
        spans = 0
        for o in op.inputs:
            n = self.size(o, d)
            found = self.in_place(op, o, d, at, whole)
            if found is None or op.id in self.given_up:
                return None
            spans += self.span(o) is not None and twos(whole) > twos(n)
            at += n
            if pieces and pieces[-1][1] == found:
                pieces.pop()
            pieces.append((at, found))
        if not spans:
            return None
        out = pieces[-1][1]
        for k in range(len(pieces) - 2, -1, -1):
            out = self.to.within(pieces[k][1], out, d, 0, pieces[k][0], op)
        return out

    def in_place(self, op: Op, o: Operand, d: int, at: int, whole: int) -> int | None:
        """An array of `whole` elements that has those of `o` from `at` on."""
        span, n = self.span(o), self.size(o, d)
        if span is not None and span.dim == d and self.inside(span, n):
            size = self.size(span.base, d)
            if size == whole:
                return self.to.turned(span.base, d, at - span.offset, op)
            near = None if isinstance(o, Literal) else self.to.producer.get(o)
            if n == 1 and size % whole == 0 and near is not None and near.primitive == "slice":
                stride = size // whole
                base = self.to.strided(span.base, d, stride, span.offset % stride, near)
                return self.to.turned(base, d, at - span.offset // stride, op)
        return self.to.stretched(o, d, whole, op)

    # ---- what runs on more elements ----
    def by_rule(self, op: Op) -> int | None:
        """The operation on the bases of its operands, where one factor of its rule is the spans' dimension in all."""
        found = [(i, s) for i, o in enumerate(op.inputs) if (s := self.span(o)) is not None]
        if not found or op.primitive in _STAYS or (op.primitive not in _WIDENS and not self.elementwise(op)):
            return None
        rule = rule_for(self.seen, op)
        i, span = found[0]
        dim = rule.operands[i][span.dim]
        if len(dim) != 1 or not self.may_widen(op, rule, dim[0]):
            return None
        factor, whole = dim[0], self.size(span.base, span.dim)
        if LARGE * (whole - rule.sizes[factor]) > whole:
            return None
        gathered = self.operands(op, rule, factor, whole)
        if gathered is None:
            return None
        inputs, offset, roots = gathered
        n = rule.sizes[factor]
        if not any((factor,) in dims for dims in rule.results):
            return self.summed(op, rule, factor, inputs, offset, n)
        shapes = [
            tuple(whole if f == (factor,) else s for f, s in zip(dims, self.to.shape(r), strict=True))
            for r, dims in zip(op.outputs, rule.results, strict=True)
        ]
        parameter = _WIDENS.get(op.primitive)
        wide = self.to.again(op, inputs, shapes, **({parameter: shapes[0]} if parameter else {}))
        for r, base, dims in zip(op.outputs, wide, rule.results, strict=True):
            self.spans[r] = Span(base, dims.index((factor,)), offset, 0, n, roots)
            self.twins.append((r, base, roots))
        return None

    def elementwise(self, op: Op) -> bool:
        return len(op.outputs) > 0 and rule_for(self.seen, op).kind == "elementwise"

    def may_widen(self, op: Op, rule: Rule, factor: str) -> bool:
        """Whether more elements of this factor change nothing but themselves."""
        arrays = (*rule.operands, *rule.results)
        if any(factor in dim and dim != (factor,) for dims in arrays for dim in dims):
            return False
        on = [(factor,) in dims for dims in rule.results]
        if (
            factor in rule.fixed | rule.indexed
            or (any(on) and not all(on))
            or any(h.factor == factor for h in rule.halos)
        ):
            return False
        if op.primitive in ("gather", "scatter-add"):
            return all(on) and (factor,) in rule.operands[1]
        floating = self.to.values[op.outputs[0]].dtype.startswith(("float", "bfloat", "complex"))
        return all(on) or (rule.reduced.get(factor) in _NEUTRAL and floating)

    def operands(self, op: Op, rule: Rule, factor: str, whole: int) -> tuple[list[Operand], int, frozenset[int]] | None:
        """The operands on `whole` elements, lying alike, how far in their elements begin, and the spans' roots. The
        smaller arrays are turned to lie as the larger ones."""
        inputs: list[Operand] = list(op.inputs)
        spans: list[tuple[int, Span]] = []
        for i, (o, dims) in enumerate(zip(op.inputs, rule.operands, strict=True)):
            if (factor,) not in dims:
                continue
            d, span = dims.index((factor,)), self.span(o)
            if span is not None and span.dim == d and self.size(span.base, d) == whole:
                if not self.inside(span, self.size(o, d)):
                    return None
                spans.append((i, span))
                continue
            stretched = self.to.stretched(o, d, whole, op)
            if stretched is None:
                return None
            inputs[i] = stretched
        weight: dict[int, int] = {}
        for _, s in spans:
            weight[s.offset] = weight.get(s.offset, 0) + self.to.values[s.base].size_bytes
        offset = max(weight, key=lambda k: (weight[k], k))
        for i, s in spans:
            inputs[i] = self.to.turned(s.base, s.dim, offset - s.offset, op)
        return inputs, offset, frozenset().union(*(s.roots for _, s in spans))

    def summed(self, op: Op, rule: Rule, factor: str, inputs: list[Operand], offset: int, n: int) -> int:
        """A reduction over the spans: what is beside them changes nothing."""
        neutral = _NEUTRAL[rule.reduced[factor]]
        for i, dims in enumerate(rule.operands):
            if (factor,) in dims:
                x = inputs[i]
                assert not isinstance(x, Literal)
                value = self.to.values[x]
                nothing = Literal(neutral, (), value.dtype, value.itemsize)
                inputs[i] = self.to.within(x, nothing, dims.index((factor,)), offset, offset + n, op)
        (made,) = self.to.again(op, inputs, (self.to.shape(op.outputs[0]),))
        return made
