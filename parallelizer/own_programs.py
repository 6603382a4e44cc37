"""A user's own `shard_map` within a step: which mesh it asks for, whether a plan cuts it so, and how it runs there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from passes.groups import Group
from passes.ir import Graph, Op, Visit, walk
from passes.rules.declared import own_mesh
from passes.strategies import Strategy


def mesh_inside(graph: Graph, num_devices: int) -> dict[str, int] | None:
    """The mesh of the first local program that is written for all devices; None where there is none."""
    for v in walk(graph):
        found = own_mesh(v.op.params) if v.op.primitive == "shard_map" else None
        if found and math.prod(found.values()) == num_devices:
            return found
    return None


def left_whole(groups: Mapping[int, Group], chosen: Mapping[int, Strategy]) -> Iterator[Visit]:
    """Local programs whose axes the plan's mesh does not have: their operands are whole, as for unknown operations."""
    for g, strategy in chosen.items():
        group = groups[g]
        if group.rule is not None and group.rule.exact and group.leader is not None and not strategy.factors:
            yield group.leader


def on_mesh(op: Op, mesh: Any) -> Mapping[str, Any] | None:
    """Parameters of a local program that runs on this mesh instead of its own one, which has the same axes and may have
    its devices in another order; None where the axes are others, or in another order (JAX refuses that)."""
    own = op.binding.params["mesh"]
    same = mesh is not None and tuple(own.shape.items()) == tuple(mesh.shape.items())
    return {**op.binding.params, "mesh": mesh} if same else None
