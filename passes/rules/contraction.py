"""Matrix products: batch, row and column factors pass through, contracted factors leave partial sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from passes.rules.notation import DimFactors, Rule, rule_of
from passes.rules.registry import View, rule

_Names = dict[int, str]  # dimension of an operand -> factor


@rule("dot_general")
def dot_general(view: View) -> Rule:
    lhs, rhs = view.operands[0], view.operands[1]
    left, right, result, sizes = _product(view.params["dimension_numbers"], lhs, rhs)
    return rule_of(
        (_dims(left, lhs), _dims(right, rhs)),
        (tuple((f,) for f in result),),
        sizes,
        reduced={f: "sum" for f in sizes if f[0] == "k"},
        flop=2.0 * math.prod(sizes.values()),
        kind="contraction",
    )


@rule("scaled_dot")
def scaled_dot(view: View) -> Rule:
    """Operands of few bits, each with scales that stand for blocks of the contracted dimension: that one stays whole
    where a block is longer than one element."""
    lhs, rhs = view.operands[0], view.operands[1]
    left, right, result, sizes = _product(view.params["dimension_numbers"], lhs, rhs)
    contracted = {f for f in sizes if f[0] == "k"}
    scales = tuple(
        tuple((names[d],) if n == shape[d] and names[d] not in contracted else () for d, n in enumerate(scale))
        for scale, shape, names in zip(view.operands[2:], (lhs, rhs), (left, right), strict=False)
    )
    return rule_of(
        (_dims(left, lhs), _dims(right, rhs), *scales),
        (tuple((f,) for f in result),),
        sizes,
        fixed=contracted,
        flop=2.0 * math.prod(sizes.values()),
        kind="contraction",
    )


@rule("ragged_dot_general")
def ragged_dot_general(view: View) -> Rule:
    """One product per group of rows: rows that stand one after the other belong to one group (an expert).

    Rows may be cut, each device then has other group sizes. Groups may be cut: each device computes the rows of its
    own, which leaves partial sums, or, where the rows are contracted (the gradient of the experts), its own results.
    """
    numbers = view.params["ragged_dot_dimension_numbers"]
    lhs, rhs = view.operands[0], view.operands[1]
    left, right, result, sizes = _product(numbers.dot_dimension_numbers, lhs, rhs)
    ragged = left[numbers.lhs_ragged_dimensions[0]]
    reduced = {f: "sum" for f in sizes if f[0] == "k"}
    flop = 2.0 * math.prod(sizes.values())
    groups = [right[d] for d in numbers.rhs_group_dimensions]
    if groups:  # the factor of the groups is no column of the result
        flop /= math.prod(sizes[g] for g in groups)
        result = [f for f in result if f not in groups]
        reduced.update(dict.fromkeys(groups, "sum"))
    elif ragged[0] == "k":
        sizes["groups"] = view.results[0][0]
        result = ["groups", *result]
        groups = ["groups"]
    plain = len(view.operands[2]) == 1 and ragged[0] != "b"
    # Sizes of groups may differ along batch dimensions, then along those of the ragged one's kind in front of it.
    kind = [f for f in left.values() if f[0] == ragged[0]]
    prefix = [f for f in left.values() if f[0] == "b" and ragged[0] != "b"] + kind[: kind.index(ragged)]
    counts = tuple((f,) for f in prefix[: len(view.operands[2]) - 1])
    found = rule_of(
        (_dims(left, lhs), _dims(right, rhs), (*counts, ()), *(tuple(() for _ in s) for s in view.operands[3:])),
        (tuple((f,) for f in result),),
        sizes,
        reduced=reduced,
        fixed=frozenset() if plain else {ragged, *groups},
        flop=flop,
        kind="contraction",
    )
    return replace(found, copied=frozenset(groups))  # a device's groups have their rows turned to the front, and back


def _dims(names: _Names, shape: tuple[int, ...]) -> tuple[DimFactors, ...]:
    return tuple((names[d],) for d in range(len(shape)))


def _product(
    numbers: Sequence[Any], lhs: tuple[int, ...], rhs: tuple[int, ...]
) -> tuple[_Names, _Names, list[str], dict[str, int]]:
    """Factors of both operands and of the result, and their sizes: b* batch, k* contracted, m* rows, n* columns."""
    (contract_l, contract_r), (batch_l, batch_r) = numbers
    left: _Names = {}
    right: _Names = {}
    sizes: dict[str, int] = {}
    for i, (a, b) in enumerate(zip(batch_l, batch_r, strict=True)):
        left[a] = right[b] = f"b{i}"
        sizes[f"b{i}"] = lhs[a]
    for i, (a, b) in enumerate(zip(contract_l, contract_r, strict=True)):
        left[a] = right[b] = f"k{i}"
        sizes[f"k{i}"] = lhs[a]
    rows = [d for d in range(len(lhs)) if d not in left]
    columns = [d for d in range(len(rhs)) if d not in right]
    for i, d in enumerate(rows):
        left[d] = f"m{i}"
        sizes[f"m{i}"] = lhs[d]
    for i, d in enumerate(columns):
        right[d] = f"n{i}"
        sizes[f"n{i}"] = rhs[d]
    result = [f"b{i}" for i in range(len(batch_l))] + [left[d] for d in rows] + [right[d] for d in columns]
    return left, right, result, sizes
