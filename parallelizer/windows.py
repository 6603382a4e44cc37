"""Local programs of windows: a block is completed with its neighbours' borders before the window slides over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from parallelizer.neighbours import completed
from passes.rules.exchanges import Border, Exchange
from passes.rules.windows import convolution, convolution_windows, pooling_gradient, pooling_windows, window

if TYPE_CHECKING:
    from parallelizer.islands import Local


def _completed(cut: Local, blocks: list[Any], halos: Sequence[Exchange], fills: Sequence[Any]) -> list[Any]:
    """Blocks with what their windows read."""
    blocks = list(blocks)
    for border in halos:
        axes = cut.operands[border.operand].dims[border.dim]
        if axes and isinstance(border, Border):
            i = border.operand
            blocks[i] = completed(blocks[i], border, axes, cut.sizes, fills[i])
    return blocks


def local_convolution(cut: Local, blocks: list[Any], **changes: Any) -> list[Any]:
    """Padding of a cut dimension is what the neighbours sent, and zeros at the ends of the array."""
    padding = list(cut.params["padding"])
    own = {
        a: w.swapped() if cut.operands[1].dims[b] else w
        for a, b, _, w in convolution_windows(cut.view)
        if cut.operands[0].dims[a]
    }
    blocks = _completed(cut, blocks, convolution(cut.view).halos, (None, None))
    for t, (a, _, _, _) in enumerate(convolution_windows(cut.view)):
        if a not in own:
            continue
        w = own[a]
        if w.drift:
            padding[t] = (0, 0)
            continue
        reach = (w.kernel - 1) * w.spread - w.stride - w.low + w.dilation
        low, high = w.low - w.before * w.dilation, reach - w.after * w.dilation
        if w.dilation == 1:  # what no window reads is cut off: XLA for CPU fails on some negative paddings
            n = blocks[0].shape[a]
            blocks[0] = lax.slice_in_dim(blocks[0], max(0, -low), n - max(0, -high), axis=a)
            low, high = max(0, low), max(0, high)
        padding[t] = (low, high)
    return cut.bind(blocks, padding=tuple(padding), **changes)


def _lowest(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).max


def _trimmed(cut: Local, blocks: list[Any], windows: Sequence[Any], count: int) -> tuple[list[Any], tuple[Any, ...]]:
    """Blocks without what no window reads, and the padding that is left to do."""
    padding = list(cut.params["padding"])
    for d, w in enumerate(windows):
        if not cut.operands[0].dims[d]:
            continue
        padding[d] = (0, 0)
        if w.drift:
            continue
        n = blocks[0].shape[d]
        start = max(0, -w.low)
        unread = max(0, w.stride + w.low - (w.kernel - 1) * w.spread - 1)
        blocks = [lax.slice_in_dim(b, start, n - unread, axis=d) if i < count else b for i, b in enumerate(blocks)]
    return blocks, tuple(padding)


def local_pooling(cut: Local, blocks: list[Any]) -> list[Any]:
    """Where the array ends stands what changes no result: the starting value, or what is never picked."""
    dtype = blocks[0].dtype
    primitive = cut.view.primitive
    rule = window(cut.view)
    count = sum(1 for s in cut.view.operands if s)
    if primitive == "reduce_window":
        fills = [*blocks[count:], *blocks[count:]]
    elif primitive == "select_and_gather_add":
        picks_high = cut.params["select_prim"].name == "ge"
        fills = [None, _lowest(blocks[1].dtype) if picks_high else _highest(blocks[1].dtype)]
    else:
        ends = {"reduce_window_max": _lowest(dtype), "reduce_window_min": _highest(dtype)}
        fills = [ends.get(primitive)]
    windows = pooling_windows(cut.view, cut.view.operands[0], cut.view.results[0])
    blocks = _completed(cut, blocks, rule.halos, fills)
    blocks, padding = _trimmed(cut, blocks, windows, count)
    return cut.bind(blocks, padding=padding)


def local_pooling_gradient(cut: Local, blocks: list[Any]) -> list[Any]:
    """Windows that overlap the block are computed whole; of their result the block is kept."""
    picks_high = cut.params["select_prim"].name == "ge"
    dtype = blocks[1].dtype
    rule = pooling_gradient(cut.view)
    shape = blocks[1].shape
    full = _completed(cut, blocks, rule.halos, (None, _lowest(dtype) if picks_high else _highest(dtype)))
    padding = list(cut.params["padding"])
    start = [0] * len(shape)
    for border in rule.halos:
        if isinstance(border, Border) and border.operand == 1 and cut.operands[1].dims[border.dim]:
            start[border.dim] = border.before
    for d, axes in enumerate(cut.operands[1].dims):
        if axes:
            padding[d] = (0, 0)
    (out,) = cut.bind(full, padding=tuple(padding))
    return [lax.slice(out, start, np.add(start, shape))]
