"""The search on one mesh: which choice is best by the memory model, and which is leanest.

With one or two axes every strategy takes part. With more, the strategies of a contraction run into thousands, so each
pair of axes is first tied together (solved exactly as a mesh with one axis less), then one axis at a time is freed, all
groups deciding jointly where it goes, until nothing improves; the bound is then only that of perfectly divided
contractions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cost_model.compute import op_time_s
from cost_model.mesh import LogicalMesh
from passes.fold import fold, unfolded
from passes.groups import Group
from passes.ir import Sharding
from passes.lifted import lifted, nearest
from passes.occupancy import occupancy
from passes.pinning import PinError, pinned
from passes.price import Priced, Pricer
from passes.program import Program
from passes.question import Answer, Question, answer, least
from passes.solve import solve
from passes.strategies import (
    Strategy,
    all_strategies,
    enumerate_moves,
    enumerate_strategies,
    enumerate_tied,
    same_choices,
)

Options = Mapping[int, tuple[Strategy, ...]]

# How far above the least peak of the memory model leanest layouts are looked for: right at it, nothing else counts.
_ABOVE_LEAST = (1.0, 1.02, 1.05, 1.1, 1.2, 1.4)


# Programs of so many groups are not folded: every group decides for itself, and the answer is exact.
_SMALL = 250


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice (a strategy per group of `priced.order`) on one mesh, or None with the status why.

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

    @property
    def priced(self) -> Priced:
        return self.question.priced


class MeshSearch:
    """One program on one mesh with what is pinned. Raises PinError where a pin allows nothing."""

    def __init__(self, program: Program, mesh: LogicalMesh, pins: Mapping[int, Sharding], seed: int = 0) -> None:
        self.program, self.mesh, self.pins, self.seed = program, mesh, pins, seed
        self.pricer = Pricer(program, mesh)
        self.last: Candidate | None = None  # where a tighter limit begins

    def solve(self, limit_bytes: float, deadline: float) -> Candidate:
        """The best choice within the limit. `deadline` as of `time.monotonic`."""
        search = self._three_axes if len(self.mesh.axis_sizes) > 2 else self._all_axes
        self.last = search(limit_bytes, deadline)
        return self.last

    # ---- up to two axes ----
    def _all_axes(self, limit: float, deadline: float) -> Candidate:
        if self.last is not None:
            question = self.last.question
            question.priced = replace(question.priced, memory_limit=limit)
            return self._asked(question, limit, deadline, self.last.answer.positions)
        options = pinned(self.program, self.mesh, all_strategies(self.program, self.mesh), self.pins)
        return self._ask(options, limit, deadline)

    def _ask(self, options: Options, limit: float, deadline: float) -> Candidate:
        priced = self.pricer.price(options, limit)
        occupied = occupancy(priced)
        folding = fold(priced, occupied) if len(options) > _SMALL else unfolded(priced)
        found = self._asked(Question(priced, occupied, folding), limit, deadline)
        if found.choice is None and found.status == "infeasible" and not folding.trivial:
            # Layers that must all be alike do not fit; layers that differ may.
            whole = Question(priced, occupied, unfolded(priced))
            found = self._asked(whole, limit, deadline, found.answer.positions)
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
        near = self.pricer.price(nearest(question, best, chosen), limit)
        apart = Question(near, occupancy(near), unfolded(near))
        again = answer(apart, limit, deadline, self.seed, found.positions).solution
        if again.choice is not None and again.cost < cost:
            cost, choice = again.cost, _in_full(question.priced, near, again.choice)
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
    def _three_axes(self, limit: float, deadline: float) -> Candidate:
        groups = self.program.grouping.groups
        shares = {g: any(self.program.readers.get(v, 0) > 1 for v in group.members) for g, group in groups.items()}
        best: Candidate | None = None
        worst: Candidate | None = None
        for tied in itertools.combinations(self.mesh.axis_names, 2):
            if best is not None and time.monotonic() > deadline:
                break
            options = self._alike(
                {g: (same_choices(group), shares[g]) for g, group in groups.items()},
                lambda g, tied=tied: enumerate_tied(groups[g], self.mesh.sizes, tied, shares[g]),
            )
            try:
                options = pinned(self.program, self.mesh, options, self.pins)
            except PinError:
                options = pinned(self.program, self.mesh, self._with_pinned(options, shares), self.pins)
            found = self._ask(options, limit, time.monotonic() + max(1.0, (deadline - time.monotonic()) / 3))
            if found.choice is None:
                worst = found
                continue
            found = self._free_axes(found, shares, limit, deadline)
            if best is None or found.cost_s < best.cost_s:
                best = found
        if best is None:
            assert worst is not None
            return replace(worst, bound_s=0.0)
        bound = perfect_division_s(self.program, self.mesh)
        return replace(best, bound_s=bound, status="feasible", folded=False)

    def _alike(self, keys: Mapping[int, object], make: object) -> dict[int, tuple[Strategy, ...]]:
        """`make(group)` of every group; equal keys share one list."""
        assert callable(make)
        known: dict[object, tuple[Strategy, ...]] = {}
        out = {}
        for g, key in keys.items():
            if key not in known:
                known[key] = make(g)
            out[g] = known[key]
        return out

    def _with_pinned(self, options: Options, shares: Mapping[int, bool]) -> Options:
        """Every strategy for groups that hold a pin: the pinned one need not tie the axes."""
        out = dict(options)
        for value in self.pins:
            place = self.program.grouping.place(value)
            if place is not None:
                group: Group = self.program.grouping.groups[place.group]
                out[place.group] = enumerate_strategies(group, self.mesh.sizes, shares[place.group])
        return out

    def _free_axes(self, found: Candidate, shares: Mapping[int, bool], limit: float, deadline: float) -> Candidate:
        """Free one axis at a time, the others where they are, until a whole round brings nothing."""
        quiet = 0
        mesh, groups = self.mesh, self.program.grouping.groups
        for axis in itertools.cycle(sorted(mesh.axis_names, key=lambda a: -mesh.sizes[a])):
            if quiet == len(mesh.axis_names) or time.monotonic() > deadline:
                break
            assert found.choice is not None
            current = {g: found.priced.strategies[g][found.choice[n]] for n, g in enumerate(found.priced.order)}
            options = self._alike(
                {g: (same_choices(group), shares[g], current[g]) for g, group in groups.items()},
                lambda g, axis=axis, now=current: enumerate_moves(groups[g], now[g], axis, mesh.sizes, shares[g]),
            )
            again = self._ask(pinned(self.program, mesh, options, self.pins), limit, deadline)
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


def _in_full(full: Priced, near: Priced, choice: Sequence[int]) -> tuple[int, ...]:
    """A choice among fewer strategies as one among all."""
    places: dict[int, dict[int, int]] = {}
    out = []
    for g, s in zip(near.order, choice, strict=True):
        options = full.strategies[g]
        if id(options) not in places:
            places[id(options)] = {id(strategy): i for i, strategy in enumerate(options)}
        out.append(places[id(options)][id(near.strategies[g][s])])
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
