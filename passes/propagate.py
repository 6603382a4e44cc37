"""Completes the user's sharding annotations by propagation: from value to value through factors, to a fixpoint.

The order of precedence is that of Shardy, XLA's propagation (https://openxla.org/shardy/propagation): the user's
priorities; then the operations' (element-wise ones and reshapes before contractions, broadcasts last); then, within
one operation, the longest list of axes that all its arrays agree on, where larger arrays go first. Nothing is priced
here and nothing is searched: `completed.py` finds the layout that agrees with the outcome. Every axis that arrives at a
value is kept with the value that it came from, so that a plan can tell the whole way back to the annotation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from passes.flows import Flow, Flows, Placed, constraints, find_flows, placed_by_programs
from passes.ir import OPEN, Graph, Op, Sharding

Axes = tuple[str, ...]
Place = tuple[int, int, str]  # value, dimension, axis

BOTH, FORWARD, BACKWARD, NONE = "both", "forward", "backward", ""
_LEVELS = 5


@dataclass(frozen=True, slots=True)
class Seed:
    """What the user says of a value: `sharding` (`OPEN` dimensions may be completed, others are as they are), where it
    is said, and its priority: those of 0 are propagated to the end before those of 1 are heard."""

    sharding: Sharding
    where: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """One step on the way of an axis: through operation `op` it came from dimension `dim` of `value`."""

    op: Op
    value: int
    dim: int


@dataclass(frozen=True, slots=True)
class Propagated:
    """The sharding of every value, and how each axis came to be there.

    `came[value, dim, axis]` is one step back; `seeds` are the annotations where ways begin. Values that constants give
    are not listed: every reader makes them as it needs them.
    """

    values: Mapping[int, Sharding]
    came: Mapping[Place, Hop]
    seeds: Mapping[int, Seed]
    flows: Flows

    def way(self, value: int, dim: int, axis: str) -> tuple[tuple[Hop, ...], Seed | None]:
        """How `axis` came to cut dimension `dim` of a value: steps back to an annotation, and that annotation (None
        where the dimension is not cut by the axis)."""
        at = (self.flows.root(value), dim, axis)
        hops: list[Hop] = []
        while at in self.came:
            hop = self.came[at]
            hops.append(hop)
            at = (self.flows.root(hop.value), hop.dim, axis)
        return tuple(hops), self.seeds.get(at[0])


def propagate(graph: Graph, sizes: Mapping[str, int], seeds: Mapping[int, Seed]) -> Propagated:
    """Complete `seeds` (value -> annotation) over a graph on a mesh with these axis sizes.

    Seeds must divide what they cut; axes of size 1 take no part. What a user's local program says of its operands and
    results is as good as an annotation.
    """
    placed = list(placed_by_programs(graph, sizes))
    own = {p.value: Seed(p.sharding, f"the {p.op.primitive} at {p.op.source}") for p in placed if p.is_result}
    return _Run(graph, sizes, {**own, **seeds}, [p for p in placed if not p.is_result]).result()


def fits_together(propagated: Propagated, op: Op) -> bool:
    """Whether the arrays of an operation are cut alike wherever they share a dimension, so that nothing has to move."""
    for flow in propagated.flows.flows:
        if flow.op is not op:
            continue
        by_factor: dict[str, set[Axes]] = {}
        for v, dims in zip(flow.values, flow.dims, strict=True):
            if v in propagated.values:
                for factors, axes in zip(dims, propagated.values[v].dims, strict=True):
                    by_factor.setdefault(factors[0], set()).add(axes)
        own = [
            f for f in by_factor if any(f == f"{t}.{d}" for t, dims in enumerate(flow.dims) for d in range(len(dims)))
        ]
        used = [a for f, found in by_factor.items() if f not in own for axes in list(found)[:1] for a in axes]
        if any(len(found) > 1 for found in by_factor.values()) or len(used) != len(set(used)):
            return False
        if any(axes for f in own for axes in by_factor[f]):
            return False  # a dimension that has to be whole here
    return True


@dataclass(slots=True)
class _State:
    """A value's axes per dimension. A closed dimension takes no more; `held` axes are kept for a later priority."""

    dims: list[Axes]
    closed: list[bool]
    held: frozenset[str] = frozenset()
    known: bool = False


@dataclass(slots=True)
class _Cell:
    """One factor of one array: its axes, those of the dimension that reach beyond the factor, and whether it takes
    more."""

    axes: Axes
    beyond: Axes
    closed: bool
    dim: int


