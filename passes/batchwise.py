"""What a program does with the batch: which values hold a part of it per microbatch, and which are sums over it.

The batch is cut over time as a mesh axis would cut it over devices, so the same rules say what may be cut: a factor
passes through, or is reduced, or must stay whole. Every value is in one of four states (`Cut`, `Part`, `SAME`, or none:
it does not depend on the batch and is computed once).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from passes.ir.control import Carry, Control, control_of, has_control
from passes.ir.graph import Graph, Literal, Op, Operand, Source
from passes.linear import is_linear
from passes.rules import Rule, rule_for


@dataclass(frozen=True, slots=True)
class Cut:
    """One microbatch has an equal part of dimension `dim` (which part: see `Batchwise.parts`)."""

    dim: int


@dataclass(frozen=True, slots=True)
class Part:
    """Every microbatch has a number of the whole shape; the value is what they `combine` to ("sum", "max", "min")."""

    combine: str


@dataclass(frozen=True, slots=True)
class Same:
    """Computed together with a microbatch, and the same in each."""


SAME = Same()
State = Cut | Part | Same


class MicrobatchError(ValueError):
    """A program whose results would change if the batch were cut over time. `reason` says in words why, `source` is the
    user's line, `primitive` the operation."""

    def __init__(self, reason: str, op: Op | None = None) -> None:
        where = "" if op is None else f"{op.primitive} at {op.source or 'an unknown line'}: "
        super().__init__(f"{where}{reason}")
        self.reason = reason
        self.source: Source | None = op.source if op is not None else None
        self.primitive = op.primitive if op is not None else ""


# Run foreign code, or are told sizes that belong to the whole batch.
_WHOLE_ONLY = frozenset({"ffi_call", "pure_callback", "io_callback", "custom_call", "ragged_dot_general"})


