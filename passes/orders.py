"""In which order a TPU's compiler lays out the dimensions of arrays, where that costs memory.

A product's batch dimensions are major: what it reads and writes has its other dimensions minor, whatever they waste in
tiles. A gradient that leaves its product transposed keeps the product's order, and so does the update: parameters and
moments are copied into that order for it. (Read off layouts of compiled programs.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from passes.ir import Graph, Op, Operand, Visit, control_of, has_control
from passes.rules import Rule, rule_for

_KEEPS_ORDER = frozenset(
    {"broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "pad", "rev", "concatenate",
     "split", "copy"}
)  # fmt: skip


def major_dims(graph: Graph, visits: Sequence[Visit]) -> dict[int, frozenset[int]]:
    """Dimensions that are not minor: batch dimensions of products, in what they read and write.

    What only moves, stacks, reduces or computes element by element keeps them major. Values without any other dimension
    are not listed.
    """
    found: dict[int, set[int]] = {}
    pairs: list[list[tuple[int, int, int, int]]] = []  # dimension d of value v is dimension e of value w

    def mark(v: int, d: int) -> None:
        found.setdefault(v, set()).add(d)

    for visit in visits:
        op = visit.op
        if has_control(op):
            pairs.append(list(_stacked(graph, op)))
            continue
        if op.regions:
            continue
        rule = rule_for(graph, op)
        arrays = [(o, dims) for o, dims in zip(op.inputs, rule.operands, strict=True) if isinstance(o, int)]
        results = list(zip(op.outputs, rule.results, strict=True))
        if rule.kind == "contraction":
            batch = _batch(rule)
            for v, dims in (*arrays, *results):
                for d, factors in enumerate(dims):
                    if len(factors) == 1 and factors[0] in batch:
                        mark(v, d)
        elif rule.kind in ("elementwise", "reduction") or op.primitive in _KEEPS_ORDER:
            at = [(v, d, f[0]) for v, dims in arrays for d, f in enumerate(dims) if len(f) == 1]
            to = [(v, d, f[0]) for v, dims in results for d, f in enumerate(dims) if len(f) == 1]
            pairs.append([(v, d, w, e) for v, d, f in at for w, e, g in to if f == g])
    for _ in range(2):
        for tied in reversed(pairs):
            for v, d, w, e in tied:
                if e in found.get(w, ()):
                    mark(v, d)
        for tied in pairs:
            for v, d, w, e in tied:
                if d in found.get(v, ()):
                    mark(w, e)
    return {
        v: frozenset(dims)
        for v, dims in found.items()
        if any(n > 1 for d, n in enumerate(graph.values[v].shape) if d not in dims)
    }


def _stacked(graph: Graph, op: Op) -> Iterator[tuple[int, int, int, int]]:
    """Dimensions of what an iteration reads and writes, in the stacks; a loop's operands and carries as they are."""
    control = control_of(op)
    ties: list[tuple[Operand, Operand, int]] = [(op.inputs[i], b, 0) for i, b in control.passed]
    ties += [(b, r, 1) for b, r in control.stacks]
    for c in control.carries:
        ties += [(op.inputs[c.operand], c.result, 0), (c.after, c.result, 0)]
        ties += [(b, c.result, 0) for b in c.inside]
    ties += [(b, r, 0) for each, r in control.merges for b in each]
    for v, w, shift in ties:
        if isinstance(v, int) and isinstance(w, int):
            for d in range(len(graph.values[v].shape)):
                yield v, d, w, d + shift
    for i, b in control.slices:
        v = op.inputs[i]
        if isinstance(v, int):
            for d in range(len(graph.values[b].shape)):
                yield v, d + 1, b, d


def _batch(rule: Rule) -> Collection[str]:
    """Factors that both operands and the result have."""
    inside = [{f for d in dims for f in d} for dims in (*rule.operands, *rule.results)]
    return set.intersection(*inside)


@dataclass(frozen=True, slots=True)
class Turned:
    """An argument that is updated in the order of its gradient's product `op`, from position `start` on."""

    op: int
    start: int


def turned_arguments(graph: Graph, visits: Sequence[Visit]) -> Mapping[int, Turned]:
    """Arguments of two and more dimensions that meet a transposed product element by element.

    An update that waits for more than its gradient (a norm over all of them) is left out: its copies are made one after
    the other at the very end.
    """
    parent: dict[int, int] = {}

    def find(v: int) -> int:
        while parent.setdefault(v, v) != v:
            parent[v] = parent[parent[v]]
            v = parent[v]
        return v

    made: dict[int, int] = {}  # where a value is computed, with what it is fused into
    products: dict[int, tuple[int, int]] = {}
    transposed: dict[int, tuple[int, int]] = {}
    updated: list[int] = []
    for i, visit in enumerate(visits):
        op = visit.op
        kind = "loop" if op.regions else rule_for(graph, op).kind
        operands = [o for o in op.inputs if isinstance(o, int)]
        fused = kind == "elementwise" or op.primitive in ("transpose", "broadcast_in_dim", "reshape")
        for r in op.outputs:
            made[r] = max((made.get(o, -1) for o in operands), default=-1) if fused else i
        if visit.inside or op.regions:
            continue
        if op.primitive == "dot_general":
            products[op.outputs[0]] = (op.id, i)
        elif op.primitive == "transpose" and operands and operands[0] in products:
            if tuple(op.params["permutation"]) != tuple(range(len(graph.values[operands[0]].shape))):
                transposed[op.outputs[0]] = products[operands[0]]
        elif kind == "elementwise":
            for r in op.outputs:
                shape = graph.values[r].shape
                for o in operands:
                    if len(shape) > 1 and graph.values[o].shape == shape:
                        parent[find(o)] = find(r)
                        updated.append(r)
    source = {find(v): at for v, at in transposed.items()}
    ready: dict[int, int] = {}
    for r in updated:
        ready[find(r)] = max(ready.get(find(r), 0), made[r])
    return {
        a: Turned(*source[find(a)])
        for a in graph.inputs
        if a in parent and find(a) in source and ready.get(find(a), 0) <= source[find(a)][1]
    }
