"""Collectives that travel together: local programs that send the blocks of several arrays as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from parallelizer.moves import island
from passes.ir.sharding import Pack, Packed, Sharding


def gather_together(pack: Pack, arrays: Sequence[Any], forms: Sequence[Sharding], mesh: Mesh) -> list[Any]:
    """Every array with its member's dimension gathered, by one all-gather. Blocks travel flat, one after the other.

    The pack's axes must be the minor ones of that dimension.
    """
    ((_, axes),) = pack.stages
    targets = [_shorter(f, m.dims[0], axes) for f, m in zip(forms, pack.members, strict=True)]

    def body(*blocks: Any) -> Any:
        rows = lax.all_gather(jnp.concatenate([b.reshape(-1) for b in blocks]), axes, axis=0, tiled=False)
        out, start = [], 0
        for block, member in zip(blocks, pack.members, strict=True):
            (d,) = member.dims
            part = rows[:, start : start + block.size].reshape(rows.shape[0], *block.shape)
            shape = (*block.shape[:d], block.shape[d] * rows.shape[0], *block.shape[d + 1 :])
            out.append(jnp.moveaxis(part, 0, d).reshape(shape))
            start += block.size
        return tuple(out)

    return list(island(body, forms, targets, mesh)(*arrays))


def reduce_together(pack: Pack, arrays: Sequence[Any], results: Sequence[Sharding], mesh: Mesh) -> list[Any]:
    """Unfinished sums, finished and scattered onto `results`: each stage is one collective of all arrays."""
    counts = [math.prod(mesh.shape[a] for a in axes) for kind, axes in pack.stages if kind == "reduce_scatter"]
    partial = tuple(a for _, axes in pack.stages for a in axes)
    sums = [Sharding(_before(r, pack, m).dims, partial) for r, m in zip(results, pack.members, strict=True)]

    def body(*blocks: Any) -> Any:
        rows, shapes = [], []
        for block, member in zip(blocks, pack.members, strict=True):
            parts = block[0]
            for k, (n, d) in enumerate(zip(counts, (d for d in member.dims if d >= 0), strict=True)):
                shape, at = parts.shape, k + d  # the places of earlier stages come first
                parts = parts.reshape(*shape[:at], n, shape[at] // n, *shape[at + 1 :])
                parts = jnp.moveaxis(parts, at, k)
            rows.append(parts.reshape(*counts, -1))
            shapes.append(parts.shape[len(counts) :])
        mine = jnp.concatenate(rows, axis=-1)
        for kind, axes in pack.stages:
            if kind == "reduce_scatter":
                mine = lax.psum_scatter(mine, axes, scatter_dimension=0, tiled=False)
            else:
                mine = lax.psum(mine, axes)
        out, start = [], 0
        for row, shape in zip(rows, shapes, strict=True):
            out.append(mine[start : start + row.shape[-1]].reshape(shape))
            start += row.shape[-1]
        return tuple(out)

    return list(island(body, sums, results, mesh)(*arrays))


def _before(result: Sharding, pack: Pack, member: Packed) -> Sharding:
    """The form before the stages: what they scatter is whole."""
    for (kind, axes), d in reversed(list(zip(pack.stages, member.dims, strict=True))):
        if kind == "reduce_scatter":
            result = _shorter(result, d, axes)
    return result


def _shorter(form: Sharding, dim: int, axes: tuple[str, ...]) -> Sharding:
    """The form without the pack's axes on a dimension. ValueError if they are not its minor ones."""
    on = form.dims[dim]
    if on[len(on) - len(axes) :] != axes:
        raise ValueError(f"dimension {dim} of {form} does not end with {'*'.join(axes)}")
    return Sharding((*form.dims[:dim], on[: len(on) - len(axes)], *form.dims[dim + 1 :]))
