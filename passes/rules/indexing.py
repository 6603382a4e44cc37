"""Reads and writes at computed positions: embedding tables, label picking, and their gradients."""

from __future__ import annotations

import math

from passes.rules.notation import DimFactors, Rule, rule_of
from passes.rules.registry import View, rule


@rule("gather")
def gather(view: View) -> Rule:
    """Batch dimensions follow the indices, whole slices follow the operand, picked rows may be cut (masked, then
    summed).

    A dimension of which only part is read per index stays whole. With rows cut, every device reads what it holds and
    the results add up, so the factor counts as reduced.
    """
    d = view.params["dimension_numbers"]
    operand, indices = view.operands[0], view.operands[1]
    out = view.results[0]
    slice_sizes = view.params["slice_sizes"]
    sizes: dict[str, int] = {}
    op_dims: list[DimFactors] = [() for _ in operand]
    idx_dims: list[DimFactors] = [() for _ in indices]
    out_dims: list[DimFactors] = [() for _ in out]
    index_batch = [i for i in range(len(indices) - 1)]
    out_batch = [i for i in range(len(out)) if i not in d.offset_dims]
    for k, (i, o) in enumerate(zip(index_batch, out_batch, strict=True)):
        name = f"i{k}"
        sizes[name] = indices[i]
        idx_dims[i] = out_dims[o] = (name,)
    for od, idim in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True):
        op_dims[od] = idx_dims[idim]
    windows = [i for i in range(len(operand)) if i not in d.collapsed_slice_dims and i not in d.operand_batching_dims]
    for k, (i, o) in enumerate(zip(windows, d.offset_dims, strict=True)):
        if slice_sizes[i] == operand[i]:
            name = f"w{k}"
            sizes[name] = operand[i]
            op_dims[i] = out_dims[o] = (name,)
    reduced, indexed = {}, set()
    if len(d.start_index_map) == 1 and d.start_index_map[0] in d.collapsed_slice_dims:
        sizes["v"] = operand[d.start_index_map[0]]
        op_dims[d.start_index_map[0]] = ("v",)
        reduced["v"], indexed = "sum", {"v"}
    return rule_of(
        (tuple(op_dims), tuple(idx_dims)), (tuple(out_dims),), sizes, reduced=reduced, indexed=indexed, kind="indexing"
    )


@rule("scatter-add", "scatter-sub")
def scatter_add(view: View) -> Rule:
    """Updates along batch dimensions of the indices leave partial sums; rows of the result may be cut without moving
    anything."""
    return _scatter(view, reduces=True)


@rule("scatter", "scatter-mul", "scatter-min", "scatter-max")
def scatter(view: View) -> Rule:
    """As scatter-add, but updates that meet cannot be finished by a sum: their batch dimensions stay whole."""
    return _scatter(view, reduces=False)


def _scatter(view: View, reduces: bool) -> Rule:
    d = view.params["dimension_numbers"]
    operand, indices, updates = view.operands[0], view.operands[1], view.operands[2]
    sizes: dict[str, int] = {}
    op_dims: list[DimFactors] = [() for _ in operand]
    idx_dims: list[DimFactors] = [() for _ in indices]
    upd_dims: list[DimFactors] = [() for _ in updates]
    update_batch = [i for i in range(len(updates)) if i not in d.update_window_dims]
    reduced: dict[str, str] = {}
    fixed: set[str] = set()
    for k, (i, u) in enumerate(zip(range(len(indices) - 1), update_batch, strict=True)):
        name = f"i{k}"
        sizes[name] = indices[i]
        idx_dims[i] = upd_dims[u] = (name,)
        if i not in d.scatter_indices_batching_dims:
            if reduces:
                reduced[name] = "sum"
            else:
                fixed.add(name)
    for od, idim in zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True):
        op_dims[od] = idx_dims[idim]
    windows = [i for i in range(len(operand)) if i not in d.inserted_window_dims and i not in d.operand_batching_dims]
    for k, (i, u) in enumerate(zip(windows, d.update_window_dims, strict=True)):
        if updates[u] == operand[i]:
            name = f"w{k}"
            sizes[name] = operand[i]
            op_dims[i] = upd_dims[u] = (name,)
    indexed = set()
    rows = d.scatter_dims_to_operand_dims
    if len(rows) == 1 and rows[0] in d.inserted_window_dims:
        sizes["v"] = operand[rows[0]]
        op_dims[rows[0]] = ("v",)
        indexed = {"v"}
    return rule_of(
        (tuple(op_dims), tuple(idx_dims), tuple(upd_dims)), (tuple(op_dims),), sizes,
        reduced=reduced, fixed=fixed, indexed=indexed, kind="indexing",
        flop=0.0 if view.primitive == "scatter" else float(math.prod(updates)),
    )  # fmt: skip
