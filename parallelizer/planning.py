"""From a traced function and a topology to a `Plan`: candidates, search, and the facts that a plan reports."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cost_model.hardware import UnknownChip
from cost_model.mesh import LogicalMesh, MeshError, logical_mesh
from cost_model.topology import ImpossibleTopology, Topology, UnknownTopology, known_topologies, parse_topology
from parallelizer.annotations import Annotations, check_names, check_types, mesh_of, read_annotations, with_annotations
from parallelizer.errors import (
    AnnotationError,
    BadPinError,
    BadTripsError,
    ContradictionError,
    MeshSizeError,
    ModeError,
    NotDivisibleError,
    ReshardWarning,
    SearchTimeError,
    UnknownLoopError,
    UnknownPrimitiveError,
    UnknownTopologyError,
)
from parallelizer.layouts import Rules, hand_layout
from parallelizer.microbatches import asked_microbatches
from parallelizer.own_programs import left_whole, mesh_inside
from parallelizer.pin_levels import in_one
from parallelizer.pins import check_pins, label, pin_axes, read_pins
from parallelizer.plan_cache import cached_search
from parallelizer.plans import Array, Choice, Collective, Cost, Memory, Plan, Tried
from parallelizer.prepared import prepared
from parallelizer.propagation import MODES, complete, held, told, warning_text
from parallelizer.register import check_rules
from parallelizer.relaxations import Asked, does_not_fit
from parallelizer.tracer import Traced
from passes.explain import reason
from passes.ir import Graph, Literal, Sharding, walk
from passes.ir.text import graph_hash
from passes.layout import Found, Looked, MemoryError_, TimeError
from passes.meshes import AXIS_NAMES, candidate_meshes
from passes.pinning import PinError
from passes.propagate import Propagated
from passes.rules import rule_name
from passes.trips import Loop, TripError, hinted


def resolve_topology(topology: str | Topology) -> Topology:
    """A topology by name. Raises UnknownTopologyError listing what is known."""
    if isinstance(topology, Topology):
        return topology
    try:
        return parse_topology(topology)
    except (UnknownTopology, ImpossibleTopology, UnknownChip) as error:
        raise UnknownTopologyError.of(topology, tuple(known_topologies()), getattr(error, "why", str(error))) from error


def meshes_for(topology: Topology, mesh: Mapping[str, int] | None, axes: Sequence[str]) -> tuple[LogicalMesh, ...]:
    """The meshes to search: the pinned one, or candidates that have the axes that pins name."""
    if mesh is not None:
        try:
            return (logical_mesh(topology, mesh),)
        except MeshError as error:
            raise MeshSizeError.of(mesh, topology.name, topology.num_devices) from error
    most = max([2, *(AXIS_NAMES.index(a) + 1 for a in axes if a in AXIS_NAMES)])
    candidates = candidate_meshes(topology, max_axes=most)
    return tuple(m for m in candidates if set(axes) <= set(m.axis_names)) or candidates[-1:]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: planning makes millions of small objects that live as long as the plan, and going
    through them again and again took a fifth of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def make_plan(
    traced: Traced,
    topology: Topology,
    mesh: Mapping[str, int] | None = None,
    memory_bytes: float | None = None,
    pins: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    strict: bool = False,
    time_limit_s: float = 60.0,
    loop_trips: int | Mapping[str, int] | None = None,
    annotations: str = "keep",
    mode: str = "search",
    layout: str | Rules | None = None,
    microbatches: int | Mapping[str, int] = 1,
) -> Plan:
    """Search (or propagate) and report. Raises the errors of bad pins, annotations, meshes, memory, registered rules,
    loop_trips, modes, layouts, microbatches and (strict) unknown operations."""
    start = time.monotonic()
    if mode not in MODES:
        raise ModeError.of_mode(mode, MODES)
    graph, loops = planned_graph(traced, loop_trips, microbatches)
    check_rules(graph)
    together, levels = in_one(pins)
    pinned = read_pins(together, graph)
    if annotations not in ("keep", "ignore"):
        raise AnnotationError.of_option(annotations)
    noted = Annotations()
    if annotations == "keep":
        noted = read_annotations(graph, traced.given, traced.types)
        pinned = with_annotations(pinned, noted, graph)
        mesh = mesh_of(noted, mesh, topology.name, topology.num_devices)
        mesh = mesh if mesh is not None else mesh_inside(graph, topology.num_devices)
    placed = None if layout is None else hand_layout(layout, graph, topology, mesh)
    if placed is not None:  # what the user pins goes before what the layout says
        mesh, pinned = placed.mesh, {**placed.pins, **pinned}
    if mode == "propagate" and mesh is None:
        raise ModeError.of_mesh(topology.name, topology.num_devices)
    meshes = meshes_for(topology, mesh, pin_axes(pinned))
    legal = [m for m in meshes if _legal(pinned, graph, m)]
    if not legal:
        check_pins(pinned, graph, meshes[0].sizes)
    check_types(noted.types, graph, legal[0].sizes)
    limit = int(memory_bytes if memory_bytes is not None else topology.chip.memory_bytes)
    fixed = {v: s for v, (_, s) in pinned.items()}
    digest = graph_hash(graph)
    propagated, completed = None, mode == "propagate" or bool(noted.types)
    if mode == "propagate":
        check_names(pinned, graph)
        propagated, fixed = complete(graph, legal[0], pinned, noted, levels)
    elif noted.types:
        fixed = held(graph, legal[0], pinned, {v: s for v, (_, s) in noted.types.items()})
    try:
        best, looked = cached_search(graph, digest, legal, limit, fixed, time_limit_s, completed, versions())
    except MemoryError_ as error:
        free = meshes_for(topology, None, pin_axes(pinned))
        asked = Asked(graph, legal, free, limit, fixed, time_limit_s, completed, microbatches != 1)
        raise does_not_fit(error, asked) from error
    except TimeError as error:
        raise SearchTimeError.of(time_limit_s, time.monotonic() - start) from error
    except PinError as error:
        raise _bad_pin(error, graph, {**{v: ("propagation", s) for v, s in fixed.items()}, **pinned}) from error
    unknown = _unknown(best)
    if strict and unknown:
        raise UnknownPrimitiveError.of(unknown)
    plan = _report(traced, graph, digest, topology, best, looked, limit, pinned, unknown, time.monotonic() - start)
    if propagated is not None:
        plan = _propagated(plan, best, propagated)
    if placed is not None:
        own = {pattern: str(s) for pattern, s in pinned.values() if pattern != placed.why}
        plan = replace(plan, pins={placed.why: placed.what, **own})
    return replace(plan, loops=loops)


def _propagated(plan: Plan, best: Found, propagated: Propagated) -> Plan:
    """The plan with what propagation did; warns of reshards that nobody asked for."""
    assert plan.graph is not None
    said = told(plan.graph, best, propagated, _names(plan.graph, best))
    if said.forced:
        warnings.warn(warning_text(said.forced), ReshardWarning, stacklevel=4)
    choices = tuple(
        c if c.reason == "pinned" else replace(c, reason="propagated" if c.sharding.axes else "not reached")
        for c in plan.choices
    )
    return replace(plan, mode="propagate", propagation=said, choices=choices)


def planned_graph(
    traced: Traced, loop_trips: int | Mapping[str, int] | None, microbatches: int | Mapping[str, int] = 1
) -> tuple[Graph, tuple[Loop, ...]]:
    """The graph that is planned: with the user's trip counts, its batch in parts. Raises the errors of both."""
    graph, loops = with_trips(prepared(traced.graph), loop_trips)
    return asked_microbatches(graph, microbatches), loops


