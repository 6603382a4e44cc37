"""The search within one program: meshes x strategies x memory, with a lower bound.

One- and two-axis meshes are solved over every strategy. With three axes the strategies of a contraction run into
thousands, so each pair of axes is first tied together (solved exactly as a two-axis mesh), then one axis at a time
is freed, all groups deciding jointly where it goes, until nothing improves; the bound is then only that of perfectly
divided contractions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cost_model.compute import op_time_s
from cost_model.mesh import LogicalMesh
from cost_model.simulate import Timeline
from passes.footprint import Footprint, footprint
from passes.grouping import group_values
from passes.groups import Group, Place
from passes.ir import OPEN, Graph, Sharding
from passes.meshes import possible_cuts
from passes.price import Priced, Pricer, price
from passes.program import Program, analyse
from passes.realize import Realized, realize
from passes.solve import Solution, evaluate, solve, warm_up
from passes.strategies import Strategy, all_strategies, enumerate_moves, enumerate_strategies, enumerate_tied
from passes.timeline import simulate_plan


class LayoutError(ValueError):
    """Base of what the search refuses."""


class PinError(LayoutError):
    """No strategy satisfies a pin. `value`, `shape`, `sharding`, `mesh` say which; `decided` is False where the value
    follows from others in every layout (a constant, a repeated array, a random key), `against` another pinned value
    that must be cut with it and cannot be."""

    def __init__(
        self, value: int, shape: tuple[int, ...], sharding: Sharding, mesh: LogicalMesh, decided: bool = True,
        against: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(f"value {value} {shape} cannot be cut as {sharding} on {mesh.sizes}")
        self.value, self.shape, self.sharding, self.mesh = value, shape, sharding, mesh
        self.decided, self.against = decided, against


class MemoryError_(LayoutError):
    """Nothing fits. `needed_bytes` is the least peak found, `limit_bytes` what there is, on `mesh`."""

    def __init__(self, needed_bytes: int, limit_bytes: int, mesh: LogicalMesh, least: Footprint) -> None:
        super().__init__(f"needs {needed_bytes} bytes per device, {limit_bytes} available on {mesh.sizes}")
        self.needed_bytes, self.limit_bytes, self.mesh, self.least = needed_bytes, limit_bytes, mesh, least


class TimeError(LayoutError):
    """The time was over before any layout was found."""


@dataclass(frozen=True)
class Found:
    """The best layout on one mesh. `cost_s` is the linear price that was minimised, `bound_s` is below every
    layout's price."""

    priced: Priced
    choice: tuple[int, ...]
    realized: Realized
    timeline: Timeline
    footprint: Footprint
    cost_s: float
    bound_s: float
    status: str
    search_s: float

    @property
    def mesh(self) -> LogicalMesh:
        return self.priced.mesh

    @property
    def gap(self) -> float:
        """Share of the price that may be improvable; 0 when proven best (floating point proves to about 1e-9)."""
        gap = max(0.0, (self.cost_s - self.bound_s) / self.cost_s) if self.cost_s else 0.0
        return 0.0 if self.status == "optimal" and gap < 1e-8 else gap


def search_layout(
    graph: Graph,
    meshes: Sequence[LogicalMesh],
    memory_limit_bytes: int,
    pins: Mapping[int, Sharding] | None = None,
    time_limit_s: float = 60.0,
    seed: int = 0,
) -> tuple[Found, tuple[Found, ...]]:
    """(the best layout over all meshes, the best of each mesh that was solved).

    `pins` fix the sharding of values by id (`OPEN` dimensions may be anything). Raises PinError when no mesh allows a
    pin, MemoryError_ when nothing fits.
    """
    warm_up()  # before the clock starts
    found: list[Found] = []
    failures: list[LayoutError] = []
    deadline = time.monotonic() + time_limit_s
    for i, mesh in enumerate(meshes):
        left = max(1.0, (deadline - time.monotonic()) / (len(meshes) - i))
        try:
            found.append(search_on_mesh(graph, mesh, memory_limit_bytes, pins or {}, left, seed))
        except LayoutError as error:
            failures.append(error)
    if not found:
        memory = [e for e in failures if isinstance(e, MemoryError_)]
        raise min(memory, key=lambda e: e.needed_bytes) if memory else failures[0]
    best = min(found, key=lambda f: (f.cost_s, len(f.mesh.axis_sizes)))
    return best, tuple(found)


