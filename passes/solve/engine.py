"""The order of work on one problem: bound, search, cut what the bound forbids, branch, and again on what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from .branch import Tree
from .core import Core, Infeasible
from .dual import Dual, ascend, cut, first_price, forced_costs, new_dual
from .effort import Effort, effort_for
from .exact import milp_entries, solve_milp
from .flat import Flat, flatten
from .messages import cost_of, usage_of
from .parts import Joint, Part, PartBest, split
from .presolve import Presolved, reduce_further
from .problem import Problem, evaluate
from .search import Walker, learn, new_walker, take_over, walk

# A proof in floating point is good to this share of the cost; integer problems are proved to the unit.
FLOAT_GAP = 1e-9
# Turns of the dual ascent between looks at the clock, and turns without progress after which it stops.
_SLICE = 8
_PATIENCE = 50
# Turns of the ascent that give every part of a core a first bound.
_GLANCE = 30
# Of the time that is left, what may go into solving without memory where it seems not to matter.
_RELAXED_SHARE = 0.3
# A search stops where its best forbids this share of the strategies.
_CUT_NOW = 0.75
# Moves between meetings of the walkers.
_BLOCK = 100


class Incumbents(Protocol):
    """Where an engine reports: the best choice so far, what it costs, and the bound."""

    cost: float
    bound: float

    @property
    def choice(self) -> object: ...

    def offer(self, choice: np.ndarray, stage: str) -> bool: ...

    def raise_bound(self, bound: float, stage: str) -> None: ...


@dataclass(slots=True)
class Best:
    """The best choice so far in original numbers, checked by `evaluate`, and the bound."""

    problem: Problem
    report: Callable[[float | None, float, str], None]
    choice: tuple[int, ...] | None = None
    cost: float = math.inf
    bound: float = -math.inf

    def offer(self, choice: np.ndarray, stage: str) -> bool:
        """Take `choice` [all nodes] if it is feasible and better."""
        full = tuple(int(s) for s in choice)
        found = evaluate(self.problem, full)
        if not found.feasible or found.cost >= self.cost:
            return False
        self.choice, self.cost = full, found.cost
        self.report(self.cost, self.bound, stage)
        return True

    def raise_bound(self, bound: float, stage: str) -> None:
        if bound > self.bound:
            news = bound - self.bound > 1e-4 * abs(bound)
            self.bound = bound
            if news:
                self.report(None if self.choice is None else self.cost, min(bound, self.cost), stage)


@dataclass(slots=True)
class Engine:
    """Works on `reduced` until proof or `deadline` (monotonic seconds); the outcome is in `best` and `proved`."""

    best: Incumbents
    deadline: float
    seed: int
    workers: int
    chain: list[Presolved] = field(default_factory=list)
    proved: bool = False
    presolve_s: float = 0.0
    check_s: float = 0.0
    relaxed: bool = False

    def run(self, reduced: Presolved, start: np.ndarray | None) -> None:
        """Raises `Infeasible` when it is certain that nothing feasible exists. `start`: a core choice to begin from."""
        self.chain.append(reduced)
        price: np.ndarray | None = None
        try:
            while True:
                core = self.chain[-1].core
                if not core.costs:
                    self._offer(core, np.zeros(0, dtype=np.int64), "presolve")
                    raise Infeasible
                parts = split(core)
                if len(parts) > 1 and self._apart(core, parts):
                    return
                level = _Level(self, core, flatten(core), start, price)
                smaller = level.work()
                if smaller is None:
                    return
                price = _carried(core, smaller.core, level.dual.price / level.f.scale)
                start = smaller.project(level.walkers[0].choice)
                self.chain.append(smaller)
        except Infeasible:
            # Cuts leave only what is better than the best: nothing left is the proof.
            if self.best.choice is None:
                raise
            self.proved = True
            self.best.bound = self.best.cost - self._tolerance(reduced.core)

    def _tolerance(self, core: Core) -> float:
        return 0.0 if core.integral else FLOAT_GAP * abs(self.best.cost)

    def ceiling(self, core: Core, f: Flat) -> float:
        """The largest scaled cost that would still be an improvement."""
        if self.best.cost == math.inf:
            return math.inf
        step = 1.0 if core.integral else FLOAT_GAP * abs(self.best.cost)
        return (self.best.cost - step - core.constant) * f.scale

    def _offer(self, core: Core, choice: np.ndarray, stage: str) -> bool:
        for step in reversed(self.chain):
            choice = step.restore(choice)
        return self.best.offer(choice, stage)

    def _apart(self, core: Core, parts: Sequence[Part]) -> bool:
        """Solve the parts of `core` one by one, the largest last with all the time that is left.

        True when that is the end of it; False if rounding kept the parts' choices from being one of the whole. Raises
        `Infeasible` when nothing in `core` is better than the best.
        """

        def bound(value: float, stage: str) -> None:
            cost = self.best.cost
            self.best.raise_bound(min(value, cost - (self._tolerance(core) if cost < math.inf else 0.0)), stage)

        joint = Joint(core, parts, lambda choice, stage: self._offer(core, choice, stage), bound)
        for best in joint.bests:  # a bound for each, and where it is easy a choice, so that a stop finds one of all
            f = flatten(best.core)
            dual = new_dual(f)
            ascend(f, dual, _GLANCE)
            best.raise_bound(_unscaled(best.core, f, dual.bound), "dual")
            if dual.over == 0:
                best.offer(dual.choice, "dual")
        sizes = [sum(c.size for c in part.core.costs) for part in parts]
        proved = 0
        for i, (part, best) in enumerate(zip(parts, joint.bests, strict=True)):
            now = time.monotonic()
            until = now + (self.deadline - now) * sizes[i] / sum(sizes[i:])
            share = self.presolve_s * sizes[i] / sum(sizes)
            if best.choice is None:
                best.cost = joint.cap(i, self.best.cost)
            engine = Engine(best, until, hash((self.seed, len(self.chain), i)), self.workers, presolve_s=share)
            alone = np.arange(part.nodes.size)
            engine.run(Presolved(part.core, (), alone, alone.size), None)
            proved += engine.proved
        if proved < len(parts):
            return True
        if joint.cost < self.best.cost - self._tolerance(core):
            return False
        raise Infeasible

    def late(self) -> bool:
        return time.monotonic() >= self.deadline


def _unscaled(core: Core, f: Flat, bound: float) -> float:
    """A bound in the core's own costs, its constant included."""
    value = bound / f.scale  # exact: a power of two
    return core.constant + (math.ceil(value) if core.integral and value > -math.inf else value)


