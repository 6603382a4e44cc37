"""The search on one mesh: which choice is best by the memory model, and which is leanest.

With one or two axes every strategy takes part. With more, the strategies of a contraction run into thousands, so each
pair of axes is first tied together (solved exactly as a mesh with one axis less), then one axis at a time is freed, all
groups deciding jointly where it goes, until nothing improves; the bound is then only that of perfectly divided
contractions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cost_model.compute import op_time_s
from cost_model.mesh import LogicalMesh
from passes.exposure import WAITED, Exposure
from passes.fold import Folding
from passes.groups import Group
from passes.ir import OPEN, Sharding
from passes.lifted import lifted, nearest
from passes.likeness import shares
from passes.pinning import PinError, pinned
from passes.price import Pricer
from passes.program import Program
from passes.question import Answer, Question, answer, least
from passes.solve import solve
from passes.strategies import (
    Strategy,
    enumerate_as,
    enumerate_moves,
    enumerate_strategies,
    enumerate_tied,
    same_choices,
)

# How far above the least peak of the memory model leanest layouts are looked for: right at it, nothing else counts.
_ABOVE_LEAST = (1.0, 1.02, 1.05, 1.1, 1.2, 1.4)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice (a strategy per group, in the order of the folding's) on one mesh, or None with the status why.

    `cost_s` is the linear price, `bound_s` is below that of every layout on the mesh. `answer` is what the question
    gave, with a choice per class; `folded` says that layers that are alike still have to decide alike.
    """

    question: Question
    answer: Answer
    choice: tuple[int, ...] | None
    cost_s: float
    bound_s: float
    status: str
    folded: bool


