"""Reductions over whole dimensions, and scans along a dimension."""

from __future__ import annotations

import math
from dataclasses import replace

from passes.rules.exchanges import Totals
from passes.rules.notation import Rule, letters, rule_of
from passes.rules.registry import View, rule

_COMBINE = {
    "reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_and": "and", "reduce_or": "or",
    "reduce_prod": "prod", "reduce_xor": "xor",
}  # fmt: skip
# A cut that these leave unfinished can be finished by an all-reduce of the same kind; the others stay whole.
_FINISHABLE = {"sum", "max", "min"}


@rule(*_COMBINE)
def reduce(view: View) -> Rule:
    shape = view.operands[0]
    axes = set(view.params["axes"])
    combine = _COMBINE[view.primitive]
    names = letters(len(shape))
    gone = {names[d] for d in axes}
    return rule_of(
        (tuple((n,) for n in names),),
        (tuple((names[d],) for d in range(len(shape)) if d not in axes),),
        dict(zip(names, shape, strict=True)),
        reduced={n: combine for n in gone} if combine in _FINISHABLE else {},
        fixed=gone if combine not in _FINISHABLE else frozenset(),
        flop=float(math.prod(shape) - view.result_elements),
        kind="reduction",
    )


@rule("argmax", "argmin")
def arg(view: View) -> Rule:
    """The reduced dimension stays whole: the winner of a block does not say where the others stand."""
    shape = view.operands[0]
    axes = set(view.params["axes"])
    names = letters(len(shape))
    return rule_of(
        (tuple((n,) for n in names),),
        (tuple((names[d],) for d in range(len(shape)) if d not in axes),),
        dict(zip(names, shape, strict=True)),
        fixed={names[d] for d in axes},
        flop=float(math.prod(shape)),
        kind="reduction",
    )


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(view: View) -> Rule:
    """Where the dimension is cut every block runs on its own, and what the blocks before it came to is added."""
    found = view.along(set(), flop=float(view.result_elements), kind="lines")
    axis = view.params["axis"]
    return replace(found, halos=(Totals(found.operands[0][axis][0], 0, axis),))


@rule("sort")
def sort(view: View) -> Rule:
    return view.along({view.params["dimension"]}, kind="lines")


@rule("top_k")
def top_k(view: View) -> Rule:
    return view.along({view.params["axis"] if "axis" in view.params else len(view.results[0]) - 1}, kind="lines")


@rule("approx_top_k")
def approx_top_k(view: View) -> Rule:
    return view.along({view.params["reduction_dimension"] % len(view.results[0])}, kind="lines")


@rule("reduce")
def general_reduce(view: View) -> Rule:
    """Any function folded over dimensions of several arrays at once, then the starting values: what a device lacks
    cannot be added later."""
    count = len(view.results)
    shape = view.operands[0]
    gone = set(view.params["dimensions"])
    names = letters(len(shape))
    arrays = tuple(tuple((n,) for n in names) for _ in range(count))
    return rule_of(
        (*arrays, *(() for _ in range(count))),
        tuple(tuple((names[d],) for d in range(len(shape)) if d not in gone) for _ in range(count)),
        dict(zip(names, shape, strict=True)),
        fixed={names[d] for d in gone},
        flop=float(count * (math.prod(shape) - view.result_elements)),
        kind="reduction",
    )