def with_trips(graph: Graph, loop_trips: int | Mapping[str, int] | None) -> tuple[Graph, tuple[Loop, ...]]:
    """The graph with the user's trip counts. Raises UnknownLoopError, BadTripsError."""
    try:
        return hinted(graph, loop_trips)
    except TripError as error:
        raise UnknownLoopError.of(error.hint, error.known) from error
    except ValueError as error:
        raise BadTripsError.of(loop_trips or 0, str(error)) from error


def _legal(pinned: Mapping[int, tuple[str, Sharding]], graph: Graph, mesh: LogicalMesh) -> bool:
    try:
        check_pins(pinned, graph, mesh.sizes)
    except ValueError:
        return False
    return True


def _bad_pin(error: PinError, graph: Graph, pinned: Mapping[int, tuple[str, Sharding]]) -> ValueError:
    """Nothing to decide there; another pin in the way; or the dimension divides, but something that must be cut with
    it does not."""
    path = label(graph, error.value)
    if error.against is not None:
        return ContradictionError.of(*((label(graph, v), *pinned[v]) for v in (error.against, error.value)))
    if not error.decided:
        reason = "how it is cut follows from other values (it is a constant, or repeats another array)"
        return BadPinError.of(path, str(error.sharding), reason, error.shape)
    sizes = error.mesh.sizes
    for dim, axes in enumerate(error.sharding.dims):
        if axes:
            return NotDivisibleError.of(path, dim, error.shape[dim], {a: sizes[a] for a in axes})
    return error


def _unknown(found: Found) -> tuple[tuple[str, int, str], ...]:
    counts: Counter[str] = Counter()
    where: dict[str, str] = {}
    grouping = found.priced.program.grouping
    for v in (*grouping.unknown, *left_whole(grouping.groups, found.realized.chosen)):
        name = rule_name(v.op)
        counts[name] += 1
        where.setdefault(name, str(v.op.source or ""))
    return tuple((p, n, where[p]) for p, n in counts.most_common())


