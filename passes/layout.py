"""The search within one program: meshes x strategies x memory, with a lower bound.

The program is grouped once for all meshes. Every mesh is solved by the memory model; only layouts that may be the best
are then spelled out and measured as they will be lowered.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cost_model.mesh import LogicalMesh
from cost_model.simulate import Timeline
from passes.fold import fold
from passes.footprint import Footprint, footprint
from passes.grouping import group_values
from passes.ir import Graph, Sharding
from passes.mesh_search import Candidate, MeshSearch
from passes.meshes import possible_cuts
from passes.pinning import LayoutError, PinError, fixed_in_front
from passes.price import Priced
from passes.program import Program, analyse
from passes.realize import Realized, realize
from passes.solve import warm_up
from passes.timeline import simulate_plan


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


@dataclass(frozen=True, slots=True)
class Looked:
    """What a mesh was found to cost at best, by the memory model if it was never spelled out."""

    mesh: LogicalMesh
    cost_s: float
    status: str
    search_s: float


# How often the limit of the memory model is lowered because the layout as lowered needs more than the model counts.
_MOST_TIGHTER = 4
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


class _Search:
    def __init__(
        self, graph: Graph, meshes: Sequence[LogicalMesh], limit_bytes: int, pins: Mapping[int, Sharding],
        deadline: float, seed: int, apart: bool,
    ) -> None:  # fmt: skip
        self.limit_bytes, self.deadline = limit_bytes, deadline
        program = common_program(graph, meshes, pins, apart)
        folding = fold(program, meshes[0].topology.chip.platform, pins)
        self.searches = [MeshSearch(folding, mesh, pins, seed) for mesh in meshes]
        self.limits = [float(limit_bytes)] * len(meshes)
        self.spent_s = [0.0] * len(meshes)
        self.looked: dict[int, Looked] = {}
        self.failures: list[LayoutError] = []

    def run(self) -> tuple[Found, tuple[Looked, ...]]:
        queue: list[tuple[float, int, int, Candidate]] = []
        for i, search in enumerate(self.searches):
            left = max(1.0, (self.deadline - time.monotonic()) / (len(self.searches) - i))
            self.enter(queue, i, time.monotonic() + left, search)
        tried = [0] * len(self.searches)
        while queue:
            _, _, i, candidate = heapq.heappop(queue)
            if candidate.folded:
                self.refine(queue, i, candidate)
                continue
            found = self.spelled_out(i, candidate)
            if found.footprint.peak_bytes <= self.limit_bytes:
                return found, tuple(self.looked[k] for k in sorted(self.looked))
            tried[i] += 1
            missing = found.footprint.peak_bytes - self.limit_bytes
            self.limits[i] -= max(missing, self.limit_bytes * 0.01)
            if tried[i] < _MOST_TIGHTER:
                left = max(1.0, self.deadline - time.monotonic())
                self.enter(queue, i, time.monotonic() + left, self.searches[i])
            else:
                self.enter_leanest(queue, i, candidate)
        memory = [e for e in self.failures if isinstance(e, MemoryError_)]
        raise min(memory, key=lambda e: e.needed_bytes) if memory else self.failures[0]

    def enter(
        self, queue: list[tuple[float, int, int, Candidate]], i: int, deadline: float, search: MeshSearch
    ) -> None:
        """Solve on mesh i and put what was found in the queue."""
        start = time.monotonic()
        try:
            candidate = search.solve(self.limits[i], deadline)
        except PinError as error:
            self.failures.append(error)
            return
        self.spent_s[i] += time.monotonic() - start
        if candidate.choice is None:
            self.enter_leanest(queue, i, candidate)
            return
        self.put(queue, i, candidate)

    def refine(self, queue: list[tuple[float, int, int, Candidate]], i: int, candidate: Candidate) -> None:
        start = time.monotonic()
        refined = self.searches[i].refine(candidate, self.limits[i], max(self.deadline, start + 5.0))
        self.spent_s[i] += time.monotonic() - start
        self.put(queue, i, refined)

    def enter_leanest(self, queue: list[tuple[float, int, int, Candidate]], i: int, candidate: Candidate) -> None:
        """Nothing within the model's limit fits as it is lowered: the layout of the smallest footprint may."""
        start = time.monotonic()
        best: tuple[Candidate, Found] | None = None
        for lean in self.searches[i].leanest(candidate, max(1.0, self.deadline - start)):
            found = self.spelled_out(i, lean)
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
            self.put(queue, i, best[0])

    def put(self, queue: list[tuple[float, int, int, Candidate]], i: int, candidate: Candidate) -> None:
        mesh = self.searches[i].mesh
        self.looked[i] = Looked(mesh, candidate.cost_s, candidate.status, self.spent_s[i])
        # What is folded may still become cheaper: it is looked at before what costs about the same.
        cost = candidate.cost_s * (_MAY_GAIN if candidate.folded else 1.0)
        heapq.heappush(queue, (cost, len(mesh.axis_sizes), i, candidate))

    def spelled_out(self, i: int, candidate: Candidate) -> Found:
        choice = candidate.choice
        assert choice is not None
        c, priced = candidate, candidate.question.priced(self.limits[i])
        realized = realize(priced, choice)
        timeline, used = simulate_plan(priced, realized), footprint(priced, realized)
        return Found(priced, choice, realized, timeline, used, c.cost_s, c.bound_s, c.status, self.spent_s[i])
