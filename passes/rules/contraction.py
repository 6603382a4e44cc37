"""Matrix products: batch, row and column factors pass through, contracted factors leave partial sums."""

from __future__ import annotations

from passes.rules.notation import Rule, rule_of
from passes.rules.registry import View, rule


@rule("dot_general")
def dot_general(view: View) -> Rule:
    (contract_l, contract_r), (batch_l, batch_r) = view.params["dimension_numbers"]
    lhs, rhs = view.operands[0], view.operands[1]
    left: dict[int, str] = {}
    right: dict[int, str] = {}
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
    flop = 2.0
    for n in sizes.values():
        flop *= n
    return rule_of(
        (tuple((left[d],) for d in range(len(lhs))), tuple((right[d],) for d in range(len(rhs)))),
        (tuple((f,) for f in result),),
        sizes,
        reduced={f: "sum" for f in sizes if f[0] == "k"},
        flop=flop,
        kind="contraction",
    )