@dataclass(slots=True)
class _Run:
    graph: Graph
    sizes: Mapping[str, int]
    given: Mapping[int, Seed]
    read: Sequence[Placed] = ()
    flows: Flows = field(init=False)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    states: dict[int, _State] = field(default_factory=dict)
    seeds: dict[int, Seed] = field(default_factory=dict)
    came: dict[Place, Hop] = field(default_factory=dict)
    readers: dict[int, list[int]] = field(default_factory=dict)
    makers: dict[int, list[int]] = field(default_factory=dict)

    def result(self) -> Propagated:
        self.start()
        self.schedule()
        priorities = sorted({s.priority for s in self.given.values()} | {0})
        for priority in priorities:
            self.hear(priority)
            for level in range(_LEVELS):
                self.level(level)
        found = {}
        for v, x in self.graph.values.items():
            root = self.flows.root(v)
            state = self.states.get(root)
            if root not in self.flows.free:
                found[v] = Sharding.replicated(len(x.shape)) if state is None else Sharding(tuple(state.dims))
        return Propagated(found, self.came, self.seeds, self.flows)

    # ---- what the user said ----
    def start(self) -> None:
        """Annotations hold at their values. What an annotation stands on takes the same form, unless it has one of its
        own or is annotated twice; where a loop hands it on, its other readers read the annotated value instead."""
        annotated = list(constraints(self.graph, {v: s.sharding for v, s in self.given.items()}))
        plain = find_flows(self.graph, self.given)
        wanted: dict[int, set[Sharding]] = {}
        for operand, sharding in [*((o, s) for _, o, s in annotated), *((p.value, p.sharding) for p in self.read)]:
            wanted.setdefault(plain.root(operand), set()).add(sharding)
        instead: dict[int, tuple[int, int]] = {}
        taken: dict[int, Seed] = {plain.root(v): s for v, s in self.given.items()}
        for op, operand, sharding in annotated:
            value = plain.root(operand)
            whole = OPEN not in sharding.dims and len(wanted[value]) == 1
            if not whole or value in taken or value in instead or value in plain.free:
                continue
            if operand in plain.ties or value in plain.ties:
                instead[value] = (op.outputs[0], op.id)
            else:
                taken[value] = self.given[op.outputs[0]]
                for d, axes in enumerate(sharding.dims):
                    for a in axes:
                        self.came[value, d, a] = Hop(op, op.outputs[0], d)
        for p in self.read:
            value = plain.root(p.value)
            if len(wanted[value]) == 1 and value not in plain.ties and value not in plain.free:
                taken.setdefault(value, Seed(p.sharding, f"the {p.op.primitive} at {p.op.source}"))
        self.flows = find_flows(self.graph, self.given, instead) if instead else plain
        self.seeds = taken
        self.shapes = {**{v: x.shape for v, x in self.graph.values.items()}, **self.flows.made}
        for v, shape in self.shapes.items():
            if v not in self.flows.stands_for and shape:
                self.states[v] = _State([()] * len(shape), [False] * len(shape))

    def hear(self, priority: int) -> None:
        """Bring in the annotations of a priority; later ones keep their dimensions and axes for themselves."""
        for v, seed in self.seeds.items():
            state = self.states.get(v)
            if state is None:
                continue
            state.known = True
            for d, axes in enumerate(seed.sharding.dims):
                if seed.priority > priority:
                    state.closed[d] = axes != OPEN
                elif seed.priority == priority and axes != OPEN:
                    state.dims[d], state.closed[d] = axes, True
            state.held = frozenset(seed.sharding.axes) - set(OPEN) if seed.priority > priority else frozenset()

    # ---- one level of precedence ----
    def schedule(self) -> None:
        for i, flow in enumerate(self.flows.flows):
            for v in dict.fromkeys(flow.operands):
                self.readers.setdefault(v, []).append(i)
            for v in dict.fromkeys(flow.results):
                self.makers.setdefault(v, []).append(i)

    def level(self, level: int) -> None:
        """Pass every flow, the first first; where a value changes, its makers and readers come next."""
        flows = self.flows.flows
        stack = list(range(len(flows) - 1, -1, -1))
        waiting = set(stack)
        while stack:
            i = stack.pop()
            waiting.discard(i)
            for value in self.through(flows[i], level):
                around = (*self.makers.get(value, ()), *reversed(self.readers.get(value, ())))
                for j in around:
                    if j != i and j not in waiting:
                        waiting.add(j)
                        stack.append(j)

    def through(self, flow: Flow, level: int) -> list[int]:
        """Propagate through one flow; the values that changed, operands first."""
        states = [self.states[v] for v in flow.values]
        if not any(s.known for s in states):
            return []
        table = [self.cells(dims, s, flow) for dims, s in zip(flow.dims, states, strict=True)]
        before = [{f: c.axes for f, c in row.items()} for row in table]
        inputs = len(flow.operands)
        axes = {f: _agreed(table[:inputs], table[inputs:], f, direction(flow, f, level)) for f in flow.factors}
        if not any(axes.values()):
            return []
        order = self.precedence(flow, table, axes)
        for t in (*range(inputs, len(table)), *range(inputs)):
            for f in order:
                self.widen(flow, table, t, f, axes[f], states[t], t < inputs)
        changed: list[int] = []
        for t, (row, state) in enumerate(zip(table, states, strict=True)):
            for f, cell in row.items():
                added = cell.axes[len(before[t][f]) :]
                if added:
                    state.dims[cell.dim], state.known = cell.axes, True
                    changed.append(flow.values[t])
                    for a in added:
                        self.note(flow, t, f, a, cell.dim, before, table)
        return list(dict.fromkeys(changed))

    def note(
        self, flow: Flow, t: int, factor: str, axis: str, dim: int, before: Sequence[Mapping[str, Axes]],
        table: Sequence[Mapping[str, _Cell]],
    ) -> None:  # fmt: skip
        for u, row in enumerate(before):
            if u != t and axis in row.get(factor, ()):
                self.came.setdefault((flow.values[t], dim, axis), Hop(flow.op, flow.values[u], table[u][factor].dim))
                return

    def cells(self, dims: Sequence[tuple[str, ...]], state: _State, flow: Flow) -> dict[str, _Cell]:
        """An array's axes by factor: those of a dimension go to its major factor as far as they divide it."""
        out = {}
        for d, factors in enumerate(dims):
            axes = state.dims[d]
            fit = len(axes)
            if len(factors) > 1:
                left, fit = flow.rule.sizes[factors[0]], 0
                while fit < len(axes) and left % self.sizes[axes[fit]] == 0:
                    left, fit = left // self.sizes[axes[fit]], fit + 1
            out[factors[0]] = _Cell(axes[:fit], axes[fit:], state.closed[d], d)
        return out

    def precedence(self, flow: Flow, table: Sequence[Mapping[str, _Cell]], axes: Mapping[str, Axes]) -> tuple[str, ...]:
        """Factors whose axes come from larger arrays first; in element-wise operations those that cut more first."""
        keys = {}
        for i, f in enumerate(flow.factors):
            source, size = -1, -1
            for t, row in enumerate(table):
                elements = math.prod(self.shapes[flow.values[t]])
                if axes[f] and f in row and row[f].axes[: len(axes[f])] == axes[f] and elements > size:
                    source, size = t, elements
            cut = self.product(axes[f]) if flow.kind == "elementwise" else 0
            keys[f] = (-size, -cut, source, i)
        return tuple(sorted(flow.factors, key=keys.__getitem__))

    def widen(
        self, flow: Flow, table: Sequence[Mapping[str, _Cell]], t: int, factor: str, axes: Axes, state: _State,
        operand: bool,
    ) -> None:  # fmt: skip
        """Cut one factor of one array by `axes` as far as nothing else of that array stands against it."""
        row = table[t]
        cell = row.get(factor)
        if cell is None or not axes:
            return
        new: list[str] = []
        for a in axes:
            if a in state.held or not (a in cell.axes or self.may_grow(flow, factor, cell, new, a)):
                break
            new.append(a)
        if not _longer(new, cell.axes):
            return
        taken = {a for f, c in row.items() if f != factor for a in (*c.axes, *c.beyond)}
        new = new[: next((i for i, a in enumerate(new) if a in taken), len(new))]
        if operand and flow.kind == "elementwise":
            # What the result cannot take is of no use to the other operands.
            for result in table[len(flow.operands) :]:
                if factor in result and _longer(new, result[factor].axes):
                    new = list(result[factor].axes)
        if _longer(new, cell.axes):
            cell.axes = tuple(new)

    def may_grow(self, flow: Flow, factor: str, cell: _Cell, axes: Sequence[str], axis: str) -> bool:
        return not cell.closed and not cell.beyond and flow.rule.fits(factor, self.product((*axes, axis)))

    def product(self, axes: Sequence[str]) -> int:
        n = 1
        for a in axes:
            n *= self.sizes[a]
        return n


