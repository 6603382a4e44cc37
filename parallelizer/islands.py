"""Local programs: what one device computes of an operation on its blocks, before partial sums are finished.

Most primitives run unchanged on smaller blocks. The table at the end lists those that do not: parameters that hold
shapes, positions that count from the array's beginning, look-ups in a table of which a device has some rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from parallelizer import compat
from parallelizer.ragged import local_ragged_dot
from parallelizer.shifts import (
    local_dynamic_slice,
    local_dynamic_update_slice,
    local_pad,
    local_roll,
    local_running,
    local_slice,
)
from parallelizer.windows import local_convolution, local_pooling, local_pooling_gradient
from passes.ir.graph import Op
from passes.ir.sharding import Reduction, Sharding
from passes.rules.registry import View, registered_for

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """An operation on blocks. `operands` / `results` are shardings (results before partial sums are finished),
    `shapes` / `result_shapes` the whole arrays' shapes; a constant operand has the sharding of a scalar."""

    op: Op
    operands: tuple[Sharding, ...]
    results: tuple[Sharding, ...]
    shapes: tuple[Shape, ...]
    result_shapes: tuple[Shape, ...]
    sizes: Mapping[str, int]
    summed: tuple[str, ...]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.op.params

    @property
    def view(self) -> View:
        """The whole operation, as rules see it."""
        return View(self.op.primitive, self.shapes, self.result_shapes, (), self.op.params)

    def operand_block(self, i: int) -> Shape:
        return self.operands[i].local_shape(self.shapes[i], self.sizes)

    def result_block(self, i: int = 0) -> Shape:
        return self.results[i].local_shape(self.result_shapes[i], self.sizes)

    def bind(self, blocks: Sequence[Any], **changes: Any) -> list[Any]:
        return compat.bind(self.op.binding, blocks, params={**self.op.binding.params, **changes}, inside=True)


Rule = Callable[[Local, list[Any]], list[Any]]


def run_local(local: Local, blocks: list[Any]) -> list[Any]:
    """The operation's local results. ValueError if cutting it this way needs more than a local program."""
    own = registered_for(local.op)
    if own is not None and own[1].local is not None:
        made = own[1].local(local.params, *blocks)
        return list(made) if isinstance(made, tuple | list) else [made]
    rule = _RULES.get(local.op.primitive)
    return local.bind(blocks) if rule is None else rule(local, blocks)


def finish(block: Any, reductions: Sequence[Reduction]) -> Any:
    """Apply reductions in order to a local result."""
    for r in reductions:
        if r.dim is not None:
            if r.combine != "sum":
                raise ValueError(f"only sums can be scattered, not {r.combine}")
            block = lax.psum_scatter(block, r.axes, scatter_dimension=r.dim, tiled=True)
        else:
            block = _COMBINE[r.combine](block, r.axes)
    return block


def before_reductions(result: Sharding, reductions: Sequence[Reduction]) -> Sharding:
    """The sharding of the local result: scattered dimensions are still whole."""
    for r in reductions:
        if r.dim is not None:
            for axis in r.axes:
                result = result.without(axis)
    return Sharding(result.dims)


def _all(block: Any, axes: tuple[str, ...]) -> Any:
    return lax.pmin(block.astype(jnp.int32), axes).astype(block.dtype)


def _any(block: Any, axes: tuple[str, ...]) -> Any:
    return lax.pmax(block.astype(jnp.int32), axes).astype(block.dtype)


_COMBINE: Mapping[str, Callable[[Any, tuple[str, ...]], Any]] = {
    "sum": lax.psum,
    "max": lax.pmax,
    "min": lax.pmin,
    "and": _all,
    "or": _any,
}


def _resized(parameter: str) -> Rule:
    """A parameter that holds the result's shape."""
    return lambda local, blocks: local.bind(blocks, **{parameter: local.result_block()})


def _foreign(local: Local, blocks: list[Any]) -> list[Any]:
    """Calls that are told the shapes of their results."""
    avals = local.params["result_avals"]
    shapes = [local.result_block(i) for i in range(len(avals))]
    return local.bind(blocks, result_avals=tuple(a.update(shape=s) for a, s in zip(avals, shapes, strict=True)))


