"""The user's own sharding annotations, read as pins of the values they stand at.

`with_sharding_constraint` and the shardings of a nested `jit` become operations of the graph that decide for
themselves; what they decide is fixed here, on the mesh that the annotations name. Shardings that arguments came with
(see `given`) are pins of the arguments. In Explicit mode the type of every value is an annotation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import AxisType, NamedSharding, PartitionSpec

from parallelizer.errors import AnnotationError, BadPinError, ContradictionError, NotDivisibleError
from parallelizer.given import Given
from parallelizer.moves import from_spec
from parallelizer.pins import label
from passes.ir import OPEN, Graph, Literal, Op, Sharding, walk

Pins = Mapping[int, tuple[str, Sharding]]
TYPED = "its type in Explicit mode"


@dataclass(frozen=True, slots=True)
class Annotations:
    """What a program's annotations say: axes of the mesh they are written for (without those of size 1; empty where
    only names are known), and per value the sharding (`OPEN` where a dimension is left unconstrained) and the user's
    line. `types` are the shardings that values have by their types."""

    mesh: Mapping[str, int] = field(default_factory=dict)
    pins: Pins = field(default_factory=dict)
    types: Pins = field(default_factory=dict)


def read_annotations(
    graph: Graph, given: Mapping[str, Given] | None = None, types: Mapping[int, NamedSharding] | None = None
) -> Annotations:
    """Every annotation of a graph, of its arguments (`given`, by path), and of its values' types.

    Raises AnnotationError where two of them are for different meshes, BadPinError for a spec that does not fit.
    """
    mesh = _Mesh()
    pins: dict[int, tuple[str, Sharding]] = {}
    for path, value in zip(graph.input_paths, graph.inputs, strict=True):
        said = (given or {}).get(path)
        if said is not None and (said.mesh or any(said.spec)):
            where = f"{said.what} {path!r}"
            mesh.meet(said.mesh, where)
            pins[value] = (where, _of_argument(said, path, where, graph.values[value].shape))
    for v in walk(graph):
        if v.op.primitive != "sharding_constraint":
            continue
        sharding = v.op.params.get("sharding")
        if not isinstance(sharding, NamedSharding):
            continue  # a single device, or a form without named axes: nothing to fix
        where = f"the annotation at {v.op.source}" if v.op.source else "an annotation"
        mesh.meet(sharding.mesh.shape, where)
        pins[v.op.outputs[0]] = (where, _sharding(v.op, sharding, graph))
        operand = v.op.inputs[0]
        if v.op.params.get("enters") and operand in graph.inputs and operand not in pins:
            path = graph.input_paths[graph.inputs.index(operand)]
            pins[operand] = (f"in_shardings of argument {path!r}", pins[v.op.outputs[0]][1])
    typed: dict[int, tuple[str, Sharding]] = {}
    for value, sharding in (types or {}).items():
        if value in graph.values:
            mesh.meet(sharding.mesh.shape, TYPED)
            typed[value] = (TYPED, _of_type(sharding, len(graph.values[value].shape)))
    return Annotations(mesh.sizes, pins, typed)


class _Mesh:
    """The one mesh that annotations are for, put together from theirs."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def meet(self, sizes: Mapping[str, int], where: str) -> None:
        for axis, size in sizes.items():
            if size > 1 and self.sizes.setdefault(axis, size) != size:
                raise AnnotationError.of_two(axis, (self.sizes[axis], self.first[axis]), (size, where))
            self.first.setdefault(axis, where)


def _of_argument(said: Given, path: str, where: str, shape: tuple[int, ...]) -> Sharding:
    if len(said.spec) > len(shape):
        raise BadPinError.of(path, str(said.spec), f"{where} has {len(said.spec)} entries", shape)
    made = from_spec([None if e is PartitionSpec.UNCONSTRAINED else e for e in said.spec], len(shape))
    dims = _without_single(made.dims, said.mesh)
    unsaid = {d for d, e in enumerate(said.spec) if e is PartitionSpec.UNCONSTRAINED}
    return Sharding(tuple(OPEN if d in unsaid else axes for d, axes in enumerate(dims)))


def _sharding(op: Op, sharding: NamedSharding, graph: Graph) -> Sharding:
    open_dims = {d for d, entry in enumerate(sharding.spec) if entry is PartitionSpec.UNCONSTRAINED}
    open_dims |= {int(d) for d in op.params.get("unconstrained_dims") or ()}
    entries: list[Any] = [None if d in open_dims else entry for d, entry in enumerate(sharding.spec)]
    made = from_spec(entries, len(graph.values[op.outputs[0]].shape))
    dims = _without_single(made.dims, sharding.mesh.shape)
    return Sharding(tuple(OPEN if d in open_dims else axes for d, axes in enumerate(dims)))


