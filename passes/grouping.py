"""Finds the decision groups of a program: one walk in program order that gives every value a state.

Whether an operation follows a group or leads one of its own is decided here; what groups are is in `groups.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from passes.groups import FREE, SCALAR, Alias, Finish, Group, Grouping, Place, Slot, State, Want, slots_of
from passes.held import Held
from passes.ir import Graph, Literal, Op, Operand, Sharding, Visit, has_control, walk
from passes.loops import group_control
from passes.rules import Rule, rule_for
from passes.sums import mark_sums, merge_repeats, private_state


def group_values(
    graph: Graph,
    cuts: Iterable[int] = (2, 4, 8),
    pinned: Iterable[int] = (),
    pins: Mapping[int, Sharding] | None = None,
) -> Grouping:
    """Groups of `graph`; `cuts` are the numbers of pieces that the mesh can make (products of its axis sizes).

    `pinned` are values that may have to be cut along the dimension that a loop runs over, `pins` shardings that are
    decided already: values whose pins differ are no group.
    """
    builder = Builder(graph, tuple(sorted(set(cuts))), frozenset(pinned), Held(pins or {}))
    builder.run()
    return builder.finish()


class Builder:
    """Walks the program once, in order, giving every value a state."""

    def __init__(self, graph: Graph, cuts: tuple[int, ...], pinned: frozenset[int], held: Held) -> None:
        self.graph = graph
        self.cuts = cuts
        self.pinned = pinned
        self.held = held
        self.inputs = set(graph.inputs)
        self.trained = {graph.inputs[i] for i in graph.carried.values()}
        self.reads = Counter(o for v in walk(graph) for o in v.op.inputs if not isinstance(o, Literal))
        self.groups: dict[int, Group] = {}
        self.states: dict[int, State] = {}
        self.wants: list[Want] = []
        self.unknown: list[Visit] = []
        self.visits: list[Visit] = []
        self.elementwise_only = private_state(graph)
        # Joins by the places that meet in them, and per join every place it already agrees on, so that a second
        # meeting of the same groups (the many products of one backward formula) follows the first instead of
        # deciding again.
        self.joins: dict[frozenset[Place], int] = {}
        self.agreed: dict[int, set[Place]] = {}

    # ---- groups ----
    def new_group(self, kind: str, root: int, limits: list[int], **rest: Any) -> Group:
        group = Group(len(self.groups), kind, root, limits, **rest)
        self.groups[group.id] = group
        return group

    def plain_group(
        self, kind: str, value: int, visit: Visit | None = None, whole: frozenset[int] = frozenset()
    ) -> Place:
        """A group whose classes are the dimensions of one value."""
        shape = self.graph.values[value].shape
        group = self.new_group(kind, value, [1 if d in whole else n for d, n in enumerate(shape)], leader=visit)
        return self.join(value, Place(group.id, tuple(range(len(shape)))))

    def join(self, value: int, place: Place) -> Place:
        self.states[value] = place
        self.groups[place.group].members.append(value)
        self.held.note(value, place)
        return place

    def canon(self, place: Place) -> Place:
        while (merged := self.groups[place.group].merged) is not None:
            group, classes = merged
            place = Place(group, tuple(-1 if c < 0 else classes[c] for c in place.dims))
        return place

    def unite(self, a: Place, b: Place) -> bool:
        """Make b's group part of a's, where their dimensions correspond one to one."""
        ga, gb = self.groups[a.group], self.groups[b.group]
        pairs = list(zip(b.dims, a.dims, strict=True))
        if sorted(b.dims) != list(range(len(gb.limits))) or any(c < 0 for c in a.dims):
            return False
        classes = tuple(dict(pairs)[c] for c in range(len(gb.limits)))
        if not self.held.unite(ga.id, gb.id, classes):
            return False
        for cb, ca in enumerate(classes):
            ga.limits[ca] = math.gcd(ga.limits[ca], gb.limits[cb])
        ga.members += gb.members
        ga.followers += gb.followers
        gb.merged = (ga.id, classes)
        return True

    def state(self, operand: Operand) -> State:
        if isinstance(operand, Literal):
            return FREE if operand.shape else SCALAR
        state = self.states[operand]
        return self.canon(state) if isinstance(state, Place) else state

    def want(self, source: Operand, consumer: int, slots: tuple[Slot, ...], count: int, **at: Any) -> None:
        """Note what `consumer` needs of `operand`; nothing where its group agrees by construction."""
        state = self.state(source)
        value = source
        if isinstance(state, Alias):
            by_source = {s: slots[d] for d, s in enumerate(state.dims) if s >= 0}
            value = state.source
            slots = tuple(by_source.get(s) for s in range(len(self.graph.shape_of(value))))
            state = self.state(value)
        if not isinstance(state, Place) or isinstance(value, Literal):
            return
        if state.group == consumer and all(
            (s is None and c < 0) or (isinstance(s, int) and s == c) for s, c in zip(slots, state.dims, strict=True)
        ):
            return
        visit = at.get("visit")
        at.setdefault("share", 1.0 if visit is None else visit.share)
        self.wants.append(Want(value, consumer, slots, count, **at))

    # ---- the walk ----
    def run(self) -> None:
        for v in (*self.graph.inputs, *self.graph.constants):
            value = self.graph.values[v]
            if not value.shape or value.dtype.startswith("key"):
                self.states[v] = SCALAR
            else:
                self.plain_group("input", v)
        self.region(self.graph.ops, 1, (), 1.0)
        for position, source in self.graph.carried.items():
            out, into = self.graph.outputs[position], self.state(self.graph.inputs[source])
            if isinstance(into, Place) and not isinstance(out, Literal):
                self.want(out, into.group, slots_of(into), 1, role="output", target=position)

    def region(self, ops: tuple[Op, ...], count: int, inside: tuple[Op, ...], share: float) -> None:
        for op in ops:
            self.visit(Visit(op, count, inside, share))

    def visit(self, visit: Visit) -> None:
        self.visits.append(visit)
        op = visit.op
        if has_control(op):
            group_control(self, visit)
            return
        rule = rule_for(self.graph, op)
        if op.primitive == "optimization_barrier":
            for o, r in zip(op.inputs, op.outputs, strict=True):
                self.follow_state(r, self.state(o), visit)
        elif rule.kind == "free":
            for r in op.outputs:
                self.states[r] = FREE if self.graph.values[r].shape else SCALAR
        elif self.is_scalar_op(op):
            for r in op.outputs:
                self.states[r] = SCALAR
        elif not self.follows(visit, rule):
            self.lead(visit, rule)

    def is_scalar_op(self, op: Op) -> bool:
        """Nothing with elements on either side (keys count as scalars)."""
        made = [self.graph.values[r] for r in op.outputs]
        small = all(self.state(o) is SCALAR for o in op.inputs)
        return small and all(not v.shape or v.dtype.startswith("key") for v in made)

    def follow_state(self, value: int, state: State, visit: Visit) -> None:
        if isinstance(state, Place):
            self.join(value, state)
            if not (self.groups[state.group].followers and self.groups[state.group].followers[-1] is visit):
                self.groups[state.group].followers.append(visit)
        else:
            self.states[value] = state

    def follows(self, visit: Visit, rule: Rule) -> bool:
        """Give the results a state without a decision of their own, if that is possible."""
        op = visit.op
        if op.primitive == "sharding_constraint":
            return False  # what the user annotates may be brought to that form here
        if rule.kind == "elementwise":
            return self.elementwise(visit)
        if len(op.outputs) != 1 or not op.inputs:
            return False
        state = self.state(op.inputs[0])
        if op.primitive in ("broadcast_in_dim", "transpose", "squeeze", "expand_dims", "reshape"):
            if not isinstance(state, (Place, Alias)):
                self.states[op.outputs[0]] = FREE
                return True
            return self.move(visit, rule, state)
        if rule.kind == "reduction":
            if state is FREE:
                self.states[op.outputs[0]] = FREE if self.graph.values[op.outputs[0]].shape else SCALAR
                return True
            return isinstance(state, Place) and self.small_reduction(visit, rule, state)
        return False

    def elementwise(self, visit: Visit) -> bool:
        op = visit.op
        shape = self.graph.values[op.outputs[0]].shape
        full = [o for o in op.inputs if self.graph.shape_of(o) == shape and shape]
        states = [self.state(o) for o in full]
        places = list(dict.fromkeys(s for s in states if isinstance(s, Place)))
        aliases = list(dict.fromkeys(s for s in states if isinstance(s, Alias)))
        stretched = [o for o in op.inputs if self.stretches(o, shape)]
        if stretched and any(self.state(o) is not FREE for o in stretched) and not places:
            return False
        if not places and len(aliases) <= 1:
            for r in op.outputs:
                self.states[r] = aliases[0] if aliases else (FREE if shape else SCALAR)
            return True
        place = self.common_place(places) if places else None
        if place is None or not all(self.held.allows(r, place) for r in op.outputs):
            return False
        for r in op.outputs:
            self.follow_state(r, place, visit)
        for i, o in enumerate(op.inputs):
            if self.graph.shape_of(o) == shape or o in stretched:
                sizes = zip(slots_of(place), self.graph.shape_of(o), shape, strict=True)
                slots = tuple(slot if a == b else None for slot, a, b in sizes)
                self.want(o, place.group, slots, visit.count, visit=visit, operand=i)
        return True

    def stretches(self, operand: Operand, shape: tuple[int, ...]) -> bool:
        """Whether an element-wise operation repeats this operand along dimensions of size 1."""
        own = self.graph.shape_of(operand)
        return len(own) == len(shape) and own != shape

    def common_place(self, places: list[Place]) -> Place | None:
        """One place for all: the same one, or that of optimizer state, which nothing but its own update reads."""
        if len(places) == 1:
            return places[0]
        again = self.met_before(places)
        if again is not None:
            return again
        groups = [(p, self.groups[p.group]) for p in places]
        owned = [p for p, g in groups if g.kind == "input" and g.root in self.elementwise_only]
        if not owned:
            return None
        first = owned[0]
        for other in owned[1:]:
            if other.group != first.group:
                self.unite(first, other)
        return self.canon(first)

    def met_before(self, places: list[Place]) -> Place | None:
        """The join where all these places have met already, if there is one."""
        found = self.joins.get(frozenset(places))
        if found is not None:
            return Place(found, tuple(range(len(self.groups[found].limits))))
        for p in sorted(places, key=lambda p: -p.group):
            if p.dims == tuple(range(len(p.dims))) and all(q == p or q in self.agreed.get(p.group, ()) for q in places):
                return p
        return None

    def note_join(self, group: Group, places: list[Place]) -> None:
        self.joins[frozenset(places)] = group.id
        agreed = set(places)
        for p in places:
            if p.dims == tuple(range(len(p.dims))):
                agreed |= self.agreed.get(p.group, set())
        self.agreed[group.id] = agreed

    def move(self, visit: Visit, rule: Rule, state: Place | Alias) -> bool:
        """Transpose, broadcast, squeeze, reshape: map the dimensions through the factors."""
        op = visit.op
        source, target = rule.operands[0], rule.results[0]
        major = {dim[0]: d for d, dim in enumerate(source) if dim}
        minor = {f for d, dim in enumerate(source) for f in dim[1:]}
        dims = []
        limits: dict[int, int] = {}
        for dim in target:
            origin = major.get(dim[0], -1) if dim else -1
            split = origin >= 0 and (len(dim) > 1 or len(source[origin]) > 1)
            if split and isinstance(state, Alias):
                return False
            if dim and dim[0] in minor and isinstance(state, Alias):
                return False
            dims.append(origin)
            # A dimension of the operand that becomes a minor part of the result must be whole.
            lost = [major[f] for f in dim[1:] if f in major]
            if isinstance(state, Alias) and lost:
                return False
            if isinstance(state, Place):
                limit = self.groups[state.group].limits
                if any(state.dims[d] >= 0 and self.useful(limit[state.dims[d]]) for d in lost):
                    return False
                if split and state.dims[origin] >= 0:
                    limits[state.dims[origin]] = rule.sizes[dim[0]]
        if isinstance(state, Alias):
            self.states[op.outputs[0]] = Alias(state.source, tuple(state.dims[d] if d >= 0 else -1 for d in dims))
            return True
        # A dimension of the operand that no dimension of the result follows must be whole.
        group = self.groups[state.group]
        gone = [c for d, c in enumerate(state.dims) if c >= 0 and d not in dims]
        if any(self.useful(group.limits[c]) for c in gone):
            return False
        grows = len(target) > sum(1 for d in dims if d >= 0) and op.primitive == "broadcast_in_dim"
        if grows:
            value = op.inputs[0]
            assert not isinstance(value, Literal)
            self.states[op.outputs[0]] = Alias(value, tuple(dims))
            return True
        for c, size in limits.items():
            if self.useful(group.limits[c]) != self.useful(math.gcd(group.limits[c], size)):
                return False
        place = Place(state.group, tuple(state.dims[d] if d >= 0 else -1 for d in dims))
        if not self.held.allows(op.outputs[0], place):
            return False
        for c, size in limits.items():
            group.limits[c] = math.gcd(group.limits[c], size)
        self.follow_state(op.outputs[0], place, visit)
        return True

    def useful(self, limit: int) -> tuple[int, ...]:
        return tuple(c for c in self.cuts if limit % c == 0)

    def small_reduction(self, visit: Visit, rule: Rule, state: Place) -> bool:
        """Reductions over trailing dimensions (statistics) and to a scalar follow; over leading ones (bias
        gradients) they lead."""
        op = visit.op
        rank = len(state.dims)
        whole = {*rule.reduced, *rule.fixed}
        kept = [d for d in range(rank) if rule.operands[0][d][0] not in whole]
        gone = [d for d in range(rank) if d not in kept]
        # Dropping dimensions of size 1 is a reshape in disguise.
        large = [d for d in gone if rule.sizes[rule.operands[0][d][0]] > 1]
        if kept and large and min(large) < max(kept):
            return False
        if rule.fixed and any(
            state.dims[d] >= 0 and self.useful(self.groups[state.group].limits[state.dims[d]]) for d in gone
        ):
            return False
        dims = tuple(state.dims[d] for d in kept)
        if kept and not self.held.allows(op.outputs[0], Place(state.group, dims)):
            return False
        combine = next(iter(rule.reduced.values()), "sum")
        classes = tuple(c for c in (state.dims[d] for d in gone) if c >= 0)
        if kept:
            self.follow_state(op.outputs[0], Place(state.group, dims), visit)
        else:
            self.states[op.outputs[0]] = SCALAR
            self.groups[state.group].followers.append(visit)
        if classes:
            self.groups[state.group].finishes.append(Finish(visit, op.outputs[0], dims, classes, combine))
        return True

    def lead(self, visit: Visit, rule: Rule) -> None:
        op = visit.op
        if rule.kind == "opaque":
            self.unknown.append(visit)
        cuttable = set(rule.cuttable())
        shapes = [self.graph.values[r].shape for r in op.outputs]
        factors = tuple(dict.fromkeys(dim[0] for dims in rule.results for dim in dims if dim and dim[0] in cuttable))
        group = self.new_group(
            "join" if rule.kind == "elementwise" else "op",
            op.outputs[0] if op.outputs else -1,
            [rule.sizes[f] for f in factors],
            leader=visit,
            rule=rule,
            factors=factors,
        )
        if group.kind == "join" and len(factors) == len(shapes[0]):
            met = [self.state(o) for o in op.inputs if self.graph.shape_of(o) == shapes[0]]
            self.note_join(group, list(dict.fromkeys(s for s in met if isinstance(s, Place))))
        for r, dims, shape in zip(op.outputs, rule.results, shapes, strict=True):
            if shape:
                self.join(
                    r,
                    Place(group.id, tuple(factors.index(dim[0]) if dim and dim[0] in cuttable else -1 for dim in dims)),
                )
            else:
                self.states[r] = SCALAR
        for i, (o, dims) in enumerate(zip(op.inputs, rule.operands, strict=True)):
            slots = tuple(dim[0] if dim and dim[0] in cuttable else None for dim in dims)
            self.want(o, group.id, slots, visit.count, visit=visit, operand=i)

    def finish(self) -> Grouping:
        states = {v: (self.canon(s) if isinstance(s, Place) else s) for v, s in self.states.items()}
        wants = []
        for w in self.wants:
            group = self.groups[w.consumer]
            slots = w.slots
            consumer = w.consumer
            while group.merged is not None:
                target, classes = group.merged
                slots = tuple(classes[s] if isinstance(s, int) else s for s in slots)
                consumer, group = target, self.groups[target]
            place = states[w.value]
            assert isinstance(place, Place)
            if place.group == consumer and tuple(None if c < 0 else c for c in place.dims) == slots:
                continue
            wants.append(replace(w, consumer=consumer, slots=slots))
        wants = merge_repeats(wants)
        live = {i: g for i, g in self.groups.items() if g.merged is None}
        mark_sums(self.graph, live, states)
        return Grouping(live, states, tuple(wants), tuple(self.unknown), tuple(self.visits))
