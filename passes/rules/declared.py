"""Operations that say themselves how they may be cut: `custom_partitioning` with a sharding rule, a user's `shard_map`.

JAX keeps the rule as Shardy has it: per array, the factors of every dimension. Factors that would need a reduction,
replication or permutation stay whole: how the user's partitioning deals with them is its own affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from passes.rules.exchanges import Own
from passes.rules.notation import DimFactors, Rule, factor_sizes, rule_of
from passes.rules.registry import View, known_rule, rule


@rule("custom_partitioning")
def _custom_partitioning(view: View) -> Rule:
    declared = view.params.get("sharding_rule")
    if declared is None or not hasattr(declared, "operand_mappings"):
        return view.opaque()
    operands, results = _arrays(declared.operand_mappings), _arrays(declared.result_mappings)
    if [len(a) for a in (*operands, *results)] != [len(s) for s in (*view.operands, *view.results)]:
        return view.opaque()
    sizes = factor_sizes("sharding_rule", (operands, results), (view.operands, view.results), declared.factor_sizes)
    on_results = {f for array in results for dim in array for f in dim}
    every = {f for array in (*operands, *results) for dim in array for f in dim}
    named = ("reduction_factors", "need_replication_factors", "permutation_factors")
    fixed = {f for name in named for f in getattr(declared, name, ())} | (every - on_results)
    return rule_of(operands, results, sizes, fixed=fixed & every)


def _arrays(mappings: Iterable[Iterable[Any]]) -> tuple[tuple[DimFactors, ...], ...]:
    """Per array and dimension the names of its factors; a compound one is a tuple."""
    return tuple(tuple((dim,) if isinstance(dim, str) else tuple(dim) for dim in array) for array in mappings)


@rule("shard_map")
def shard_map(view: View) -> Rule:
    """A local program of the user's own: cut by its `in_specs` and `out_specs` on a mesh that has its axes, else whole.

    Every list of axes that cuts a dimension is a factor; one axis may be in several lists (what is kept for the
    backward pass is cut by all axes). A program that leaves axes of its mesh to the compiler is whole. Its FLOP are
    such that each device has its share when all factors are cut.
    """
    mesh = own_mesh(view.params)
    specs = (*view.params["in_specs"], *view.params["out_specs"])
    shapes = (*view.operands, *view.results)
    if mesh is None or len(specs) != len(shapes):
        return view.opaque()
    exact: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, int] = {}
    arrays: list[tuple[DimFactors, ...]] = []
    for spec, shape in zip(specs, shapes, strict=True):
        dims: list[DimFactors] = []
        for d, n in enumerate(shape):
            axes = tuple(a for a in _axes_of(spec[d] if d < len(spec) else None) if mesh.get(a, 1) > 1)
            name, pieces = "*".join(axes), math.prod(mesh[a] for a in axes)
            if axes:
                exact[name] = axes
                sizes[name] = pieces
                sizes[f"{name}.{n // pieces}"] = n // pieces
            dims.append(() if not axes else (name,) if n == pieces else (name, f"{name}.{n // pieces}"))
        arrays.append(tuple(dims))
    inside = inside_of(view.params["jaxpr"], mesh)
    count = len(view.operands)
    found = rule_of(
        tuple(arrays[:count]),
        tuple(arrays[count:]),
        sizes,
        flop=inside.flop * math.prod(mesh[a] for axes in exact.values() for a in axes),
    )
    return replace(found, mesh=tuple(mesh.items()), exact=exact, own=inside.collectives) if exact else view.opaque()


def own_mesh(params: Mapping[str, Any]) -> dict[str, int] | None:
    """The axes of a `shard_map`'s mesh, without those of size 1; None where it leaves some to the compiler."""
    mesh = {str(a): int(n) for a, n in dict(params["mesh"].shape).items() if n > 1}
    return mesh if set(mesh) <= set(params.get("newly_manual_axes") or params.get("manual_axes") or mesh) else None


def _axes_of(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


@dataclass(frozen=True, slots=True)
class Inside:
    """What one device does in a local program."""

    flop: float = 0.0
    collectives: tuple[Own, ...] = ()


_KINDS = {
    "psum": "all_reduce", "psum2": "all_reduce", "psum_invariant": "all_reduce", "pmax": "all_reduce",
    "pmin": "all_reduce", "all_gather": "all_gather", "all_gather_invariant": "all_gather",
    "reduce_scatter": "reduce_scatter", "ppermute": "permute", "all_to_all": "all_to_all",
}  # fmt: skip


def inside_of(jaxpr: Any, mesh: Mapping[str, int]) -> Inside:
    """FLOP by the rules of the operations within (loops multiplied, of branches the dearest), and the collectives."""
    flop, own = 0.0, list[Own]()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name in _KINDS:
            own += _collectives(name, equation, mesh)
            continue
        bodies = [b for key in ("jaxpr", "call_jaxpr", "body_jaxpr") if (b := params.get(key)) is not None]
        bodies = list(params["branches"]) if name == "cond" else bodies
        found = [inside_of(b, mesh) for b in bodies if hasattr(getattr(b, "jaxpr", b), "eqns")]
        if found:
            times = int(params["length"]) if name == "scan" else 1
            most = max(found, key=lambda i: i.flop)
            flop += times * most.flop
            own += [replace(o, runs=o.runs * times) for o in most.collectives]
            continue
        made = known_rule(_view(equation))
        flop += made.flop if made is not None else 0.0
    return Inside(flop, tuple(own))


def _view(equation: Any) -> View:
    operands, results = (
        tuple(tuple(int(n) for n in getattr(v.aval, "shape", ())) for v in side)
        for side in (equation.invars, equation.outvars)
    )
    dtypes = tuple(str(getattr(v.aval, "dtype", "")) for v in equation.invars)
    return View(equation.primitive.name, operands, results, dtypes, equation.params)


def _collectives(name: str, equation: Any, mesh: Mapping[str, int]) -> list[Own]:
    """One per array. Over axes of one device nothing is sent."""
    params = equation.params
    said = params.get("axes", params.get("axis_name", ()))
    axes = tuple(a for a in ((said,) if isinstance(said, str) else said) if mesh.get(a, 1) > 1)
    if not axes:
        return []
    arrays = [v.aval for v in (equation.outvars if _KINDS[name] == "all_gather" else equation.invars)]
    return [Own(_KINDS[name], axes, a.size, a.size * a.dtype.itemsize) for a in arrays]