def _carried(old: Core, new: Core, price: np.ndarray) -> np.ndarray:
    """Prices for the rows that are left: a row that went hands its price to the nearest."""
    result = np.zeros(new.room.size)
    if result.size:
        for t in np.flatnonzero(price):
            at = min(int(np.searchsorted(new.row_ids, old.row_ids[t])), result.size - 1)
            result[at] += price[t]
    return result


@dataclass(slots=True)
class _Level:
    """The work on one core: until proof, deadline, or a cut that makes a smaller core worth it."""

    engine: Engine
    core: Core
    f: Flat
    start: np.ndarray | None
    price: np.ndarray | None
    dual: Dual = field(init=False)
    walkers: list[Walker] = field(default_factory=list)
    tree: Tree | None = None
    exact_tried: bool = False
    rounds: int = 0
    elites: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dual = new_dual(self.f, None if self.price is None else self.price * self.f.scale)

    def work(self) -> Presolved | None:
        engine, f = self.engine, self.f
        effort = effort_for(f.cost.size)
        self._ascend(effort.turns)
        if f.room.size and not self.dual.price.any() and not engine.relaxed:
            self._without_memory()
        self.walkers = self._new_walkers()
        moves, branches = effort.moves, effort.branches
        while not engine.late():
            bound, forced = forced_costs(f, self.dual)
            self._bound(bound, "dual")
            self._search(moves, forced)
            smaller = self._cut(effort, bound, forced)
            if smaller is not None:
                return smaller
            if engine.late():
                break
            if branches and self._branch(branches):
                raise Infeasible
            if branches and self.tree is not None and self.tree.expanded > 300 and not self.exact_tried:
                self._exact(effort)
            self.dual.restart(0.2)
            self._ascend(effort.turns // 2)
            self._challenge(moves, effort.elites)
            moves, branches = moves * 2, branches * 2
        return None

    def _without_memory(self) -> None:
        """Where no row has a price memory may not matter: solve the core without it, which presolve reduces much
        further. The bound holds, and a choice that fits is the best there is (then raises `Infeasible`).
        """
        engine = self.engine
        engine.relaxed = True
        bare = replace(self.core, items=(), room=np.zeros(0), row_ids=np.zeros(0, dtype=np.int64))
        reduced = reduce_further(bare, bare.costs, [e.matrix for e in bare.edges])
        best = PartBest(bare, lambda stage: None, cost=engine.best.cost)
        now = time.monotonic()
        until = now + _RELAXED_SHARE * (engine.deadline - now)
        inner = Engine(best, until, engine.seed, 1, presolve_s=engine.presolve_s)
        inner.run(reduced, None)
        engine.best.raise_bound(min(best.bound, best.cost), "without memory")
        if best.choice is not None and (self.core.usage(best.choice) <= self.core.room).all():
            engine._offer(self.core, best.choice, "without memory")
            if inner.proved:
                raise Infeasible

    def _ceiling(self) -> float:
        return self.engine.ceiling(self.core, self.f)

    def _bound(self, scaled: float, stage: str) -> None:
        """Take a bound on what is left of this core; what cuts removed costs at least the best."""
        if scaled > -math.inf:
            value = _unscaled(self.core, self.f, scaled)
            cost = self.engine.best.cost
            tolerance = 0.0 if self.core.integral or cost == math.inf else FLOAT_GAP * abs(cost)
            self.engine.best.raise_bound(min(value, cost - tolerance), stage)

    def _ascend(self, rounds: int) -> None:
        """Raise the bound, looking at the clock between slices: at most half of what is left goes into one ascent."""
        begin = time.monotonic()
        until = begin + 0.5 * (self.engine.deadline - begin)
        while rounds > 0 and time.monotonic() < until:
            turns = min(rounds, _SLICE)
            if ascend(self.f, self.dual, turns, self._ceiling(), patience=_PATIENCE) < turns:
                break
            rounds -= turns
        if self.dual.over == 0:
            self._take(self.dual.choice, "dual")
        self._bound(self.dual.bound, "dual")
        if self.dual.bound > self._ceiling():
            raise Infeasible

    def _take(self, choice: np.ndarray, stage: str) -> None:
        """Offer a feasible core choice if it can be better; float costs are compared exactly in `offer`."""
        if cost_of(self.f, choice) <= self._ceiling():
            self.engine._offer(self.core, choice, stage)

    def _challenge(self, moves: int, elites: int) -> None:
        """New walkers from where the dual is now: better prices often lead past a choice that the old ones are stuck
        at. What either side and the bests of earlier rounds have in advance goes into one choice.
        """
        old = min(self.walkers, key=lambda w: w.key)
        self.rounds += 1
        self.start = None
        self.walkers = self._new_walkers()
        self._search(moves // 2)
        new = min(self.walkers, key=lambda w: w.key)
        old.price[:] = self.dual.price
        best, other = (old, new) if old.key <= new.key else (new, old)
        self.elites = [*self.elites, other.choice.copy()][-elites:]
        better = sum([learn(self.f, best, elite) for elite in reversed(self.elites)])
        for walker in self.walkers:
            take_over(walker, best)
        if better and best.status[1] == 0:
            self._take(best.choice, "relink")

    def _new_walkers(self) -> list[Walker]:
        begin = self.dual.choice
        unit = first_price(self.f)
        if self.start is not None:
            usage = np.zeros(self.f.room.size)
            usage_of(self.f, self.start, usage)
            over = float(np.maximum(usage - self.f.room, 0.0).sum())
            if (over, cost_of(self.f, self.start)) < (self.dual.over, self.dual.cost):
                begin = self.start
        return [
            new_walker(
                self.f, begin, self.dual.price, unit, hash((self.engine.seed, len(self.engine.chain), self.rounds, i))
            )
            for i in range(self.engine.workers)
        ]

    def _search(self, moves: int, forced: np.ndarray | None = None) -> None:
        """Walk, and offer what is better; checking a large choice takes long, so not after every block.

        Stops early when the best, beside the bounds `forced` [s], leaves so little that it is better cut first.
        """
        offered = self.walkers[0].key
        checked = time.monotonic()
        while moves > 0 and not self.engine.late():
            walk(self.f, self.walkers, min(_BLOCK, moves), self.engine.deadline)
            moves -= _BLOCK
            best = min(self.walkers, key=lambda w: w.key)
            now = time.monotonic()
            due = moves <= 0 or now >= self.engine.deadline or now - checked > 10 * self.engine.check_s
            if best.status[1] == 0 and best.key < offered and due:
                self._take(best.choice, "search")
                offered = best.key
                checked = time.monotonic()
                self.engine.check_s = checked - now
                if forced is not None and np.count_nonzero(forced > self._ceiling()) > _CUT_NOW * forced.size:
                    return

    def _cut(self, effort: Effort, bound: float, forced: np.ndarray) -> Presolved | None:
        ceiling = self._ceiling()
        if bound > ceiling:
            raise Infeasible
        if np.count_nonzero(forced > ceiling) < effort.cut_share * forced.size:
            return None
        left = np.count_nonzero(forced <= ceiling) / forced.size
        if time.monotonic() + 3 * self.engine.presolve_s * left > self.engine.deadline:
            return None  # presolving again might not end in time, and what is left is better spent on search
        return cut(self.core, self.f, forced, ceiling)

    def _branch(self, branches: int) -> bool:
        if self.tree is None:
            self.tree = Tree.at(self.f, self.dual)

        def found(choice: np.ndarray) -> None:
            self._take(choice, "branch")

        closed = self.tree.advance(self._ceiling, found, self.engine.deadline, branches)
        if not closed:
            self._bound(self.tree.bound, "branch")
        return closed

    def _exact(self, effort: Effort) -> None:
        """Let HiGHS look for a better choice; its bound is not taken, for it is not certified."""
        self.exact_tried = True
        if milp_entries(self.core) <= effort.milp_entries:
            left = self.engine.deadline - time.monotonic()
            start = self.walkers[0].choice
            result = solve_milp(self.core, left * 0.3, self.engine.seed % 2**31, start)
            if result.choice is not None:
                self.engine._offer(self.core, result.choice, "exact")


def run(
    problem: Problem,
    reduced: Presolved,
    best: Best,
    deadline: float,
    seed: int,
    workers: int,
    warm: Sequence[int] | None,
    presolve_s: float = 0.0,
) -> bool:
    """Work on the presolved problem; True if `best` is proved optimal. Raises `Infeasible` if that is proved."""
    engine = Engine(best, deadline, seed, max(1, workers), presolve_s=presolve_s)
    start = None if warm is None else reduced.project(warm)
    engine.run(reduced, start)
    return engine.proved
