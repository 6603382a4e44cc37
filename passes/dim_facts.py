"""What the names of dimensions go by: which inputs are parameters and which data, and which classes of dimensions meet
in products, look-ups, maxima and loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from passes.dims import ONE, DimClasses
from passes.ir import Graph, Literal, Op, Operand, control_of, has_control, walk
from passes.rules import Rule, rule_for


# ---- what is a parameter, what is data ----
def weights_of(graph: Graph) -> frozenset[int]:
    """Inputs that hold parameters or what an optimizer keeps for them: what comes back changed by arithmetic. Where
    nothing does, or one array beside an argument of many that hold more bytes (its result happens to have the shape of
    an input), the argument of many arrays that hold the most."""
    made = {r: v.op for v in walk(graph) for r in v.op.outputs}
    carried = {graph.inputs[s]: graph.outputs[p] for p, s in graph.carried.items()}
    state = frozenset(v for v, out in carried.items() if graph.values[v].shape and not _is_buffer(graph, made, out))
    roots: dict[str, list[int]] = {}
    for v, path in zip(graph.inputs, graph.input_paths, strict=True):
        if v not in carried and graph.values[v].dtype.startswith(("float", "bfloat")):
            roots.setdefault(path.split("/")[0], []).append(v)

    def size_bytes(values: Iterable[int]) -> int:
        return sum(graph.values[v].size_bytes for v in values)

    many = max((vs for vs in roots.values() if len(vs) > 1), key=size_bytes, default=[])
    alone = len(state) < 2 and size_bytes(state) < size_bytes(many)
    return frozenset(many) if alone else state


def _is_buffer(graph: Graph, made: Mapping[int, Op], out: Operand) -> bool:
    """Whether a value that comes back is written into at some places only, as a cache of keys is."""
    for _ in range(8):
        op = None if isinstance(out, Literal) else made.get(out)
        if op is None:
            return False
        if op.primitive in ("dynamic_update_slice", "scatter"):
            return True
        if has_control(op):
            control = control_of(op)
            inside = [o for o, r in control.stacks if r == out] + [c.after for c in control.carries if c.result == out]
            if not inside:
                return False
            out = inside[0]
        elif len(op.inputs) == 1:
            out = op.inputs[0]
        else:
            return False
    return False


def used_values(graph: Graph) -> set[int]:
    """Values that a product or a look-up depends on."""
    found: set[int] = set()

    def region(ops: tuple[Op, ...]) -> None:
        for op in reversed(ops):
            if has_control(op):
                control = control_of(op)
                leave = [(c.after, c.result) for c in control.carries] + list(control.stacks)
                leave += [(o, r) for outs, r in control.merges for o in outs]
                for _ in range(2):  # what the next iteration depends on, this one must hand on
                    found.update(o for o, r in leave if r in found and not isinstance(o, Literal))
                    for body in reversed(op.regions):
                        region(body.ops)
                    leave += [(c.after, b) for c in control.carries for b in c.inside]
                enter = [(op.inputs[i], b) for i, b in (*control.passed, *control.slices)]
                enter += [(op.inputs[c.operand], b) for c in control.carries for b in c.inside]
                found.update(o for o, b in enter if b in found and not isinstance(o, Literal))
            elif any(r in found for r in op.outputs) or rule_for(graph, op).kind in ("contraction", "indexing"):
                found.update(o for o in op.inputs if not isinstance(o, Literal))

    region(graph.ops)
    return found


# ---- facts ----
@dataclass(frozen=True, slots=True)
class Product:
    """A contraction by classes: on both operands and the result, on both operands only, on one and the result, and on
    one operand alone (picked by groups). `data` says which operands depend on the data."""

    shared: frozenset[int]
    contracted: frozenset[int]
    left: frozenset[int]
    right: frozenset[int]
    picked: frozenset[int]
    data: tuple[bool, bool]
    image: tuple[int, ...]  # of a convolution the classes of its image, else empty
    kernel: tuple[int, ...]  # and those of its kernel

    @property
    def with_weight(self) -> bool:
        return self.data[0] != self.data[1]

    @property
    def of_weight(self) -> frozenset[int]:
        """The parameter's dimensions that the result has and the data had not."""
        return self.right if self.data[0] else self.left


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose `rows` are read or written at computed `places`; `other` are its other dimensions. `weight`: it is
    made of parameters; `by_data`: the places are."""

    rows: int
    weight: bool
    by_data: bool
    places: tuple[int, ...]
    other: tuple[int, ...]


@dataclass(slots=True)
class Facts:
    """What a program shows of its dimensions; the lists are in program order."""

    graph: Graph
    classes: DimClasses
    weights: frozenset[int]
    parameters: frozenset[int]
    data: frozenset[int]  # inputs that are neither parameters nor theirs
    products: list[Product] = field(default_factory=list)
    largest: set[int] = field(default_factory=set)  # classes over which a maximum is taken
    stacked: list[tuple[int, bool]] = field(default_factory=list)  # class a loop runs along, whether over parameters
    tables: list[Table] = field(default_factory=list)

    def at(self, value: int) -> tuple[int, ...]:
        return self.classes.values[value]


def facts_of(graph: Graph, classes: DimClasses, weights: frozenset[int], parameters: frozenset[int]) -> Facts:
    """One walk over the program. `weights` and `parameters` are inputs, as in `Dims`."""
    data = frozenset(v for v in graph.inputs if v not in weights and graph.values[v].shape)
    facts = Facts(graph, classes, weights, parameters, data)
    from_data, from_weight = set(data), set(weights)

    def region(ops: tuple[Op, ...]) -> None:
        for op in ops:
            if has_control(op):
                _enter(op, from_data, from_weight)
                for body in op.regions:
                    region(body.ops)
                _leave(op, from_data, from_weight)
                _note_loop(facts, op, from_data)
                continue
            used = [o for o in op.inputs if not isinstance(o, Literal)]
            if any(o in from_data for o in used):
                from_data.update(op.outputs)
            elif any(o in from_weight for o in used):
                from_weight.update(op.outputs)
            _note(facts, op, from_data, from_weight)

    region(graph.ops)
    return facts


def _enter(op: Op, from_data: set[int], from_weight: set[int]) -> None:
    """What enters a loop or branch, from where it comes. A carry counts as data where anything that enters is: after
    one iteration it may be."""
    control = control_of(op)
    enter = [(op.inputs[i], inside) for i, inside in (*control.passed, *control.slices)]
    carries = [(op.inputs[c.operand], inside) for c in control.carries for inside in c.inside]
    for known in (from_data, from_weight):
        known.update(inside for o, inside in (*enter, *carries) if not isinstance(o, Literal) and o in known)
    if any(not isinstance(o, Literal) and o in from_data for o in op.inputs):
        from_data.update(inside for _, inside in carries)


def _leave(op: Op, from_data: set[int], from_weight: set[int]) -> None:
    control = control_of(op)
    leave = [(c.after, c.result) for c in control.carries] + list(control.stacks)
    leave += [(o, r) for outs, r in control.merges for o in outs]
    for known in (from_data, from_weight):
        known.update(r for o, r in leave if not isinstance(o, Literal) and o in known)


def _note_loop(facts: Facts, op: Op, from_data: set[int]) -> None:
    for i, inside in control_of(op).slices:
        o = op.inputs[i]
        if not isinstance(o, Literal) and facts.at(o) and len(facts.at(o)) > 1:
            facts.stacked.append((facts.at(o)[0], inside not in from_data))


def _note(facts: Facts, op: Op, from_data: set[int], from_weight: set[int]) -> None:
    rule = rule_for(facts.graph, op)
    if rule.kind == "reduction" and "max" in rule.reduced.values() and op.inputs[0] in from_data:
        found = (facts.classes.of_factor(facts.graph, op, rule, f) for f, how in rule.reduced.items() if how == "max")
        facts.largest.update(found)
    elif rule.kind == "indexing" and rule.indexed:
        table = op.inputs[0]
        rows = [facts.classes.of_factor(facts.graph, op, rule, f) for f in rule.indexed]
        places = () if isinstance(op.inputs[1], Literal) else facts.at(op.inputs[1])
        if not isinstance(table, Literal) and len(rows) == 1 and rows[0] != ONE:
            other = tuple(c for c in facts.at(table) if c not in rows)
            facts.tables.append(Table(rows[0], table in from_weight, op.inputs[1] in from_data, places, other))
    elif rule.kind == "contraction" and len(op.inputs) > 1:
        left, right = op.inputs[:2]
        if not isinstance(left, Literal) and not isinstance(right, Literal):
            facts.products.append(_product(facts, op, rule, (left, right), (left in from_data, right in from_data)))


def _product(facts: Facts, op: Op, rule: Rule, operands: tuple[int, int], data: tuple[bool, bool]) -> Product:
    a, b, out = ({f for dim in dims for f in dim} for dims in (*rule.operands[:2], rule.results[0]))

    def classes(factors: set[str]) -> frozenset[int]:
        return frozenset(facts.classes.of_factor(facts.graph, op, rule, f) for f in factors) - {ONE}

    image, kernel = map(facts.at, operands) if op.primitive == "conv_general_dilated" else ((), ())
    return Product(
        classes(a & b & out), classes((a & b) - out), classes((a & out) - b), classes((b & out) - a),
        classes((a ^ b) - out), data, image, kernel,
    )  # fmt: skip