class MeshSearch:
    """One program on one mesh with what is pinned. Raises PinError where a pin allows nothing."""

    def __init__(self, folding: Folding, mesh: LogicalMesh, pins: Mapping[int, Sharding], seed: int = 0) -> None:
        self.folding, self.program = folding, folding.program
        self.mesh, self.pins, self.seed = mesh, pins, seed
        self.pricer = Pricer(self.program, mesh)
        self.groups = [self.program.grouping.groups[c[0]] for c in folding.classes]
        self._options: list[tuple[Strategy, ...]] | None = None

    def solve(
        self, limit_bytes: float, deadline: float, exposure: Exposure = WAITED, again: Candidate | None = None
    ) -> Candidate:
        """The best choice within the limit. `deadline` as of `time.monotonic`; `again` is what was found with another
        limit, from where the search goes on."""
        held = self._held() if len(self.mesh.axis_sizes) > 2 else None
        if len(self.mesh.axis_sizes) > 2 and held is None:
            return self._three_axes(limit_bytes, deadline, exposure)
        if again is not None:
            return self._asked(again.question, limit_bytes, deadline, again.answer.positions)
        return self._ask(self.options(held), limit_bytes, deadline, exposure)

    def options(self, held: dict[int, tuple[tuple[str, ...], ...]] | None = None) -> list[tuple[Strategy, ...]]:
        """Per class the strategies that pins allow."""
        if self._options is None:
            self._options = self._pinned(self.all_strategies() if held is None else self._as_held(held))
        return self._options

    # ---- everything pinned ----
    def _held(self) -> dict[int, tuple[tuple[str, ...], ...]] | None:
        """By group the axes of its classes, where pins give them for every operation; None where they do not."""
        said: dict[int, dict[int, tuple[str, ...]]] = {}
        for value, sharding in self.pins.items():
            place = self.program.grouping.place(value)
            for c, axes in zip(place.dims, sharding.dims, strict=True) if place is not None else ():
                if place is not None and c >= 0 and axes != OPEN:
                    said.setdefault(place.group, {})[c] = axes
        whole = {g.id: said.get(g.id, {}) for g in self.groups if len(said.get(g.id, {})) == len(g.limits)}
        if any(g.rule is not None and g.id not in whole for g in self.groups):
            return None
        return {g: tuple(axes for _, axes in sorted(by_class.items())) for g, by_class in whole.items()}

    def _as_held(self, held: Mapping[int, tuple[tuple[str, ...], ...]]) -> list[tuple[Strategy, ...]]:
        """The strategies of classes that are pinned altogether, and every strategy of the others."""

        def make(group: Group, shared: bool) -> tuple[Strategy, ...]:
            if group.id in held:
                return enumerate_as(group, self.mesh.sizes, shared, held[group.id])
            return enumerate_strategies(group, self.mesh.sizes, shared)

        return self._each([held.get(g.id) for g in self.groups], make)

    # ---- up to two axes ----
    def all_strategies(self) -> list[tuple[Strategy, ...]]:
        """Every class's strategies on the mesh. Several readers of one value may share a copy of it."""

        def every(group: Group, shared: bool) -> tuple[Strategy, ...]:
            return enumerate_strategies(group, self.mesh.sizes, shared)

        return self._each([() for _ in self.groups], every)

    def _each(
        self, more: Sequence[Hashable], make: Callable[[Group, bool], tuple[Strategy, ...]]
    ) -> list[tuple[Strategy, ...]]:
        """`make` of every class; classes with equal choices (and equal `more`) have one list."""
        known: dict[Hashable, tuple[Strategy, ...]] = {}
        out = []
        for k, group in enumerate(self.groups):
            shared = shares(self.program, group)
            key = (*same_choices(group), shared, more[k])
            if key not in known:
                known[key] = make(group, shared)
            out.append(known[key])
        return out

    def _pinned(self, options: Sequence[tuple[Strategy, ...]]) -> list[tuple[Strategy, ...]]:
        return pinned(self.folding, self.mesh, options, self.pins)

    def _ask(
        self, options: Sequence[tuple[Strategy, ...]], limit: float, deadline: float, exposure: Exposure
    ) -> Candidate:
        found = self._asked(Question(self.pricer, self.folding, options, exposure), limit, deadline)
        if found.choice is None and found.status == "infeasible" and found.folded:
            # Layers that must all be alike do not fit; layers that differ may.
            apart = self.folding.unfolded
            spread = [options[k] for k in self.folding.class_of.values()]
            question = Question(self.pricer, apart, spread, exposure)
            return self._asked(question, limit, deadline, found.answer.positions)
        return found

    def _asked(self, question: Question, limit: float, deadline: float, positions: Sequence[int] = ()) -> Candidate:
        found = answer(question, limit, deadline, self.seed, positions)
        if found.solution.status == "unknown":  # out of time before the first choice: a plan is worth waiting for
            found = answer(question, limit, max(deadline, time.monotonic() + 60.0), self.seed, found.positions)
        return _candidate(question, found)

    def refine(self, candidate: Candidate, limit: float, deadline: float) -> Candidate:
        """Let layers that are alike differ where that is cheaper, and bound what all layouts cost."""
        question, found, chosen = candidate.question, candidate.answer, candidate.answer.solution.choice
        assert chosen is not None and candidate.choice is not None
        bounds = [lifted(question, limit, prices) for prices in _prices(question, found, limit)]
        best = max(bounds, key=lambda one: one.bound_s)
        cost, choice = candidate.cost_s, candidate.choice
        near = nearest(question, best, chosen)
        apart_question = Question(self.pricer, self.folding.unfolded, near, question.exposure)
        apart = answer(apart_question, limit, deadline, self.seed, found.positions).solution
        if apart.choice is not None and apart.cost < cost:
            full = [question.options[k] for k in self.folding.class_of.values()]
            cost, choice = apart.cost, _in_full(full, near, apart.choice)
        bound = min(best.bound_s, cost)
        status = "optimal" if cost - bound <= 1e-9 * cost else "feasible"
        return replace(candidate, choice=choice, cost_s=cost, bound_s=bound, status=status, folded=False)

    def leanest(self, candidate: Candidate, time_limit_s: float) -> Iterator[Candidate]:
        """Cheap layouts near the least peak that the memory model knows, the leanest first."""
        question, positions = candidate.question, candidate.answer.positions
        # Without a limit any choice will do, and the first one comes soon: worth waiting for, whatever time is left.
        free = solve(question.problem((), None), time_limit_s=max(20.0, time_limit_s / 3), seed=self.seed)
        lean = least(question, max(5.0, time_limit_s / 3), self.seed, positions)
        if lean is None or free.choice is None:
            return
        bound = 0.0 if candidate.folded else free.bound
        peak = question.peak_bytes(lean)
        for factor in _ABOVE_LEAST:
            by = time.monotonic() + max(1.0, time_limit_s / 10)
            found = _candidate(question, answer(question, peak * factor, by, self.seed, positions))
            if found.choice is not None:
                yield replace(found, bound_s=bound, status="feasible", folded=False)
        cost = float(question.cost_s(lean))
        yield replace(
            candidate, choice=question.spread(lean), cost_s=cost, bound_s=bound, status="feasible", folded=False
        )

    # ---- three and more axes ----
    def _three_axes(self, limit: float, deadline: float, exposure: Exposure) -> Candidate:
        best: Candidate | None = None
        worst: Candidate | None = None
        nothing: list[Hashable] = [() for _ in self.groups]
        for pair in itertools.combinations(self.mesh.axis_names, 2):
            if best is not None and time.monotonic() > deadline:
                break

            def tied(group: Group, shared: bool, pair: tuple[str, str] = pair) -> tuple[Strategy, ...]:
                return enumerate_tied(group, self.mesh.sizes, pair, shared)

            options = self._each(nothing, tied)
            try:
                options = self._pinned(options)
            except PinError:
                options = self._pinned(self._with_pinned(options))
            by = time.monotonic() + max(1.0, (deadline - time.monotonic()) / 3)
            found = self._ask(options, limit, by, exposure)
            if found.choice is None:
                worst = found
                continue
            found = self._free_axes(found, limit, deadline)
            if best is None or found.cost_s < best.cost_s:
                best = found
        if best is None:
            assert worst is not None
            return replace(worst, bound_s=0.0)
        bound = perfect_division_s(self.program, self.mesh)
        return replace(best, bound_s=bound, status="feasible", folded=False)

    def _with_pinned(self, options: Sequence[tuple[Strategy, ...]]) -> list[tuple[Strategy, ...]]:
        """Every strategy for classes that hold a pin: the pinned one need not tie the axes."""
        places = [self.program.grouping.place(value) for value in self.pins]
        held = {self.folding.class_of[p.group] for p in places if p is not None}
        return [
            every if k in held else own
            for k, (own, every) in enumerate(zip(options, self.all_strategies(), strict=True))
        ]

    def _free_axes(self, found: Candidate, limit: float, deadline: float) -> Candidate:
        """Free one axis at a time, the others where they are, until a whole round brings nothing."""
        quiet = 0
        sizes = self.mesh.sizes
        for axis in itertools.cycle(sorted(self.mesh.axis_names, key=lambda a: -sizes[a])):
            chosen = found.answer.solution.choice
            if quiet == len(self.mesh.axis_names) or time.monotonic() > deadline or chosen is None:
                break
            if found.question.folding is not self.folding:
                break  # layers differ: nothing to free by class
            current = [options[s] for options, s in zip(found.question.options, chosen, strict=True)]
            known: dict[Hashable, tuple[Strategy, ...]] = {}
            options = []
            for group, now in zip(self.groups, current, strict=True):
                key = (*same_choices(group), shares(self.program, group), now)
                if key not in known:
                    known[key] = enumerate_moves(group, now, axis, sizes, shares(self.program, group))
                options.append(known[key])
            again = self._ask(self._pinned(options), limit, deadline, found.question.exposure)
            if again.choice is not None and again.cost_s < found.cost_s * (1 - 1e-9):
                found, quiet = again, 0
            else:
                quiet += 1
        return found