def _iota(local: Local, blocks: list[Any]) -> list[Any]:
    """Counting starts at the block's place."""
    dim = local.params["dimension"]
    shape = local.result_block()
    (out,) = local.bind(blocks, shape=shape)
    axes = local.results[0].dims[dim]
    return [out + (lax.axis_index(axes) * shape[dim]).astype(out.dtype) if axes else out]


def _whole_window(local: Local, dim: int, size: int) -> int:
    """The size of a window on operand dimension `dim` of a block, given its size on the whole array."""
    if not local.operands[0].dims[dim]:
        return size
    if size != local.shapes[0][dim]:
        raise ValueError(f"{local.op.primitive}: a part of dimension {dim} is taken, which is cut")
    return local.operand_block(0)[dim]


def _convolution(local: Local, blocks: list[Any]) -> list[Any]:
    """A device that has some of the groups convolves these."""
    numbers = local.params["dimension_numbers"]
    changes = {}
    for parameter, dim in (
        ("feature_group_count", numbers.lhs_spec[1]),
        ("batch_group_count", numbers.lhs_spec[0]),
    ):
        groups = local.params[parameter]
        cut = local.shapes[0][dim] // local.operand_block(0)[dim]
        if groups > 1 and cut > 1:
            if groups % cut:
                raise ValueError(f"convolution: {groups} groups do not divide by {cut}")
            changes[parameter] = groups // cut
    return local_convolution(local, blocks, **changes)


def _shifted(indices: Any, component: int, axes: tuple[str, ...], rows: int) -> tuple[Any, Any]:
    """Indices as seen from the block's first row, and which of them lie in the block."""
    column = indices[..., component]
    first = (lax.axis_index(axes) * rows).astype(column.dtype)
    inside = (column >= first) & (column < first + rows)
    return indices.at[..., component].set(column - first), inside


def _wide(indices: Any) -> Any:
    """Indices of a type that can count a block's rows and be negative."""
    return indices if indices.dtype.itemsize >= 4 else indices.astype(jnp.int32)


def _mode(local: Local) -> str:
    return getattr(local.params["mode"], "name", str(local.params["mode"]))


def _clipped(indices: Any, dims: Sequence[int], sizes: Shape) -> Any:
    """Indices moved into the array, as the mode CLIP asks for."""
    top = np.array([sizes[d] - 1 for d in dims])
    return jnp.clip(indices, 0, top.astype(indices.dtype))


def _gather(local: Local, blocks: list[Any]) -> list[Any]:
    """Rows of a table of which each device has some: what it lacks counts as zero, the sum is left to reductions."""
    numbers = local.params["dimension_numbers"]
    windows = list(local.params["slice_sizes"])
    looked_up: list[int] = []
    for d, axes in enumerate(local.operands[0].dims):
        if axes and d in numbers.start_index_map and windows[d] == 1 != local.shapes[0][d]:
            looked_up.append(d)
        elif axes and d not in numbers.operand_batching_dims:
            windows[d] = _whole_window(local, d, windows[d])
    table, indices = blocks
    if not looked_up:
        return local.bind(blocks, slice_sizes=tuple(windows))
    mode = _mode(local)
    if mode == "CLIP":
        indices = _clipped(indices, numbers.start_index_map, local.shapes[0])
    indices = _wide(indices)
    last = np.array([local.shapes[0][d] - n for d, n in enumerate(local.params["slice_sizes"])])
    outside = jnp.any((indices < 0) | (indices > last[list(numbers.start_index_map)].astype(indices.dtype)), axis=-1)
    inside: Any = True
    for d in looked_up:
        component = numbers.start_index_map.index(d)
        indices, here = _shifted(indices, component, local.operands[0].dims[d], local.operand_block(0)[d])
        inside = inside & here
    # What is read outside is not used, so any place in the block will do.
    clip = type(local.params["mode"]).CLIP
    (rows,) = local.bind([table, indices], slice_sizes=tuple(windows), mode=clip)
    batch = [d for d in range(rows.ndim) if d not in numbers.offset_dims]
    rows = jnp.where(lax.broadcast_in_dim(inside, rows.shape, batch), rows, jnp.zeros((), rows.dtype))
    if mode == "FILL_OR_DROP":
        # Exactly one device may answer for a row that no device has.
        axes = tuple(a for d in looked_up for a in local.operands[0].dims[d])
        filled = (lax.axis_index(axes) == 0) & lax.broadcast_in_dim(outside, rows.shape, batch)
        rows = jnp.where(filled, _fill_value(local, rows.dtype), rows)
    return [rows]