def _report(
    traced: Traced, graph: Graph, digest: str, topology: Topology, best: Found, looked: Sequence[Looked], limit: int,
    pinned: Mapping[int, tuple[str, Sharding]], unknown: tuple[tuple[str, int, str], ...], search_s: float,
) -> Plan:  # fmt: skip
    names = _names(graph, best)
    layout, timeline = best.realized.layout, best.timeline
    inputs = tuple(
        Array(path, graph.values[v].shape, graph.values[v].dtype, layout.values.get(v))
        for path, v in zip(graph.input_paths, graph.inputs, strict=True)
    )
    outputs = []
    for i, (path, o) in enumerate(zip(graph.output_paths, graph.outputs, strict=True)):
        value = graph.value_of(o)
        source = graph.inputs[graph.carried[i]] if i in graph.carried else o
        outputs.append(
            Array(path, value.shape, value.dtype, None if isinstance(source, Literal) else layout.values.get(source))
        )
    used = best.footprint
    return Plan(
        function=traced.name,
        graph_hash=digest,
        topology=topology.name,
        mesh=best.mesh,
        layout=layout,
        inputs=inputs,
        outputs=tuple(outputs),
        donated=tuple(sorted(graph.donated)),
        primitives=dict(Counter(v.op.primitive for v in walk(graph))),
        cost=Cost(
            timeline.step_s,
            timeline.compute_s,
            timeline.exposed_communication_s,
            timeline.hidden_communication_s,
            used.peak_bytes,
        ),
        objective_s=best.cost_s,
        bound=best.bound_s,
        gap=best.gap,
        status=best.status,
        search_s=search_s,
        memory=Memory(limit, used.by_kind, used.by_argument),
        collectives=_collectives(best, names),
        choices=_choices(best, graph, pinned, names),
        tried=tuple(Tried(f.mesh.sizes, f.cost_s, f.status, f.search_s) for f in looked),
        unknown=unknown,
        pins={pattern: str(s) for pattern, s in pinned.values()},
        versions=versions(),
        traced=traced,
        graph=graph,
        live=best,
    )


def versions() -> dict[str, str]:
    out = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("parallelizer", "jax", "jaxlib"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = "source"
    return out


def _collectives(found: Found, names: Mapping[int, str]) -> tuple[Collective, ...]:
    """Planned collectives, largest total first; equal ones (same operation, kind, axes, size) together."""
    ops = {v.op.id: v.op for v in found.priced.program.grouping.visits}
    merged: dict[tuple[Any, ...], Collective] = {}
    for c in found.realized.collectives:
        op = ops.get(c.op)
        source = str(op.source) if op is not None and op.source is not None else ""
        new = Collective(c.kind, c.axes, c.size_bytes, c.count, source, names.get(c.value, ""), c.why, c.op)
        key = (c.kind, c.axes, c.size_bytes, c.op, c.value, c.why)
        merged[key] = replace(new, count=new.count + merged[key].count) if key in merged else new
    return tuple(sorted(merged.values(), key=lambda c: -c.total_bytes))


def _names(graph: Graph, found: Found) -> dict[int, str]:
    """What to call a value: the argument's path, of which it may be a slice or a copy, or what made it and where."""
    out: dict[int, str] = dict(zip(graph.inputs, graph.input_paths, strict=True))
    for v in found.priced.program.grouping.visits:
        line = f" at {v.op.source.file.rsplit('/', 1)[-1]}:{v.op.source.line}" if v.op.source else ""
        for r in v.op.outputs:
            out[r] = f"{v.op.primitive}{line}"
    for group in found.priced.program.grouping.groups.values():
        if group.kind == "input" and group.root in graph.inputs:
            path = graph.input_paths[graph.inputs.index(group.root)]
            for m in group.members:
                if m not in graph.inputs and m not in graph.outputs:
                    out[m] = path
    return out


def _choices(
    found: Found, graph: Graph, pinned: Mapping[int, tuple[str, Sharding]], names: Mapping[int, str]
) -> tuple[Choice, ...]:
    """One entry per decision group, inputs first."""
    paths = dict(zip(graph.inputs, graph.input_paths, strict=True))
    grouping = found.priced.program.grouping
    out = []
    for g in sorted(grouping.groups, key=lambda g: (grouping.groups[g].kind != "input", g)):
        group = grouping.groups[g]
        if group.root not in found.realized.layout.values:
            continue
        inputs = tuple(paths[m] for m in group.members if m in paths)
        why = reason(found.priced, found.choice, group.root, any(m in pinned for m in group.members))
        out.append(
            Choice(
                inputs or (names.get(group.root, group.kind),),
                graph.values[group.root].shape,
                found.realized.layout.values[group.root],
                why.kind,
                why.runner_up.sharding if why.runner_up else None,
                why.runner_up.extra_s if why.runner_up else 0.0,
            )
        )
    return tuple(out)