def _candidate(question: Question, found: Answer) -> Candidate:
    s = found.solution
    choice = None if s.choice is None else question.spread(s.choice)
    return Candidate(question, found, choice, s.cost, s.bound, s.status, not question.folding.trivial)


def _prices(question: Question, found: Answer, limit_bytes: float) -> list[dict[int, float]]:
    """Prices of memory (seconds per byte, by position) that are worth trying: around what the limit costs per byte that
    it saves, at the positions where the chosen layout has no room left."""
    saved = found.free_peak_bytes - limit_bytes
    if found.solution.choice is None or not found.positions or saved <= 0:
        return [{}]
    level = question.levels_at(found.positions, found.solution.choice)
    full = [p for p, size in zip(found.positions, level.tolist(), strict=True) if size >= 0.97 * limit_bytes]
    each = (found.solution.cost - found.free_cost_s) / saved / max(1, len(full))
    return [{}, *({p: factor * each for p in full} for factor in (0.5, 1.0, 2.0))]


def _in_full(
    full: Sequence[tuple[Strategy, ...]], near: Sequence[tuple[Strategy, ...]], choice: Sequence[int]
) -> tuple[int, ...]:
    """A choice among fewer strategies as one among all."""
    places: dict[int, dict[int, int]] = {}
    out = []
    for options, fewer, s in zip(full, near, choice, strict=True):
        if id(options) not in places:
            places[id(options)] = {id(strategy): i for i, strategy in enumerate(options)}
        out.append(places[id(options)][id(fewer[s])])
    return tuple(out)


def perfect_division_s(program: Program, mesh: LogicalMesh) -> float:
    """Seconds if every contraction were divided over all devices and nothing else took time: below every layout's
    price."""
    total = 0.0
    chip = mesh.topology.chip
    for group in program.grouping.groups.values():
        if group.leader is not None and group.rule is not None and group.rule.kind == "contraction":
            dtype = program.graph.value_of(group.leader.op.inputs[0]).dtype
            total += group.leader.count * float(
                op_time_s(chip, group.rule.flop / mesh.num_devices, 0.0, dtype, "contraction")
            )
    return total
