"""What propagation runs over: operations, and the ties of loops and branches, as one kind of thing.

A flow says which dimensions of which values are the same factor, and how soon shardings may pass through it. The order
of flows, the counting of uses and the treatment of constants follow what XLA's propagation sees of a JAX program, so
that both complete the same annotations in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from passes.ir import Graph, Literal, Op, Operand, Sharding, control_of, has_control, walk
from passes.rules import Rule, rule_for
from passes.rules.notation import DimFactors

# Which operations pass shardings on at once: nothing moves in them, whatever is cut.
_PASS = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "optimization_barrier", "sharding_constraint"})
# Parts of an array: what the whole array says reaches the part first.
_FORWARD = frozenset({"dynamic_slice", "dynamic_update_slice"})
# What is made of constants by these is made anew for every reader.
_COPIED = frozenset({"broadcast_in_dim", "slice", "reshape", "iota"})


@dataclass(frozen=True, slots=True)
class Flow:
    """Values that an operation, or a tie of a loop, brings together.

    `operands` and `results` are values that stand for all that are always cut alike, `dims` per operand, then per
    result, per dimension, its factors (major to minor; a name that occurs once is that dimension's own). `kind`:
    "elementwise" | "pass" | "forward" | "broadcast" | "other". `crossing` are factors that do not simply pass through
    (sums over them, or windows along them). `single` says that no operand has other readers.
    """

    operands: tuple[int, ...]
    results: tuple[int, ...]
    dims: tuple[tuple[DimFactors, ...], ...]
    factors: tuple[str, ...]
    rule: Rule
    kind: str
    crossing: frozenset[str]
    single: bool
    op: Op

    @property
    def values(self) -> tuple[int, ...]:
        return (*self.operands, *self.results)


@dataclass(frozen=True, slots=True)
class Flows:
    """All flows in order, and for values that are always cut alike the one that stands for them. `ties` are values that
    a loop or a barrier hands on, `free` those that are made anew for every reader, `made` the shapes of arrays that the
    program does not have and XLA makes (numbered below 0): operands that an operation repeats."""

    flows: tuple[Flow, ...]
    stands_for: Mapping[int, int]
    ties: frozenset[int]
    free: frozenset[int]
    made: Mapping[int, tuple[int, ...]]

    def root(self, value: int) -> int:
        while value in self.stands_for:
            value = self.stands_for[value]
        return value


def find_flows(graph: Graph, fixed: Collection[int], instead: Mapping[int, tuple[int, int]] | None = None) -> Flows:
    """The flows of a graph. `fixed` are values with a sharding of their own: a name that the user pinned is a
    place where an array may be brought to another sharding. `instead` are values that all but one operation read in
    another one's stead: value -> (that one, the operation)."""
    return _Finder(graph, frozenset(fixed), dict(instead or {})).run()


@dataclass(slots=True)
class _Finder:
    graph: Graph
    fixed: frozenset[int]
    instead: dict[int, tuple[int, int]]
    stands_for: dict[int, int] = field(default_factory=dict)
    free: set[int] = field(default_factory=set)
    ties: set[int] = field(default_factory=set)
    uses: Counter[int] = field(default_factory=Counter)
    flows: list[Flow] = field(default_factory=list)
    made: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def run(self) -> Flows:
        self.free |= set(self.graph.constants)
        self.alike(self.graph.ops)
        self.count()
        self.region(self.graph.ops)
        return Flows(tuple(self.flows), self.stands_for, frozenset(self.ties), frozenset(self.free), self.made)

    # ---- before the walk: what stands for what, what is free, how often values are read ----
    def alike(self, ops: Sequence[Op]) -> None:
        for op in ops:
            if op.primitive == "name" and op.outputs[0] not in self.fixed and not isinstance(op.inputs[0], Literal):
                self.stands_for[op.outputs[0]] = op.inputs[0]
            if op.primitive == "optimization_barrier":
                self.ties |= set(op.outputs)
            if not op.regions or not has_control(op):
                if self.is_free(op):
                    self.free |= set(op.outputs)
                continue
            control = control_of(op)
            if op.primitive == "cond":  # branches read what is outside; they have no arguments of their own
                for i, b in control.passed:
                    o = op.inputs[i]
                    if isinstance(o, Literal):
                        self.free.add(b)
                    else:
                        self.stands_for[b] = o
                        self.free |= {b} & {b for _ in (o,) if o in self.free}
            for carry in control.carries:
                first, *others = carry.inside
                self.stands_for.update(dict.fromkeys((*others, carry.result), first))
                self.ties |= {*carry.inside, carry.result}
            self.ties |= {r for _, r in control.merges}
            for region in op.regions:
                self.alike(region.ops)

    def is_free(self, op: Op) -> bool:
        """Whether readers each make their own: constants, counters, and what follows from them element by element."""
        rule = rule_for(self.graph, op)
        if rule.kind == "free":
            return True
        copied = rule.kind == "elementwise" or op.primitive in _COPIED
        return copied and all(self.is_small(o) for o in op.inputs) and op.primitive != "sharding_constraint"

    def is_small(self, operand: Operand) -> bool:
        return isinstance(operand, Literal) or operand in self.free or not self.graph.values[operand].shape

    def count(self) -> None:
        """Readers of every value, as XLA counts them: a loop hands on what its body only reads."""
        names = {v.op.outputs[0] for v in walk(self.graph) if v.op.outputs and v.op.outputs[0] in self.stands_for}
        for v in walk(self.graph):
            if v.op.primitive != "name" or v.op.outputs[0] not in self.stands_for:
                self.read(v.op.inputs, names)
            for region in v.op.regions:
                self.read(region.outputs, names)
            if has_control(v.op) and v.op.primitive != "cond":
                self.uses.update(b for _, b in control_of(v.op).passed)
        self.read(self.graph.outputs, names)

    def read(self, operands: Sequence[Operand], names: Collection[int]) -> None:
        for o in operands:
            while not isinstance(o, Literal) and o in names:
                o = self.stands_for[o]
            if not isinstance(o, Literal):
                self.uses[o] += 1

    def root(self, value: int) -> int:
        while value in self.stands_for:
            value = self.stands_for[value]
        return value

    # ---- the walk ----
    def region(self, ops: Sequence[Op]) -> None:
        for op in ops:
            for region in op.regions if has_control(op) else ():
                self.region(region.ops)
            if has_control(op):
                for flow in self.ties_of(op):
                    self.flows.append(flow)
            elif not (op.outputs and (op.outputs[0] in self.stands_for or op.outputs[0] in self.free)):
                rule = rule_for(self.graph, op)
                if not rule.exact:  # a user's local program says by itself how all its arrays are cut
                    self.add(op, rule)

    def add(self, op: Op, rule: Rule) -> None:
        operands = [(o, dims) for o, dims in zip(op.inputs, rule.operands, strict=True) if self.takes_part(o)]
        results = [(r, dims) for r, dims in zip(op.outputs, rule.results, strict=True) if self.takes_part(r)]
        if rule.kind == "elementwise":
            kind = "elementwise"
            operands = [self.repeated(op, o, dims, rule) for o, dims in operands]
        elif op.primitive in _PASS:
            kind = "elementwise" if op.primitive == "sharding_constraint" else "pass"
        elif op.primitive in _FORWARD:
            kind = "forward"
        else:
            kind = "broadcast" if op.primitive == "broadcast_in_dim" else "other"
        self.flow(op, rule, kind, operands, results)

    def repeated(
        self, op: Op, operand: Operand, dims: tuple[DimFactors, ...], rule: Rule
    ) -> tuple[Operand, tuple[DimFactors, ...]]:
        """An operand that is repeated along dimensions of size 1 is broadcast first."""
        full = rule.results[0]
        if dims == full or isinstance(operand, Literal):
            return operand, dims
        new = -1 - len(self.made)
        self.made[new] = self.graph.values[op.outputs[0]].shape
        self.flow(op, rule, "broadcast", [(operand, dims)], [(new, full)])
        return new, full

    def takes_part(self, operand: Operand) -> bool:
        return not self.is_small(operand)

    def ties_of(self, op: Op) -> Iterator[Flow]:
        """One flow per carry, per array that every iteration reads, per stack, and per result of branches."""
        control = control_of(op)
        before = len(self.flows)
        if op.primitive != "cond":
            for i, b in control.passed:
                self.tie(op, [op.inputs[i]], b, "pass")
        for carry in control.carries:
            self.tie(op, [op.inputs[carry.operand], carry.after], carry.inside[0], "pass")
        for i, b in control.slices:
            self.tie(op, [op.inputs[i]], b, "forward", stacked="operand")
        for out, result in control.stacks:
            self.tie(op, [out], result, "forward", stacked="result")
        for outs, result in control.merges:
            self.tie(op, list(outs), result, "pass")
        made = self.flows[before:]
        del self.flows[before:]
        yield from made

    def tie(self, op: Op, sources: list[Operand], target: int, kind: str, stacked: str = "") -> None:
        shape = self.graph.values[target].shape
        names = tuple((f"d{d}",) for d in range(len(shape)))
        sizes = {f"d{d}": n for d, n in enumerate(shape)}
        operand: tuple[DimFactors, ...] = names
        if stacked == "operand":
            operand = ((), *names)
        elif stacked == "result":
            operand = names[1:]
        rule = Rule(tuple(operand for _ in sources), (names,), sizes)
        operands = [(o, operand) for o in sources if self.takes_part(o)]
        self.flow(op, rule, kind, operands, [(target, names)] if self.takes_part(target) else [])

    def flow(
        self,
        op: Op,
        rule: Rule,
        kind: str,
        operands: Sequence[tuple[Operand, tuple[DimFactors, ...]]],
        results: Sequence[tuple[int, tuple[DimFactors, ...]]],
    ) -> None:
        read = [(self.reads(op, o), dims) for o, dims in operands if not isinstance(o, Literal)]
        arrays = [*read, *results]
        if not arrays:
            return
        cuttable = set(rule.cuttable())
        dims = tuple(
            tuple(
                dim if dim and dim[0] in cuttable else (f"{t}.{d}",)
                for d, dim in enumerate(array)
            )
            for t, (_, array) in enumerate(arrays)
        )  # fmt: skip
        order = dict.fromkeys(dim[0] for array in (*dims[len(read) :], *dims[: len(read)]) for dim in array)
        crossing = frozenset(rule.reduced) | {b.factor for b in rule.halos}
        single = all(self.uses[o] <= 1 for o, _ in operands if not isinstance(o, Literal))
        self.flows.append(
            Flow(
                tuple(self.root(v) for v, _ in read), tuple(self.root(v) for v, _ in results), dims, tuple(order), rule,
                kind, crossing, single, op,
            )
        )  # fmt: skip

    def reads(self, op: Op, value: int) -> int:
        """The value that an operation reads, or what it reads in its stead."""
        other, only = self.instead.get(self.root(value), (value, op.id))
        return value if only == op.id else other


@dataclass(frozen=True, slots=True)
class Placed:
    """An operand or result of a user's local program, and how its own specs cut it."""

    op: Op
    value: int
    sharding: Sharding
    is_result: bool


def placed_by_programs(graph: Graph, sizes: Mapping[str, int]) -> Iterator[Placed]:
    """What local programs (`shard_map`) say of their operands and results, where they are written for this mesh."""
    for v in walk(graph):
        if v.op.primitive != "shard_map":
            continue
        rule = rule_for(graph, v.op)
        if not rule.exact or rule.mesh != tuple(sizes.items()):
            continue
        arrays = [*zip(v.op.inputs, rule.operands, strict=True), *zip(v.op.outputs, rule.results, strict=True)]
        for k, (value, dims) in enumerate(arrays):
            if not isinstance(value, Literal):
                axes = tuple(rule.exact.get(dim[0], ()) if dim else () for dim in dims)
                yield Placed(v.op, value, Sharding(axes), k >= len(v.op.inputs))


def constraints(graph: Graph, seeds: Mapping[int, Sharding]) -> Iterator[tuple[Op, int, Sharding]]:
    """Annotations in program order: the operation, the value that it annotates, and the sharding of its result."""
    for v in walk(graph):
        if v.op.primitive == "sharding_constraint" and v.op.outputs[0] in seeds:
            operand = v.op.inputs[0]
            if not isinstance(operand, Literal):
                yield v.op, operand, seeds[v.op.outputs[0]]
