"""The user's own sharding annotations in a traced step, read as pins of the values they stand at.

`with_sharding_constraint` and the shardings of a nested `jit` become operations of the graph that decide for
themselves; what they decide is fixed here, on the mesh that the annotations name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from parallelizer.errors import AnnotationError, ContradictionError
from parallelizer.moves import from_spec
from parallelizer.pins import label
from passes.ir import OPEN, Graph, Op, Sharding, walk


@dataclass(frozen=True, slots=True)
class Annotations:
    """What a program's annotations say: axes of the mesh they are written for (without those of size 1), and per value
    the sharding (`OPEN` where a dimension is left unconstrained) and the user's line."""

    mesh: Mapping[str, int]
    pins: Mapping[int, tuple[str, Sharding]]


def read_annotations(graph: Graph) -> Annotations:
    """Every annotation of a graph. Raises AnnotationError where two of them are for different meshes."""
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    pins: dict[int, tuple[str, Sharding]] = {}
    for v in walk(graph):
        if v.op.primitive != "sharding_constraint":
            continue
        sharding = v.op.params.get("sharding")
        if not isinstance(sharding, NamedSharding):
            continue  # a single device, or a form without named axes: nothing to fix
        where = f"the annotation at {v.op.source}" if v.op.source else "an annotation"
        for axis, size in sharding.mesh.shape.items():
            if size > 1 and sizes.setdefault(axis, size) != size:
                raise AnnotationError.of_two(axis, (sizes[axis], first[axis]), (size, where))
            first.setdefault(axis, where)
        pins[v.op.outputs[0]] = (where, _sharding(v.op, sharding, graph))
    return Annotations(sizes, pins)


def _sharding(op: Op, sharding: NamedSharding, graph: Graph) -> Sharding:
    open_dims = {d for d, entry in enumerate(sharding.spec) if entry is PartitionSpec.UNCONSTRAINED}
    open_dims |= {int(d) for d in op.params.get("unconstrained_dims") or ()}
    entries: list[Any] = [None if d in open_dims else entry for d, entry in enumerate(sharding.spec)]
    made = from_spec(entries, len(graph.values[op.outputs[0]].shape))
    alone = {axis for axis, size in sharding.mesh.shape.items() if size == 1}
    dims = tuple(tuple(a for a in axes if a not in alone) for axes in made.dims)
    return Sharding(tuple(OPEN if d in open_dims else axes for d, axes in enumerate(dims)))


def with_annotations(
    pins: Mapping[int, tuple[str, Sharding]], noted: Annotations, graph: Graph
) -> dict[int, tuple[str, Sharding]]:
    """Pins and annotations together. AnnotationError where they contradict each other."""
    for v, (where, sharding) in noted.pins.items():
        pattern, pinned = pins.get(v, (where, sharding))
        if any(a != b and b != OPEN for a, b in zip(pinned.dims, sharding.dims, strict=True)):
            name = label(graph, v)
            raise ContradictionError.of((name, pattern, pinned), (name, where, sharding))
    return {**noted.pins, **pins}


def mesh_of(
    annotations: Annotations, asked: Mapping[str, int] | None, topology: str, num_devices: int
) -> Mapping[str, int] | None:
    """The mesh that annotations ask for, if the user asks for none. AnnotationError where neither can be."""
    used = {a for _, s in annotations.pins.values() for a in s.axes if a != OPEN[0]}
    if not used:
        return asked
    if asked is not None:
        missing = sorted(used - set(asked))
        if missing:
            raise AnnotationError.of_axis(missing[0], _where(annotations, missing[0]), dict(asked))
        return asked
    if math.prod(annotations.mesh.values()) != num_devices:
        raise AnnotationError.of_mesh(dict(annotations.mesh), topology, num_devices)
    return annotations.mesh


def _where(annotations: Annotations, axis: str) -> str:
    return next(where for where, s in annotations.pins.values() if axis in s.axes)