def _fill_value(local: Local, dtype: Any) -> Any:
    """What a gather answers for an index outside, as JAX documents it."""
    given = local.params.get("fill_value")
    if given is not None:
        return jnp.asarray(given, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return jnp.asarray(jnp.iinfo(dtype).min, dtype)
    return jnp.asarray(True if jnp.issubdtype(dtype, jnp.bool_) else jnp.iinfo(dtype).max, dtype)


def _scatter(local: Local, blocks: list[Any]) -> list[Any]:
    """Updates to a table of which each device has some rows: those of other rows are dropped. Where each device has
    some updates, all but one start from zero, so that the sum counts the table once."""
    operand, indices, updates = blocks
    numbers = local.params["dimension_numbers"]
    scattered = numbers.scatter_dims_to_operand_dims
    changes: dict[str, Any] = {}
    cut = [d for d in scattered if local.operands[0].dims[d]]
    windows = [d for d in range(len(local.shapes[0])) if d not in numbers.inserted_window_dims]
    windows = [d for d in windows if d not in numbers.operand_batching_dims]
    for d in cut:
        if d in windows:
            update = local.shapes[2][numbers.update_window_dims[windows.index(d)]]
            _whole_window(local, d, update)
    rows = [d for d in cut if d not in windows]
    if rows:
        if _mode(local) == "CLIP":
            indices = _clipped(indices, scattered, local.shapes[0])
        indices = _wide(indices)
        for d in rows:
            indices, _ = _shifted(indices, scattered.index(d), local.operands[0].dims[d], local.operand_block(0)[d])
        changes["mode"] = type(local.params["mode"]).FILL_OR_DROP
    if local.summed and local.op.primitive in ("scatter-add", "scatter-sub"):
        operand = jnp.where(lax.axis_index(local.summed) == 0, operand, jnp.zeros((), operand.dtype))
    return local.bind([operand, indices, updates], **changes)


def _sum(local: Local, blocks: list[Any]) -> list[Any]:
    """Addends of which some are unfinished sums: the complete ones must count once."""
    arriving = tuple(dict.fromkeys(a for s in local.operands for a in s.partial))
    if arriving:
        shape = local.result_block()
        whole = [b if s.partial else jnp.broadcast_to(b, shape) for b, s in zip(blocks, local.operands, strict=True)]
        blocks = [_once(b, s, arriving) for b, s in zip(whole, local.operands, strict=True)]
    return local.bind(blocks)


def _once(block: Any, sharding: Sharding, axes: tuple[str, ...]) -> Any:
    extra = tuple(a for a in axes if a not in sharding.partial)
    if not extra:
        return block
    return jnp.where(lax.axis_index(extra) == 0, block, jnp.zeros((), block.dtype))


_RULES: Mapping[str, Rule] = {
    "ffi_call": _foreign,
    "pure_callback": _foreign,
    "broadcast_in_dim": _resized("shape"),
    "reshape": _resized("new_sizes"),
    "iota": _iota,
    "slice": local_slice,
    "dynamic_slice": local_dynamic_slice,
    "dynamic_update_slice": local_dynamic_update_slice,
    "pad": local_pad,
    "roll": local_roll,
    "cumsum": local_running,
    "cumprod": local_running,
    "cummax": local_running,
    "cummin": local_running,
    "cumlogsumexp": local_running,
    "conv_general_dilated": _convolution,
    "reduce_window": local_pooling,
    "reduce_window_max": local_pooling,
    "reduce_window_min": local_pooling,
    "reduce_window_sum": local_pooling,
    "select_and_gather_add": local_pooling,
    "select_and_scatter_add": local_pooling_gradient,
    "ragged_dot_general": local_ragged_dot,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-max": _scatter,
    "scatter-min": _scatter,
    "scatter-mul": _scatter,
    "scatter-sub": _scatter,
    "add": _sum,
    "add_any": _sum,
    "sub": _sum,
}