@dataclass(slots=True)
class Batchwise:
    """The states of all values of a graph whose inputs `batch` (value -> dimension) are cut into `count` parts.

    `demands` are the whole operands of which operations at the top level read the part that belongs to their
    microbatch: (operation, operand number) -> dimension. `made_whole` are operations inside loops whose results are
    made for the whole batch (random bits, counters) and then sliced. `origin` says where a sum over the batch began.
    `regroups` says whether the program sees several examples as one thing.
    """

    graph: Graph
    count: int
    states: dict[int, State] = field(default_factory=dict)
    demands: dict[tuple[int, int], int] = field(default_factory=dict)
    producer: dict[int, Op] = field(default_factory=dict)
    forced: dict[int, Cut] = field(default_factory=dict)  # inside regions: whole values of which parts are read
    made_whole: set[int] = field(default_factory=set)
    origin: dict[int, Op] = field(default_factory=dict)
    strict: bool = True
    examples: int = 0
    regroups: bool = False

    def run(self, batch: Mapping[int, int]) -> None:
        """Raises MicrobatchError where the batch cannot be cut."""
        sizes = {self.graph.values[v].shape[d] for v, d in batch.items()}
        self.examples, self.regroups = min(sizes, default=1), len(sizes) > 1
        for value, dim in batch.items():
            self.states[value] = Cut(dim)
        for op in self.graph.ops:
            self.visit(op, True)

    def parts(self, shape: tuple[int, ...], dim: int) -> tuple[tuple[int, ...], int]:
        """(a shape in which one dimension counts the microbatches, that dimension) of a cut array.

        A microbatch takes every so-manieth example, so that devices which hold neighbouring examples have some of each
        microbatch and nothing moves. Where the program puts examples into groups, it takes neighbouring ones, so that
        groups stay what they are.
        """
        n, m = shape[dim], self.count
        if self.regroups:
            return (*shape[:dim], m, n // m, *shape[dim + 1 :]), dim
        unit = (n // self.examples,) if n > self.examples else ()
        return (*shape[:dim], self.examples // m, m, *unit, *shape[dim + 1 :]), dim + 1

    def state(self, operand: Operand) -> State | None:
        return None if isinstance(operand, Literal) else self.states.get(operand)

    def visit(self, op: Op, top: bool) -> None:
        """Give the results of an operation their states."""
        self.producer.update(dict.fromkeys(op.outputs, op))
        states = [self.state(o) for o in op.inputs]
        if top and any(isinstance(s, Part) for s in states):
            if not self._adds_parts(op, states):
                states = [None if isinstance(s, Part) else s for s in states]  # the sum is finished before
            else:
                self.states[op.outputs[0]] = Part("sum")
                return
        forced = any(r in self.forced for r in op.outputs)
        if not any(states) and not forced and not has_control(op):
            return
        if has_control(op):
            self.control(op, states, top)
            return
        cut = any(isinstance(s, Cut) for s in states) or forced
        if cut and any(isinstance(s, Part) for s in states):
            self.refuse(f"{self._sums(op)} is not complete inside a loop, and single examples read it", op)
        if cut:
            self.cut(op, states, top)
        elif any(isinstance(s, Part) for s in states):
            self.linear(op, states)
        else:
            self.states.update(dict.fromkeys(op.outputs, SAME))

    def refuse(self, reason: str, op: Op) -> None:
        if self.strict:
            raise MicrobatchError(reason, op)

    def _adds_parts(self, op: Op, states: Sequence[State | None]) -> bool:
        """At the top level only sums of sums stay unfinished; anything else is cheaper once than per microbatch."""
        return op.primitive in ("add", "add_any") and all(s == Part("sum") for s in states)

    # ---- operations that see single examples ----
    def cut(self, op: Op, states: Sequence[State | None], top: bool) -> None:
        rule = rule_for(self.graph, op)
        factors: dict[str, int] = {}  # factor of the batch -> operand that brings it
        for i, s in enumerate(states):
            if isinstance(s, Cut):
                factors.setdefault(self._factor(op, rule, rule.operands[i][s.dim]), i)
        for r, dims in zip(op.outputs, rule.results, strict=True):
            if r in self.forced:
                wanted = self.forced[r].dim
                if rule.kind == "free" and op.params.get("dimension", wanted) == wanted:
                    self.made_whole.add(op.id)
                    self.states[r] = Cut(wanted)
                    return
                factors.setdefault(self._factor(op, rule, dims[wanted]), -1)
        factors.pop("", None)
        for f in factors:
            self._check(op, rule, f)
        if len(factors) > 1 and not self._apart(rule, set(factors)):
            self.refuse("every example of the batch meets every other one", op)
        for i, (operand, dims) in enumerate(zip(op.inputs, rule.operands, strict=True)):
            for d, dim in enumerate(dims):
                if dim and dim[0] in factors and states[i] != Cut(d):
                    if isinstance(states[i], Cut) or (self.strict and not top and not isinstance(operand, Literal)):
                        self.refuse("examples of the batch meet other ones, or a constant made for all of them", op)
                    self.demand(i, d, op, top)
        for r, dims in zip(op.outputs, rule.results, strict=True):
            places = [d for d, dim in enumerate(dims) if dim and dim[0] in factors]
            if len(places) > 1:
                self.refuse("every example of the batch meets every other one", op)
            if places:
                self.states[r] = Cut(places[0])
                self.regroups |= self.graph.values[r].shape[places[0]] % self.examples != 0
            elif any(f in rule.reduced for f in factors):
                self.states[r] = self._reduced(op, rule, factors, states)
            else:
                self.states[r] = SAME

    def _factor(self, op: Op, rule: Rule, dim: tuple[str, ...]) -> str:
        if not dim:
            self.refuse("all examples of the batch are needed at once", op)
            return ""
        return dim[0]

    def _check(self, op: Op, rule: Rule, f: str) -> None:
        self.regroups |= rule.sizes[f] % self.examples != 0
        if op.primitive in _WHOLE_ONLY or op.params.get("has_effects"):
            self.refuse("the operation is told the size of the whole batch, or has effects", op)
        if f not in rule.cuttable() and not (f in rule.reduced and f not in rule.fixed):
            self.refuse("all examples of the batch are needed at once", op)
        elif not rule.fits(f, self.count):
            self.refuse(f"{self.count} microbatches do not divide {rule.sizes[f]} of the batch", op)
        if rule.exchanges({f}):
            self.refuse("examples are computed from their neighbours in the batch", op)
        if f in rule.indexed or (f in rule.reduced and rule.kind not in ("contraction", "reduction", "indexing")):
            self.refuse("single examples are picked by their position in the batch", op)

    def _apart(self, rule: Rule, factors: set[str]) -> bool:
        """Whether several results pass through side by side (an optimisation barrier), never meeting."""
        arrays = (*rule.operands, *rule.results)
        return rule.kind == "movement" and all(len(factors & {f for dim in dims for f in dim}) <= 1 for dims in arrays)

    def _reduced(self, op: Op, rule: Rule, factors: Mapping[str, int], states: Sequence[State | None]) -> Part:
        (combine,) = {rule.reduced[f] for f in factors if f in rule.reduced}
        self.origin.update(dict.fromkeys(op.outputs, op))
        if op.primitive.startswith("scatter") and not (self.is_zero(op.inputs[0]) or isinstance(states[0], Part)):
            self.refuse("updates of all examples are added to an array that is not zero", op)
        return Part(combine)

    def demand(self, number: int, dim: int, op: Op, top: bool) -> None:
        """A cut operation reads its microbatch's part of a whole array."""
        operand = op.inputs[number]
        if isinstance(operand, Literal):
            return
        if top:
            self.demands[op.id, number] = dim
            return
        if self.forced.get(operand, Cut(dim)) != Cut(dim):
            self.refuse("an array is read along two dimensions of the batch", op)
        if operand not in self.forced:
            self.forced[operand] = Cut(dim)

    # ---- sums over the batch ----
    def linear(self, op: Op, states: Sequence[State | None]) -> None:
        """Inside a loop a sum over the batch is not finished yet: what is read must be linear in it."""
        parts = [isinstance(s, Part) for s in states]
        finished = any(isinstance(s, Part) and s.combine != "sum" for s in states)
        if finished or not is_linear(self.graph, op, parts, self.is_zero):
            self.refuse(f"{self._sums(op)} is not complete inside a loop, and this is not linear in it", op)
        if op.primitive == "optimization_barrier":
            for r, s in zip(op.outputs, states, strict=True):
                self.states[r] = s if s is not None else SAME
            return
        self.states.update(dict.fromkeys(op.outputs, Part("sum")))
        known = [self.origin[o] for o in op.inputs if not isinstance(o, Literal) and o in self.origin]
        self.origin.update(dict.fromkeys(op.outputs, known[0]) if known else {})

    def _sums(self, op: Op) -> str:
        """The statistic of the batch that an operation reads, with the line that it comes from."""
        origins = [self.origin[o] for o in op.inputs if not isinstance(o, Literal) and o in self.origin]
        if not origins:
            return "a statistic of the whole batch"
        return f"a statistic of the whole batch ({origins[0].primitive} at {origins[0].source or 'an unknown line'})"

    def is_zero(self, operand: Operand) -> bool:
        """Whether the program says that an array is all zeros."""
        if isinstance(operand, Literal):
            return not operand.shape and not operand.value
        op = self.producer.get(operand)
        return (
            op is not None
            and op.primitive in ("broadcast_in_dim", "convert_element_type")
            and self.is_zero(op.inputs[0])
        )

    # ---- loops and branches ----
    def control(self, op: Op, states: Sequence[State | None], top: bool) -> None:
        """The states inside are repeated until carries leave as they enter; only then is anything refused."""
        ties = control_of(op)
        if not any(states) and not any(r in self.forced for r in op.outputs):
            return
        strict, self.strict = self.strict, False
        entering = self._entering(op, ties, states)
        while True:
            before = (dict(entering), dict(self.forced))
            self._bodies(op, entering)
            self._agree(op, ties, entering)
            if (dict(entering), dict(self.forced)) == before:
                break
        self.strict = strict
        self._bodies(op, entering)
        for operand in ties.tests:
            if self.state(operand) not in (None, SAME):
                self.refuse("the batch decides how a loop or branch goes on", op)
        self._enter(op, ties, entering, states, top)
        self._leave(op, ties)

    def _entering(self, op: Op, ties: Control, states: Sequence[State | None]) -> dict[int, State]:
        entering: dict[int, State] = {}

        def put(inside: int, state: State | None) -> None:
            if state is not None:
                entering[inside] = state

        for i, v in ties.passed:
            put(v, states[i])
        for i, v in ties.slices:
            s = states[i]
            if s == Cut(0):
                self.strict = True
                self.refuse("a loop goes over the examples of the batch", op)
            put(v, Cut(s.dim - 1) if isinstance(s, Cut) else s)
        for c in ties.carries:
            for v in c.inside:
                put(v, states[c.operand])
        return entering

    def _bodies(self, op: Op, entering: Mapping[int, State]) -> None:
        for region in op.regions:
            for v in region.inputs:
                self.states.pop(v, None)
                if v in entering:
                    self.states[v] = entering[v]
            for inner in region.ops:
                for r in inner.outputs:
                    self.states.pop(r, None)
                self.visit(inner, False)

    def _agree(self, op: Op, ties: Control, entering: dict[int, State]) -> None:
        """What a body asks of its inputs, and what an iteration hands on, is what it must be given."""
        for region in op.regions:
            for v in region.inputs:
                if v in self.forced:
                    entering[v] = self.forced[v]
        for c in ties.carries:
            self._agree_carry(c, entering)
        for r, outs in self._results(ties):
            wanted = self.forced.get(r[0])
            for out in outs:
                if wanted is not None and not isinstance(out, Literal) and self.state(out) is None:
                    self.forced.setdefault(out, Cut(wanted.dim - r[1]))

    def _agree_carry(self, carry: Carry, entering: dict[int, State]) -> None:
        after = self.state(carry.after)
        if carry.result in self.forced and after is None:
            after = self.forced[carry.result]
        known = next((entering[v] for v in carry.inside if v in entering), None)
        if isinstance(after, Cut | Part) and known in (None, SAME):
            for v in carry.inside:
                entering[v] = after
        if isinstance(known, Cut) and after in (None, SAME) and not isinstance(carry.after, Literal):
            self.forced.setdefault(carry.after, known)

    def _results(self, ties: Control) -> list[tuple[tuple[int, int], tuple[Operand, ...]]]:
        """((result, dimensions that it has in front), what it is made of)."""
        found: list[tuple[tuple[int, int], tuple[Operand, ...]]] = [((r, 1), (o,)) for o, r in ties.stacks]
        return found + [((r, 0), outs) for outs, r in ties.merges]

    def _enter(
        self, op: Op, ties: Control, entering: Mapping[int, State], states: Sequence[State | None], top: bool
    ) -> None:
        """What enters must be as the bodies read it."""
        pairs = [(i, v, 0) for i, v in ties.passed] + [(i, v, 1) for i, v in ties.slices]
        pairs += [(c.operand, v, 0) for c in ties.carries for v in c.inside]
        for i, v, front in pairs:
            wanted = entering.get(v)
            if isinstance(wanted, Cut) and states[i] in (None, SAME):
                self.demand(i, wanted.dim + front, op, top)
            elif isinstance(wanted, Part) and states[i] is None and not self.is_zero(op.inputs[i]):
                self.refuse("a sum over the batch is added to what does not start at zero", op)

    def _leave(self, op: Op, ties: Control) -> None:
        for c in ties.carries:
            before, after = self.states.get(c.inside[0]), self.state(c.after)
            if (
                isinstance(before, Cut | Part)
                and before != after
                and not (isinstance(before, Part) and self.is_zero(c.after))
            ):
                self.refuse("what a loop hands on is not cut as it came", op)
            self.states[c.result] = before or after or SAME
            if not isinstance(c.after, Literal) and c.after in self.origin:
                self.origin[c.result] = self.origin[c.after]
        for (r, front), outs in self._results(ties):
            found = {s for s in map(self.state, outs) if s not in (None, SAME)}
            if len(found) > 1:
                self.refuse("branches make different things of the batch", op)
            state = found.pop() if found else SAME
            if isinstance(state, Cut | Part) and any(
                self.state(o) in (None, SAME) and not self.is_zero(o) for o in outs
            ):
                self.refuse("branches make different things of the batch", op)
            self.states[r] = Cut(state.dim + front) if isinstance(state, Cut) else state
            for o in outs:
                if not isinstance(o, Literal) and o in self.origin:
                    self.origin[r] = self.origin[o]
