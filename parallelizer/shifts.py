"""Local programs of operations that shift along a cut dimension: slices, pads, turns, updates, running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from parallelizer.neighbours import completed, totals, turned
from passes.rules.exchanges import Border, Exchange, Turn
from passes.rules.movement import pad, roll, slice_

if TYPE_CHECKING:
    from parallelizer.islands import Local


def _border_of(halos: tuple[Exchange, ...], dim: int) -> Border | None:
    return next((h for h in halos if isinstance(h, Border) and h.dim == dim), None)


def local_slice(cut: Local, blocks: list[Any]) -> list[Any]:
    """A cut dimension is taken in full, every n-th element of every block, all but a few elements (the neighbours'
    borders complete the block), or a small part of it: zeros on devices that do not hold it."""
    (x,) = blocks
    p, halos = cut.params, slice_(cut.view).halos
    starts, limits = list(p["start_indices"]), list(p["limit_indices"])
    strides = p["strides"] or (1,) * len(limits)
    inside: Any = None
    for d, axes in enumerate(cut.operands[0].dims):
        if not axes:
            continue
        border = _border_of(halos, d)
        if cut.result_shapes[0][d] * strides[d] == cut.shapes[0][d]:
            limits[d] = cut.operand_block(0)[d]
            continue
        if strides[d] != 1:
            raise ValueError(f"slice: a part of dimension {d} is taken in steps, which is cut")
        if cut.results[0].dims[d] and border is not None:
            x = completed(x, border, axes, cut.sizes, None)
        else:
            here, x = _own_part(x, d, axes, starts[d], limits[d] - starts[d])
            inside = here if inside is None else inside & here
        starts[d], limits[d] = 0, x.shape[d]
    (out,) = cut.bind([x], start_indices=tuple(starts), limit_indices=tuple(limits))
    return [out if inside is None else jnp.where(inside, out, jnp.zeros((), out.dtype))]


def _own_part(x: Any, dim: int, axes: tuple[str, ...], start: Any, count: int) -> tuple[Any, Any]:
    """(which of the elements from `start` lie in this block, these elements along `dim` with others where they do
    not)."""
    block = x.shape[dim]
    at = jnp.asarray(start, jnp.int32) - lax.axis_index(axes).astype(jnp.int32) * block + jnp.arange(count)
    part = jnp.take(x, jnp.clip(at, 0, block - 1), axis=dim, indices_are_sorted=True)
    return ((at >= 0) & (at < block)).reshape([count if d == dim else 1 for d in range(x.ndim)]), part


def local_pad(cut: Local, blocks: list[Any]) -> list[Any]:
    """Of a cut dimension every element is padded alike, a few elements come before or after the array, or it is put
    into an array that is much longer, of which each device makes its block."""
    x, fill = blocks
    halos = pad(cut.view).halos
    configs = [tuple(c) for c in cut.params["padding_config"]]
    for d, (low, high, inner) in enumerate(configs):
        axes, result = cut.operands[0].dims[d], cut.results[0].dims[d]
        border = _border_of(halos, d)
        if not result or (low + high == inner and low >= 0 and high >= 0):
            continue
        if axes and border is not None:
            x = completed(x, border, axes, cut.sizes, fill)
        elif not axes and not inner:
            x = _placed(x, d, result, low, cut.result_block()[d], fill)
        else:
            raise ValueError(f"pad: dimension {d} is padded, which is cut")
        configs[d] = (0, 0, 0)
    return cut.bind([x, fill], padding_config=tuple(configs))


def _placed(x: Any, dim: int, axes: tuple[str, ...], low: int, block: int, fill: Any) -> Any:
    """This device's block of the array that has `low` elements `fill` before `x` along `dim`."""
    room = [(block, block, 0) if d == dim else (0, 0, 0) for d in range(x.ndim)]
    start = lax.axis_index(axes) * block - low + block
    return lax.dynamic_slice_in_dim(lax.pad(x, fill, room), jnp.clip(start, 0, x.shape[dim] + block), block, dim)