def search_on_mesh(
    graph: Graph,
    mesh: LogicalMesh,
    memory_limit_bytes: int,
    pins: Mapping[int, Sharding],
    time_limit_s: float,
    seed: int = 0,
) -> Found:
    """The best layout on one mesh.

    The solver's memory is a model: what it counts may be a little more or less than the footprint of the layout as it
    is lowered. Where the footprint does not fit, the limit is lowered by what is missing and the problem solved again;
    where nothing seems to fit, the leanest layouts are tried before it is refused.
    """
    start = time.monotonic()
    program = analyse(graph, group_values(graph, possible_cuts(mesh.sizes), _cut_in_front(pins)))
    limit = float(memory_limit_bytes)
    solved = _three_axes if len(mesh.axis_sizes) > 2 else _all_axes
    for _ in range(4):
        left = max(1.0, time_limit_s - (time.monotonic() - start))
        priced, solution, bound = solved(program, mesh, limit, pins, left, seed)
        if solution.status == "unknown":  # out of time before the first choice: a plan is worth waiting for
            priced, solution, bound = solved(program, mesh, limit, pins, max(left, 60.0), seed)
        if solution.choice is None:
            break
        found = _found(priced, solution, bound, start)
        if found.footprint.peak_bytes <= memory_limit_bytes:
            return found
        limit -= max(found.footprint.peak_bytes - memory_limit_bytes, memory_limit_bytes * 0.01)
    leanest = _leanest(priced, solution, max(1.0, time_limit_s - (time.monotonic() - start)), seed, start)
    if leanest.footprint.peak_bytes <= memory_limit_bytes:
        return leanest
    raise MemoryError_(leanest.footprint.peak_bytes, memory_limit_bytes, mesh, leanest.footprint)


def _found(priced: Priced, solution: Solution, bound: float, start: float) -> Found:
    assert solution.choice is not None
    realized = realize(priced, solution.choice)
    timeline, used = simulate_plan(priced, realized), footprint(priced, realized)
    seconds = time.monotonic() - start
    return Found(priced, solution.choice, realized, timeline, used, solution.cost, bound, solution.status, seconds)


# How far above the least peak of the memory model leanest layouts are looked for: right at it, nothing else counts.
_ABOVE_LEAST = (1.0, 1.02, 1.05, 1.1, 1.2, 1.4)
# Where the least peak is not known in time: shares of the peak of the cheapest layout.
_BELOW_FREE = (1.0, 0.8, 0.6, 0.45, 0.3)


def _leanest(priced: Priced, solution: Solution, time_limit_s: float, seed: int, start: float) -> Found:
    """The layout of the smallest footprint among the cheapest ones near the least peak that the model knows."""
    problem = priced.problem
    least = solution.least_over
    if least is None:
        # A limit that nothing can meet makes the solver say what the least is.
        least = solve(replace(problem, memory_limit=1.0), time_limit_s=time_limit_s / 3, seed=seed).least_over
    # Without a limit any choice will do, and the first one comes soon: worth waiting for, however little time is left.
    free = solve(replace(problem, memory_limit=None), time_limit_s=max(20.0, time_limit_s / 3), seed=seed)
    if free.choice is None:
        raise TimeError(f"no layout was found on {priced.mesh.sizes} in the time that was left")
    factors = _ABOVE_LEAST if least is not None else _BELOW_FREE
    least = least if least is not None else free.choice
    peak = evaluate(problem, least).peak_bytes
    best: Found | None = None
    for factor in factors:
        limited = replace(problem, memory_limit=peak * factor)
        lean = solve(limited, time_limit_s=max(1.0, time_limit_s / 10), seed=seed, warm_start=least)
        if lean.choice is None:
            continue
        found = _found(priced, lean, free.bound, start)
        if best is None or found.footprint.peak_bytes < best.footprint.peak_bytes:
            best = found
    if best is None:
        return _found(priced, replace(solution, choice=least, cost=evaluate(problem, least).cost), free.bound, start)
    return replace(best, status="feasible")


def _all_axes(
    program: Program, mesh: LogicalMesh, limit: float, pins: Mapping[int, Sharding], time_limit_s: float, seed: int
) -> tuple[Priced, Solution, float]:
    strategies = pinned(program, mesh, all_strategies(program, mesh), pins)
    priced = price(program, mesh, strategies, limit)
    solution = solve(priced.problem, time_limit_s=time_limit_s, seed=seed)
    return priced, solution, solution.bound


def _cut_in_front(pins: Mapping[int, Sharding]) -> tuple[int, ...]:
    """Values whose first dimension, along which a loop may run, must be cut."""
    return tuple(v for v, s in pins.items() if s.dims and s.dims[0])


