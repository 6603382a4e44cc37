"""What arguments say of their own shardings: shapes with shardings, and axis names that flax keeps beside arrays."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from parallelizer.signature import Call


@dataclass(frozen=True, slots=True)
class Given:
    """The sharding that an argument came with: `what` says how it says so, `mesh` its axes (empty where only their
    names are known)."""

    what: str
    spec: PartitionSpec
    mesh: Mapping[str, int] = field(default_factory=dict)


def given_shardings(
    call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Given]:
    """By path, the arguments that say how they are cut; `paths` are those of all leaves.

    A `jax.ShapeDtypeStruct` says it by a `NamedSharding`. Arrays do not: they lie somewhere, which need not be where
    the user wants them. Boxes of flax.linen (`nn.Partitioned`) and variables of flax.nnx say it by names of mesh axes,
    or of logical axes with rules.
    """
    boxes = _boxes()
    current = dict(jax.sharding.get_abstract_mesh().shape)  # of jax.set_mesh: what flax's names mean by themselves
    found: list[Given | None] = []
    for _, tree, _ in call.arguments(args, kwargs):
        for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, boxes)):
            inside = jax.tree.leaves(leaf)
            boxed = _of_box(leaf, current) if isinstance(leaf, boxes) else None
            found += [_of_struct(x) or boxed for x in inside]
    return {p: g for p, g in zip(paths, found, strict=True) if g is not None}


def _boxes() -> tuple[type, ...]:
    """Classes of flax that carry axis names; none where the user has not imported flax."""
    linen, nnx = sys.modules.get("flax.core.meta"), sys.modules.get("flax.nnx")
    return tuple(x for x in (getattr(linen, "AxisMetadata", None), getattr(nnx, "Variable", None)) if x is not None)


def _of_struct(x: Any) -> Given | None:
    sharding = getattr(x, "sharding", None)
    if not isinstance(x, jax.ShapeDtypeStruct) or not isinstance(sharding, NamedSharding):
        return None
    return Given("the sharding of argument", sharding.spec, dict(sharding.mesh.shape))


def _of_box(box: Any, current: Mapping[str, int]) -> Given | None:
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(box, nnx.Variable):
        metadata = box.get_metadata()
        named = any(metadata.get(k) is not None for k in ("out_sharding", "sharding_names", "sharding"))
        spec, mesh = (nnx.get_partition_spec(box).get_raw_value() if named else None), metadata.get("mesh")
    else:
        spec, mesh = _linen_spec(box), getattr(box, "mesh", None)
    if not isinstance(spec, PartitionSpec):
        return None
    return Given("flax's axis names of argument", spec, dict(mesh.shape) if mesh is not None else current)


def _linen_spec(box: Any) -> PartitionSpec | None:
    """Names of mesh axes; logical names become such by the box's rules, or those of `nn.logical_axis_rules`."""
    if not hasattr(box, "get_partition_spec"):
        return None
    spec = box.get_partition_spec()
    linen = sys.modules.get("flax.linen")
    if linen is None or not isinstance(box, linen.LogicallyPartitioned):
        return spec if isinstance(spec, PartitionSpec) else None
    rules = box.rules or linen.get_logical_axis_rules()
    found = linen.logical_to_mesh_axes(tuple(spec), rules) if rules else None
    return found if isinstance(found, PartitionSpec) else None
