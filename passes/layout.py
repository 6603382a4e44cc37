"""The search within one program: meshes x strategies x memory, with a lower bound.

The program is grouped once for all meshes. Every mesh is solved by the memory model; only layouts that may be the best
are then spelled out and measured as they will be lowered.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cost_model.mesh import LogicalMesh
from cost_model.simulate import Timeline
from passes.exposure import HOPED, WAITED, Exposure, between
from passes.fold import fold
from passes.footprint import Footprint, footprint
from passes.grouping import group_values
from passes.ir import Graph, Sharding
from passes.mesh_search import Candidate, MeshSearch
from passes.meshes import possible_cuts
from passes.pinning import LayoutError, PinError, fixed_in_front
from passes.price import Priced
from passes.program import Program, analyse
from passes.question import Question
from passes.realize import Realized, realize
from passes.solve import warm_up
from passes.timeline import exposure_of, simulate_plan


class MemoryError_(LayoutError):
    """Nothing fits. `needed_bytes` is the least peak found, `limit_bytes` what there is, on `mesh`."""

    def __init__(self, needed_bytes: int, limit_bytes: int, mesh: LogicalMesh, least: Footprint) -> None:
        super().__init__(f"needs {needed_bytes} bytes per device, {limit_bytes} available on {mesh.sizes}")
        self.needed_bytes, self.limit_bytes, self.mesh, self.least = needed_bytes, limit_bytes, mesh, least


class TimeError(LayoutError):
    """The time was over before any layout was found."""


@dataclass(frozen=True)
class Found:
    """The best layout on one mesh. `cost_s` is the linear price that was minimised, in which communication counts with
    the shares that are waited for (`priced.exposure`); `bound_s` is below every layout's such price."""

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


@dataclass(frozen=True, slots=True)
class Looked:
    """What a mesh was found to take at best: simulated seconds per step, or, where it was never spelled out, the price
    at which what can hide behind computing is hidden."""

    mesh: LogicalMesh
    cost_s: float
    status: str
    search_s: float


# How often the limit of the memory model is lowered because the layout as lowered needs more than the model counts.
_MOST_TIGHTER = 4
# Layouts that are spelled out and simulated, the most promising first, and rounds with the shares of the best.
_MOST_SPELLED_OUT = 16
_ROUNDS = 3
# What a folded layout may become cheaper by when its layers may differ: more was not seen.
_MAY_GAIN = 0.99


def search_layout(
    graph: Graph,
    meshes: Sequence[LogicalMesh],
    memory_limit_bytes: int,
    pins: Mapping[int, Sharding] | None = None,
    time_limit_s: float = 60.0,
    seed: int = 0,
    apart: bool = False,
) -> tuple[Found, tuple[Looked, ...]]:
    """(the best layout over all meshes, what each mesh costs).

    `pins` fix the sharding of values by id (`OPEN` dimensions may be anything); values that are always cut alike are
    moved where their pins differ if they may be `apart`, and refused if not. Raises PinError when no mesh allows a
    pin, MemoryError_ when nothing fits, TimeError when time was over before anything was found.

    The solver's memory is a model: what it counts may be a little more or less than the footprint of the layout as it
    is lowered. Where the footprint does not fit, the limit is lowered by what is missing and the problem solved again;
    where nothing seems to fit, the leanest layouts are tried before it is refused.
    """
    warm_up()  # before the clock starts
    search = _Search(graph, meshes, memory_limit_bytes, pins or {}, time.monotonic() + time_limit_s, seed, apart)
    return search.run()


def search_on_mesh(
    graph: Graph,
    mesh: LogicalMesh,
    memory_limit_bytes: int,
    pins: Mapping[int, Sharding],
    time_limit_s: float,
    seed: int = 0,
) -> Found:
    """The best layout on one mesh; raises as `search_layout`."""
    return search_layout(graph, (mesh,), memory_limit_bytes, pins, time_limit_s, seed)[0]