def pinned(
    program: Program, mesh: LogicalMesh, strategies: Mapping[int, tuple[Strategy, ...]], pins: Mapping[int, Sharding]
) -> dict[int, tuple[Strategy, ...]]:
    """Only the strategies under which pinned values have their sharding. Raises PinError when a group has none left."""
    out = dict(strategies)
    graph = program.graph
    before: dict[int, int] = {}  # the last pinned value of a group
    for value, sharding in pins.items():
        place = program.grouping.place(value)
        if place is None:
            if set(sharding.axes) - set(OPEN):
                raise PinError(value, graph.values[value].shape, sharding, mesh, decided=False)
            continue
        left = tuple(s for s in out[place.group] if _agrees(sharding, s, place))
        if not left:
            alone = any(_agrees(sharding, s, place) for s in strategies[place.group])
            raise PinError(
                value, graph.values[value].shape, sharding, mesh, against=before.get(place.group) if alone else None
            )
        out[place.group] = left
        before[place.group] = value
    return out


def _agrees(pin: Sharding, strategy: Strategy, place: Place) -> bool:
    axes = (strategy.classes[c] if c >= 0 else () for c in place.dims)
    return all(want in (OPEN, on) for want, on in zip(pin.dims, axes, strict=True))


# ---- three axes ----
def _three_axes(
    program: Program, mesh: LogicalMesh, limit: float, pins: Mapping[int, Sharding], time_limit_s: float, seed: int
) -> tuple[Priced, Solution, float]:
    deadline = time.monotonic() + time_limit_s
    shares = {g: _shares(program, group) for g, group in program.grouping.groups.items()}
    pricer = Pricer(program, mesh)
    best: tuple[Priced, Solution] | None = None
    worst: tuple[Priced, Solution] | None = None
    for tied in itertools.combinations(mesh.axis_names, 2):
        if best is not None and time.monotonic() > deadline:
            break
        options = {
            g: enumerate_tied(group, mesh.sizes, tied, shares[g]) for g, group in program.grouping.groups.items()
        }
        try:
            options = pinned(program, mesh, options, pins)
        except PinError:
            options = pinned(program, mesh, _with_pinned(program, mesh, options, pins), pins)
        priced = pricer.price(options, limit)
        solution = solve(priced.problem, time_limit_s=max(1.0, (deadline - time.monotonic()) / 3), seed=seed)
        if solution.choice is None:
            worst = (priced, solution)
            continue
        priced, solution = _free_axes(pricer, shares, priced, solution, pins, limit, deadline, seed)
        if best is None or solution.cost < best[1].cost:
            best = (priced, solution)
    if best is None:
        assert worst is not None
        return (*worst, 0.0)
    return (*best, _perfect_division(program, mesh))


def _shares(program: Program, group: Group) -> bool:
    return any(program.readers.get(v, 0) > 1 for v in group.members)


def _with_pinned(
    program: Program, mesh: LogicalMesh, options: Mapping[int, tuple[Strategy, ...]], pins: Mapping[int, Sharding]
) -> dict[int, tuple[Strategy, ...]]:
    """Every strategy for groups that hold a pin: the pinned one need not tie the axes."""
    out = dict(options)
    for value in pins:
        place = program.grouping.place(value)
        if place is not None:
            group = program.grouping.groups[place.group]
            out[place.group] = enumerate_strategies(group, mesh.sizes, _shares(program, group))
    return out


def _free_axes(
    pricer: Pricer, shares: Mapping[int, bool], priced: Priced, solution: Solution, pins: Mapping[int, Sharding],
    limit: float, deadline: float, seed: int,
) -> tuple[Priced, Solution]:  # fmt: skip
    """Free one axis at a time, the others where they are, until a whole round brings nothing."""
    quiet = 0
    program, mesh, groups = pricer.program, pricer.mesh, pricer.grouping.groups
    for axis in itertools.cycle(sorted(mesh.axis_names, key=lambda a: -mesh.sizes[a])):
        if quiet == len(mesh.axis_names) or time.monotonic() > deadline:
            break
        assert solution.choice is not None
        current = {g: priced.strategies[g][solution.choice[n]] for n, g in enumerate(priced.order)}
        options = {g: enumerate_moves(groups[g], s, axis, mesh.sizes, shares[g]) for g, s in current.items()}
        again = pricer.price(pinned(program, mesh, options, pins), limit)
        better = solve(again.problem, time_limit_s=max(1.0, deadline - time.monotonic()), seed=seed)
        if better.choice is not None and better.cost < solution.cost * (1 - 1e-9):
            priced, solution, quiet = again, better, 0
        else:
            quiet += 1
    return priced, solution


def _perfect_division(program: Program, mesh: LogicalMesh) -> float:
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
