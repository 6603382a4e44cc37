"""Local programs of products by groups of rows, of which each device has some rows or some groups."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from parallelizer.islands import Local


def local_ragged_dot(cut: Local, blocks: list[Any]) -> list[Any]:
    """The groups of a device's rows have other sizes; a device's groups have their rows brought to the front."""
    numbers = cut.params["ragged_dot_dimension_numbers"]
    lhs, rhs, sizes, *rest = blocks
    row = numbers.lhs_ragged_dimensions[0]
    (contract_l, contract_r), _ = numbers.dot_dimension_numbers
    contracted = row in contract_l
    by_rows = cut.operands[0].dims[row]
    by_groups = cut.results[0].dims[0] if contracted else cut.operands[1].dims[numbers.rhs_group_dimensions[0]]
    if not by_rows and not by_groups:
        return cut.bind(blocks)
    ends = jnp.cumsum(sizes)
    starts = ends - sizes
    rows = lhs.shape[row]
    if by_rows:
        first = (lax.axis_index(by_rows) * rows).astype(ends.dtype)
        starts, ends = (jnp.clip(x - first, 0, rows) for x in (starts, ends))
    if not by_groups:
        return cut.bind([lhs, rhs, ends - starts, *rest])
    count = sizes.shape[0] // math.prod(cut.sizes[a] for a in by_groups)
    at = lax.axis_index(by_groups) * count
    starts, ends = (lax.dynamic_slice_in_dim(x, at, count) for x in (starts, ends))
    before = starts[0]
    lhs = jnp.roll(lhs, -before, row)
    if contracted:
        rhs = jnp.roll(rhs, -before, contract_r[list(contract_l).index(row)])
        return cut.bind([lhs, rhs, ends - starts, *rest])
    (made,) = cut.bind([lhs, rhs, ends - starts, *rest])
    out = _row_of_result(numbers, row, len(lhs.shape))
    place = lax.broadcasted_iota(ends.dtype, made.shape, out)
    made = jnp.where(place < ends[-1] - before, made, jnp.zeros((), made.dtype))
    return [jnp.roll(made, before, out)]


def _row_of_result(numbers: Any, row: int, rank: int) -> int:
    """The result's dimension that the ragged rows become: batch dimensions first, then what is not contracted."""
    (contract_l, _), (batch_l, _) = numbers.dot_dimension_numbers
    kept = [d for d in range(rank) if d not in contract_l and d not in batch_l]
    return len(batch_l) + kept.index(row)