def local_dynamic_slice(cut: Local, blocks: list[Any]) -> list[Any]:
    """A cut dimension is taken in full, or one element of it: zeros on devices that do not hold it."""
    x, *starts = blocks
    sizes, inside = list(cut.params["slice_sizes"]), None
    for d, axes in enumerate(cut.operands[0].dims):
        whole = cut.shapes[0][d]
        if axes and sizes[d] == whole:
            sizes[d] = cut.operand_block(0)[d]
        elif axes:
            start = jnp.clip(jnp.asarray(starts[d], jnp.int32), 0, whole - sizes[d])
            here, x = _own_part(x, d, axes, start, sizes[d])
            starts[d] = jnp.zeros_like(starts[d])
            inside = here if inside is None else inside & here
    (out,) = cut.bind([x, *starts], slice_sizes=tuple(sizes))
    return [out if inside is None else jnp.where(inside, out, jnp.zeros((), out.dtype))]


def local_dynamic_update_slice(cut: Local, blocks: list[Any]) -> list[Any]:
    """A cut dimension is written in full, or one position of it: by the device that holds it."""
    x, update, *starts = blocks
    inside: Any = True
    for d, axes in enumerate(cut.operands[0].dims):
        whole = cut.shapes[0][d]
        if axes and cut.shapes[1][d] != whole:
            block = x.shape[d]
            at = jnp.clip(jnp.asarray(starts[d], jnp.int32), 0, whole - 1)
            at = at - lax.axis_index(axes).astype(jnp.int32) * block
            inside = inside & (at >= 0) & (at < block)
            starts[d] = jnp.clip(at, 0, block - 1).astype(jnp.asarray(starts[d]).dtype)
    if inside is not True:
        old = lax.dynamic_slice(x, starts, update.shape)
        update = jnp.where(inside, update, old)
    return cut.bind([x, update, *starts])


def local_roll(cut: Local, blocks: list[Any]) -> list[Any]:
    """Elements that leave a block go to another one."""
    dim = cut.params["dimension"]
    axes = cut.operands[0].dims[dim]
    if not axes:
        return cut.bind(blocks)
    (turn,) = (h for h in roll(cut.view).halos if isinstance(h, Turn))
    return [turned(blocks[0], turn, axes, cut.sizes)]


def _lowest(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).max


# Per running operation: what it starts from, how many are folded into one, and how two are joined.
_RUNNING: Mapping[str, tuple[Callable[[Any], Any], Callable[..., Any], Callable[[Any, Any], Any]]] = {
    "cumsum": (lambda dtype: 0, jnp.sum, lax.add),
    "cumprod": (lambda dtype: 1, jnp.prod, lax.mul),
    "cummax": (_lowest, jnp.max, lax.max),
    "cummin": (_highest, jnp.min, lax.min),
    "cumlogsumexp": (lambda dtype: -jnp.inf, jax.nn.logsumexp, jnp.logaddexp),
}


def local_running(cut: Local, blocks: list[Any]) -> list[Any]:
    """Every block runs on its own, and what the blocks before it came to is joined to all of it."""
    (own,) = cut.bind(blocks)
    dim, backwards = cut.params["axis"], cut.params["reverse"]
    axes = cut.operands[0].dims[dim]
    if not axes:
        return [own]
    start, fold, join = _RUNNING[cut.op.primitive]
    at = 0 if backwards else own.shape[dim] - 1
    every = totals(lax.slice_in_dim(own, at, at + 1, axis=dim), dim, axes)
    place = lax.broadcasted_iota(jnp.int32, every.shape, dim)
    here = lax.axis_index(axes)
    earlier = place > here if backwards else place < here
    none = jnp.full_like(every, start(own.dtype))
    before = fold(jnp.where(earlier, every, none), axis=dim, keepdims=True).astype(own.dtype)
    return [join(own, jnp.broadcast_to(before, own.shape))]
