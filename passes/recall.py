"""What a search found, in a form that can be kept, and the way back to a layout without searching again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cost_model.mesh import LogicalMesh
from passes.exposure import Exposure
from passes.fold import fold
from passes.footprint import footprint
from passes.ir import Graph, Reduction, Sharding
from passes.layout import Found, Looked, common_program
from passes.mesh_search import MeshSearch
from passes.pinning import PinError
from passes.question import Question
from passes.realize import realize
from passes.strategies import Strategy
from passes.timeline import simulate_plan

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer of a search: the mesh (by its place among those searched), per group which of `strategies` it takes,
    and what was proved and measured of it. `looked` has (mesh, seconds, status, seconds of search) per mesh."""

    mesh: int
    strategies: tuple[Strategy, ...]
    choice: tuple[int, ...]
    exposure: Exposure
    cost_s: float
    bound_s: float
    status: str
    step_s: float
    peak_bytes: int
    looked: tuple[tuple[int, float, str, float], ...]


def remembered(found: Found, looked: Sequence[Looked], meshes: Sequence[LogicalMesh]) -> Remembered | None:
    """`found` of a search over `meshes`; None with three and more axes, where alternatives are not all enumerated."""
    if len(found.mesh.axis_sizes) > 2:
        return None
    number: dict[Strategy, int] = {}
    taken = [found.priced.strategies[g][s] for g, s in zip(found.priced.order, found.choice, strict=True)]
    choice = tuple(number.setdefault(s, len(number)) for s in taken)
    place = {id(mesh): i for i, mesh in enumerate(meshes)}
    return Remembered(
        place[id(found.mesh)], tuple(number), choice, found.priced.exposure, found.cost_s, found.bound_s, found.status,
        found.timeline.step_s, found.footprint.peak_bytes,
        tuple((place[id(x.mesh)], x.cost_s, x.status, x.search_s) for x in looked),
    )  # fmt: skip


def recall(
    graph: Graph, meshes: Sequence[LogicalMesh], limit_bytes: int, pins: Mapping[int, Sharding], known: Remembered,
    apart: bool = False,
) -> tuple[Found, tuple[Looked, ...]] | None:  # fmt: skip
    """The layout again, as `search_layout` returned it; None where it does not fit this program any more: every group
    must still have its strategy, and the step and the peak must come out as they were."""
    if not 0 <= known.mesh < len(meshes) or any(not 0 <= i < len(meshes) for i, *_ in known.looked):
        return None
    mesh = meshes[known.mesh]
    folding = fold(common_program(graph, meshes, pins, apart), mesh.topology.chip.platform, pins)
    search = MeshSearch(folding, mesh, pins)
    try:
        options = search.options()
    except PinError:
        return None
    if len(known.choice) != len(folding.class_of) or not all(0 <= c < len(known.strategies) for c in known.choice):
        return None
    places: dict[int, dict[Strategy, int]] = {}
    choice = []
    for k, c in zip(folding.class_of.values(), known.choice, strict=True):
        of = places.setdefault(id(options[k]), {})
        if not of:
            of.update({s: i for i, s in enumerate(options[k])})
        place = of.get(known.strategies[c])
        if place is None:
            return None
        choice.append(place)
    priced = Question(search.pricer, folding, options, known.exposure).priced(float(limit_bytes))
    realized = realize(priced, choice)
    timeline, used = simulate_plan(priced, realized), footprint(priced, realized)
    if used.peak_bytes != known.peak_bytes or abs(timeline.step_s - known.step_s) > 1e-9 * known.step_s:
        return None
    status, cost, bound = known.status, known.cost_s, known.bound_s
    found = Found(priced, tuple(choice), realized, timeline, used, cost, bound, status, 0.0)
    return found, tuple(Looked(meshes[i], seconds, status, spent) for i, seconds, status, spent in known.looked)


def to_json(known: Remembered) -> Json:
    """Plain data; strategies as lists of axes."""
    return {
        "mesh": known.mesh,
        "strategies": [
            [s.classes, s.factors, [(r.axes, r.dim, r.combine) for r in s.reductions], s.shared, s.partial]
            for s in known.strategies
        ],
        "choice": known.choice,
        "exposure": [known.exposure.parameter, known.exposure.gradient, known.exposure.activation],
        "cost_s": known.cost_s,
        "bound_s": known.bound_s,
        "status": known.status,
        "step_s": known.step_s,
        "peak_bytes": known.peak_bytes,
        "looked": known.looked,
    }


def from_json(data: object) -> Remembered | None:
    """What `to_json` made; None for anything else."""
    try:
        assert isinstance(data, dict)
        strategies = tuple(
            Strategy(
                tuple(map(tuple, classes)), tuple((f, tuple(on)) for f, on in factors),
                tuple(Reduction(tuple(axes), dim, combine) for axes, dim, combine in reductions),
                None if shared is None else tuple(map(tuple, shared)), tuple(partial),
            )
            for classes, factors, reductions, shared, partial in data["strategies"]
        )  # fmt: skip
        return Remembered(
            int(data["mesh"]), strategies, tuple(map(int, data["choice"])), Exposure(*map(float, data["exposure"])),
            float(data["cost_s"]), float(data["bound_s"]), str(data["status"]), float(data["step_s"]),
            int(data["peak_bytes"]), tuple((int(i), float(c), str(s), float(t)) for i, c, s, t in data["looked"]),
        )  # fmt: skip
    except (AssertionError, KeyError, TypeError, ValueError):
        return None