def direction(flow: Flow, factor: str, level: int) -> str:
    """Which way a factor's axes may pass at a level of precedence: levels add up.

    0: operations that move nothing, where no operand has other readers; 1: wherever; 2: every factor that passes
    through, broadcasts from the large array to the small one; 3: sums and windows too; 4: broadcasts both ways.
    """
    if flow.kind in ("elementwise", "pass", "forward") and (flow.single or level >= 1):
        if flow.kind != "forward" or level >= 3 or (level == 2 and factor not in flow.crossing):
            return BOTH
        return FORWARD
    if level < 2 or (level == 2 and factor in flow.crossing):
        return NONE
    return BACKWARD if flow.kind == "broadcast" and level < 4 else BOTH


def _agreed(
    operands: Sequence[Mapping[str, _Cell]], results: Sequence[Mapping[str, _Cell]], factor: str, way: str
) -> Axes:
    """The longest list of axes that no array with this factor contradicts; on a one-way passage only the arrays that it
    starts from make it longer."""
    if not way:
        return ()
    first, second = (results, operands) if way == BACKWARD else (operands, results)
    found: Axes = ()
    grows = True
    for rows, may in ((first, True), (second, way == BOTH)):
        grows = grows and may
        for row in rows:
            if factor in row:
                found, grows = _compatible(found, row[factor].axes, grows)
    return found


def _compatible(old: Axes, new: Axes, grows: bool) -> tuple[Axes, bool]:
    for i, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return old[:i], False
    return (new if grows and len(new) > len(old) else old), grows


def _longer(new: Sequence[str], old: Axes) -> bool:
    """Whether `new` goes on where `old` ends."""
    return len(new) > len(old) and tuple(new[: len(old)]) == old