def _of_type(sharding: NamedSharding, rank: int) -> Sharding:
    """A type's sharding. Where the mesh has axes that are not Explicit, those may cut what the type leaves whole."""
    dims = _without_single(from_spec(list(sharding.spec), rank).dims, sharding.mesh.shape)
    mixed = any(kind != AxisType.Explicit for kind in sharding.mesh.axis_types)
    return Sharding(tuple(OPEN if mixed and not axes else axes for axes in dims))


def _without_single(dims: Iterable[tuple[str, ...]], sizes: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """The dimensions without axes of size 1, which cut nothing."""
    return tuple(tuple(a for a in axes if sizes.get(a) != 1) for axes in dims)


def with_annotations(pins: Pins, noted: Annotations, graph: Graph) -> dict[int, tuple[str, Sharding]]:
    """Pins and annotations together. ContradictionError where they contradict each other, or a value's type."""
    for said in (noted.types, noted.pins):
        for v, (where, sharding) in said.items():
            pattern, pinned = pins.get(v, (where, sharding))
            if any(a != b and OPEN not in (a, b) for a, b in zip(pinned.dims, sharding.dims, strict=True)):
                name = label(graph, v)
                raise ContradictionError.of((name, pattern, pinned), (name, where, sharding))
    both = {**noted.pins, **pins}
    for v in set(noted.pins) & set(pins):  # each may leave open what the other says
        pairs = zip(pins[v][1].dims, noted.pins[v][1].dims, strict=True)
        both[v] = (pins[v][0], Sharding(tuple(b if a == OPEN else a for a, b in pairs)))
    return both


def check_names(pins: Pins, graph: Graph) -> None:
    """Raise ContradictionError where a pinned name stands directly on a value that is pinned or annotated otherwise."""
    under: dict[int, int] = {}
    for v in walk(graph):
        operand = v.op.inputs[0] if v.op.primitive == "name" else None
        if operand is None or isinstance(operand, Literal):
            continue
        named = v.op.outputs[0]
        under[named] = below = under.get(operand, operand)
        both = [(label(graph, x), *pins[x]) for x in (below, named) if x in pins]
        if len(both) == 2 and any(
            a != b and OPEN not in (a, b) for a, b in zip(both[0][2].dims, both[1][2].dims, strict=True)
        ):
            raise ContradictionError.of(*both)


def check_types(types: Pins, graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise NotDivisibleError where a value's type cannot be on a mesh of these axis sizes."""
    for v, (_, sharding) in types.items():
        for dim, (axes, n) in enumerate(zip(sharding.dims, graph.values[v].shape, strict=True)):
            if axes != OPEN and n % math.prod(sizes[a] for a in axes):
                raise NotDivisibleError.of(label(graph, v), dim, n, {a: sizes[a] for a in axes})


def mesh_of(
    annotations: Annotations, asked: Mapping[str, int] | None, topology: str, num_devices: int
) -> Mapping[str, int] | None:
    """The mesh that annotations ask for, if the user asks for none. AnnotationError where neither can be."""
    used = {a for _, s in _all(annotations) for a in s.axes if a != OPEN[0]}
    if not used:
        return asked
    if asked is not None:
        missing = sorted(used - set(asked))
        if missing:
            raise AnnotationError.of_axis(missing[0], _where(annotations, missing[0]), dict(asked))
        return asked
    if not annotations.mesh:
        first = min(used)
        raise AnnotationError.of_names(first, _where(annotations, first), sorted(used), topology, num_devices)
    missing = sorted(used - set(annotations.mesh))
    if missing:
        raise AnnotationError.of_axis(missing[0], _where(annotations, missing[0]), dict(annotations.mesh))
    if math.prod(annotations.mesh.values()) != num_devices:
        raise AnnotationError.of_mesh(dict(annotations.mesh), topology, num_devices)
    return annotations.mesh


def _all(annotations: Annotations) -> list[tuple[str, Sharding]]:
    return [*annotations.pins.values(), *annotations.types.values()]


def _where(annotations: Annotations, axis: str) -> str:
    return next(where for where, s in _all(annotations) if axis in s.axes)
