"""Convolutions and pooling: batch and channels may be cut; dimensions with a window stay whole (they need halos)."""

from __future__ import annotations

import math

from passes.rules.notation import DimFactors, Rule, rule_of
from passes.rules.registry import View, rule


@rule("conv_general_dilated")
def convolution(view: View) -> Rule:
    """Batch and output channels pass through, input channels leave partial sums; grouped channels stay whole.

    2 FLOP per multiply-add: output elements times the kernel's elements per output channel.
    """
    numbers = view.params["dimension_numbers"]
    lhs_spec, rhs_spec, out_spec = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    lhs, rhs, out = view.operands[0], view.operands[1], view.results[0]
    left: list[DimFactors] = [() for _ in lhs]
    right: list[DimFactors] = [() for _ in rhs]
    result: list[DimFactors] = [() for _ in out]
    sizes: dict[str, int] = {}
    reduced: dict[str, str] = {}
    if view.params["batch_group_count"] == 1:
        sizes["b"] = lhs[lhs_spec[0]]
        left[lhs_spec[0]] = result[out_spec[0]] = ("b",)
        if view.params["feature_group_count"] == 1:
            sizes["i"], sizes["o"] = lhs[lhs_spec[1]], rhs[rhs_spec[0]]
            left[lhs_spec[1]] = right[rhs_spec[1]] = ("i",)
            right[rhs_spec[0]] = result[out_spec[1]] = ("o",)
            reduced["i"] = "sum"
    flop = 2.0 * math.prod(out) * math.prod(rhs) / max(1, rhs[rhs_spec[0]])
    return rule_of((tuple(left), tuple(right)), (tuple(result),), sizes, reduced=reduced, flop=flop, kind="contraction")


@rule(
    "reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window", "select_and_scatter_add",
    "select_and_gather_add",
)  # fmt: skip
def window(view: View) -> Rule:
    """Dimensions whose window is one element pass through."""
    sizes = view.params["window_dimensions"]
    moved = {d for d, n in enumerate(sizes) if n != 1}
    for name in ("window_strides", "padding"):
        for d, x in enumerate(view.params.get(name) or ()):
            if x not in (1, (0, 0)):
                moved.add(d)
    return view.along(moved, flop=float(view.result_elements * math.prod(sizes)))