def common_program(
    graph: Graph, meshes: Sequence[LogicalMesh], pins: Mapping[int, Sharding], apart: bool = False
) -> Program:
    """Groups and facts that hold on every one of these meshes."""
    cuts = sorted({c for mesh in meshes for c in possible_cuts(mesh.sizes)})
    return analyse(graph, group_values(graph, cuts, fixed_in_front(pins), pins if apart else {}))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A candidate in the queue. `tried` is how often its memory limit has been lowered, to `limit_bytes`."""

    candidate: Candidate
    mesh: int
    limit_bytes: float
    tried: int = 0


class _Search:
    """All meshes at once. Where machines overlap communication with computing, each is solved as if what can hide did,
    and as if nothing did. What costs least by the first price is spelled out and simulated; the shares of communication
    that the best of them really waits for price further rounds, until nothing improves."""

    def __init__(
        self, graph: Graph, meshes: Sequence[LogicalMesh], limit_bytes: int, pins: Mapping[int, Sharding],
        deadline: float, seed: int, apart: bool,
    ) -> None:  # fmt: skip
        self.limit_bytes, self.deadline = limit_bytes, deadline
        program = common_program(graph, meshes, pins, apart)
        folding = fold(program, meshes[0].topology.chip.platform, pins)
        self.searches = [MeshSearch(folding, mesh, pins, seed) for mesh in meshes]
        self.overlaps = meshes[0].topology.chip.overlaps_collectives
        self.spent_s = [0.0] * len(meshes)
        self.looked: dict[int, Looked] = {}
        self.failures: list[LayoutError] = []
        self.queue: list[tuple[float, int, int, int, _Entry]] = []
        self.hoped: dict[int, Question] = {}  # per mesh, what prices all layouts alike in the queue
        self.entered = 0

    def run(self) -> tuple[Found, tuple[Looked, ...]]:
        count = len(self.searches)
        for i in range(count):
            by = time.monotonic() + max(1.0, (self.deadline - time.monotonic()) / (count - i))
            for exposure in (HOPED, WAITED) if self.overlaps else (WAITED,):
                self.enter(i, by, exposure)
        best: tuple[Found, _Entry] | None = None
        spelled = 0
        while self.queue and spelled < _MOST_SPELLED_OUT:
            price, _, _, _, entry = heapq.heappop(self.queue)
            if best is not None and (price >= best[0].timeline.step_s or not self.overlaps):
                break
            fits = self.fitting(entry)
            if fits is None:
                continue
            spelled += 1
            self.look(*fits)
            if best is None or fits[0].timeline.step_s < best[0].timeline.step_s * (1 - 1e-9):
                best = fits
        if best is None:
            memory = [e for e in self.failures if isinstance(e, MemoryError_)]
            raise min(memory, key=lambda e: e.needed_bytes) if memory else self.failures[0]
        found, entry = self.settled(*best) if self.overlaps else best
        if entry.candidate.folded:
            found = self.refined(found, entry)
        self.look(found, entry)
        return found, tuple(self.looked[k] for k in sorted(self.looked))

    def look(self, found: Found, entry: _Entry) -> None:
        seconds = self.spent_s[entry.mesh]
        self.looked[entry.mesh] = Looked(found.mesh, found.timeline.step_s, found.status, seconds)

    def settled(self, best: Found, entry: _Entry) -> tuple[Found, _Entry]:
        """Priced with the shares that its own simulation shows, until what is found is no faster."""
        done = [best.priced.exposure]
        for _ in range(_ROUNDS):
            _, shares = exposure_of(best.priced, best.realized, done[-1])
            exposure = shares if shares not in done else between(shares, HOPED)
            if exposure in done or time.monotonic() > self.deadline:
                break
            done.append(exposure)
            by = max(self.deadline, time.monotonic() + 1.0)
            again = self.solved(entry.mesh, self.limit_bytes, by, exposure)
            fits = None if again is None or again.candidate.choice is None else self.fitting(again)
            if fits is None:
                break
            faster = fits[0].timeline.step_s < best.timeline.step_s * (1 - 1e-6)
            if faster or fits[0].choice == best.choice:
                best, entry = fits  # or the same layout, with a price and a bound by its own shares
        return best, entry

    def refined(self, found: Found, entry: _Entry) -> Found:
        """Alike layers may differ from here on; kept where that fits and is no slower. The bound holds in any case."""
        start, search = time.monotonic(), self.searches[entry.mesh]
        candidate = search.refine(entry.candidate, entry.limit_bytes, max(self.deadline, start + 5.0))
        self.spent_s[entry.mesh] += time.monotonic() - start
        if candidate.choice != entry.candidate.choice:
            apart = self.spelled_out(entry.mesh, replace(entry, candidate=candidate))
            slower = apart.timeline.step_s > found.timeline.step_s * (1 + 1e-9) if self.overlaps else False
            if apart.footprint.peak_bytes <= self.limit_bytes and not slower:
                return apart
        return replace(found, bound_s=min(candidate.bound_s, found.cost_s), status="feasible")

    def solved(
        self, i: int, limit: float, deadline: float, exposure: Exposure, again: _Entry | None = None
    ) -> _Entry | None:
        """What is best on mesh i; None where a pin allows nothing."""
        start = time.monotonic()
        try:
            before = None if again is None else again.candidate
            candidate = self.searches[i].solve(limit, deadline, exposure, before)
        except PinError as error:
            self.failures.append(error)
            return None
        finally:
            self.spent_s[i] += time.monotonic() - start
        return _Entry(candidate, i, limit, 0 if again is None else again.tried + 1)

    def enter(self, i: int, deadline: float, exposure: Exposure) -> None:
        """Solve on mesh i and put what was found in the queue."""
        entry = self.solved(i, self.limit_bytes, deadline, exposure)
        if entry is not None and entry.candidate.choice is None:
            self.enter_leanest(entry)
        elif entry is not None:
            self.put(entry)

    def put(self, entry: _Entry) -> None:
        mesh, candidate = self.searches[entry.mesh].mesh, entry.candidate
        price, hoped = candidate.cost_s, self.hoped.get(entry.mesh)
        if candidate.question.exposure == HOPED:
            self.hoped[entry.mesh] = candidate.question
        elif hoped is not None and hoped.options == candidate.question.options:
            price = hoped.cost_s(candidate.answer.solution.choice or ())
        before = self.looked.get(entry.mesh)
        if before is None or price < before.cost_s:
            self.looked[entry.mesh] = Looked(mesh, price, candidate.status, self.spent_s[entry.mesh])
        self.entered += 1
        # What is folded may still become cheaper: it is looked at before what costs about the same.
        price *= _MAY_GAIN if entry.candidate.folded else 1.0
        heapq.heappush(self.queue, (price, len(mesh.axis_sizes), entry.mesh, self.entered, entry))

    def fitting(self, entry: _Entry) -> tuple[Found, _Entry] | None:
        """The candidate spelled out, with a lower limit where it does not fit as it is lowered; None where it became
        another candidate, or nothing."""
        while True:
            found = self.spelled_out(entry.mesh, entry)
            missing = found.footprint.peak_bytes - self.limit_bytes
            if missing <= 0:
                return found, entry
            if entry.tried >= _MOST_TIGHTER:
                self.enter_leanest(entry)
                return None
            limit = entry.limit_bytes - max(missing, self.limit_bytes * 0.01)
            by = max(self.deadline, time.monotonic() + 1.0)
            tighter = self.solved(entry.mesh, limit, by, entry.candidate.question.exposure, entry)
            if tighter is None:
                return None
            if tighter.candidate.choice is None:
                self.enter_leanest(tighter)
                return None
            entry = tighter

    def enter_leanest(self, entry: _Entry) -> None:
        """Nothing within the model's limit fits as it is lowered: the layout of the smallest footprint may."""
        start, i = time.monotonic(), entry.mesh
        best: tuple[Candidate, Found] | None = None
        for lean in self.searches[i].leanest(entry.candidate, max(1.0, self.deadline - start)):
            found = self.spelled_out(i, replace(entry, candidate=lean))
            if best is None or found.footprint.peak_bytes < best[1].footprint.peak_bytes:
                best = lean, found
        self.spent_s[i] += time.monotonic() - start
        mesh = self.searches[i].mesh
        if best is None:
            self.failures.append(TimeError(f"no layout was found on {mesh.sizes} in the time that was left"))
        elif best[1].footprint.peak_bytes > self.limit_bytes:
            used = best[1].footprint
            self.failures.append(MemoryError_(used.peak_bytes, self.limit_bytes, mesh, used))
        else:
            self.put(_Entry(best[0], i, entry.limit_bytes, _MOST_TIGHTER))

    def spelled_out(self, i: int, entry: _Entry) -> Found:
        c = entry.candidate
        assert c.choice is not None
        priced = c.question.priced(entry.limit_bytes)
        realized = realize(priced, c.choice)
        timeline, used = simulate_plan(priced, realized), footprint(priced, realized)
        return Found(priced, c.choice, realized, timeline, used, c.cost_s, c.bound_s, c.status, self.spent_s[i])
