"""Operations that say themselves how they may be cut: `custom_partitioning` with a sharding rule.

JAX keeps the rule as Shardy has it: per array, the factors of every dimension. Factors that would need a reduction,
replication or permutation stay whole: how the user's partitioning deals with them is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from passes.rules.notation import DimFactors, Rule, factor_sizes, rule_of
from passes.rules.registry import View, rule


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
