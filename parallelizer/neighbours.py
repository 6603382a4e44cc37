"""What blocks of a cut dimension send each other inside a local program: borders, turned positions, totals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from passes.rules.exchanges import Border, Turn

Axes = tuple[str, ...]


def line_of(axes: Axes, sizes: Mapping[str, int]) -> tuple[Axes, list[int]]:
    """The axes in the mesh's order, and the devices' numbers along them in the order of the blocks.

    JAX counts the positions along several axes in the mesh's order, whatever order they are named in.
    """
    among = tuple(a for a in sizes if a in axes)
    places = np.arange(math.prod(sizes[a] for a in axes)).reshape([sizes[a] for a in among])
    return among, [int(p) for p in places.transpose([among.index(a) for a in axes]).reshape(-1)]


def with_border(block: Any, border: Border, axes: Axes, sizes: Mapping[str, int], fill: Any) -> Any:
    """The block between the last elements of the block before it and the first of the block after it; `fill` stands
    where the array ends (None: what zeros mean)."""
    among, line = line_of(axes, sizes)
    up = list(zip(line[:-1], line[1:], strict=True))
    before, after = border.reach(len(line))
    parts = [block]
    n = block.shape[border.dim]
    if before:
        last = lax.slice_in_dim(block, n - before, n, axis=border.dim)
        came = lax.ppermute(last, among, up)
        parts.insert(0, _ended(came, lax.axis_index(axes) == 0, fill))
    if after:
        first = lax.slice_in_dim(block, 0, after, axis=border.dim)
        came = lax.ppermute(first, among, [(b, a) for a, b in up])
        parts.append(_ended(came, lax.axis_index(axes) == len(line) - 1, fill))
    return lax.concatenate(parts, border.dim) if len(parts) > 1 else block


def _ended(came: Any, outside: Any, fill: Any) -> Any:
    """What came from a neighbour; devices without one have received zeros."""
    if fill is None:
        return came
    return lax.select(lax.broadcast(outside, came.shape), jnp.full_like(came, fill), came)


def completed(block: Any, border: Border, axes: Axes, sizes: Mapping[str, int], fill: Any) -> Any:
    """The elements that this device's block of the result reads."""
    pieces = math.prod(sizes[a] for a in axes)
    full = with_border(block, border, axes, sizes, fill)
    if not border.drift:
        return full
    length = border.length(pieces, block.shape[border.dim])
    first, _ = border.needs(0, pieces)
    start = border.reach(pieces)[0] - first - lax.axis_index(axes) * (border.drift // pieces)
    return lax.dynamic_slice_in_dim(full, start, length, border.dim)


def turned(block: Any, turn: Turn, axes: Axes, sizes: Mapping[str, int]) -> Any:
    """The block of the turned array."""
    among, line = line_of(axes, sizes)
    pieces = len(line)
    parts = []
    for away, first, count in turn.parts(pieces, block.shape[turn.dim] * pieces):
        part = lax.slice_in_dim(block, first, first + count, axis=turn.dim)
        ring = [(line[p], line[(p + away) % pieces]) for p in range(pieces)]
        parts.append(lax.ppermute(part, among, ring) if away else part)
    return lax.concatenate(parts, turn.dim) if len(parts) > 1 else parts[0]


def totals(last: Any, dim: int, axes: Axes) -> Any:
    """The `last` element along `dim` of every block, in the order of the blocks."""
    return lax.all_gather(last, axes, axis=dim, tiled=True)
