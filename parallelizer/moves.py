"""Shardings as JAX spells them, and a reshard as a local program with exactly the planned collectives.

A value that is an unfinished sum over some mesh axes is held as an array with one more dimension in front, cut over
these axes: every device has one addend. So partial sums are ordinary arrays that pass through loops and constraints.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from passes.ir.sharding import Sharding, Step


class Planner(Protocol):
    """Chooses the steps of a reshard. Both shardings are complete (no partial sums)."""

    def __call__(
        self, shape: tuple[int, ...], itemsize: int, source: Sharding, target: Sharding
    ) -> tuple[Step, ...]: ...


class MeshShape(Protocol):
    """What `to_jax_mesh` reads of a logical mesh."""

    @property
    def axis_names(self) -> tuple[str, ...]: ...
    @property
    def axis_sizes(self) -> tuple[int, ...]: ...
    @property
    def device_order(self) -> tuple[int, ...]: ...


def to_jax_mesh(logical_mesh: MeshShape, devices: Sequence[Any]) -> Mesh:
    """A JAX mesh with Auto axes; `devices[k]` is the device at physical index k of the topology."""
    order = logical_mesh.device_order
    if len(devices) < len(order):
        raise ValueError(f"the mesh has {len(order)} devices, {len(devices)} are given")
    placed = np.empty(len(order), dtype=object)
    placed[:] = [devices[k] for k in order]
    axes = tuple(logical_mesh.axis_names)
    return Mesh(placed.reshape(logical_mesh.axis_sizes), axes, axis_types=(AxisType.Auto,) * len(axes))


def to_spec(sharding: Sharding) -> PartitionSpec:
    """JAX's spelling, without trailing Nones; the dimension that holds partial sums comes first."""
    dims = list(sharding.dims)
    if sharding.partial:
        dims.insert(0, sharding.partial)
    while dims and not dims[-1]:
        dims.pop()
    return PartitionSpec(*(None if not d else d[0] if len(d) == 1 else d for d in dims))


def from_spec(spec: Sequence[Any], rank: int) -> Sharding:
    """The reverse of `to_spec` for a complete value. ValueError for more entries than dimensions or open ones."""
    if len(spec) > rank:
        raise ValueError(f"{spec} has {len(spec)} entries for an array of rank {rank}")
    dims: list[tuple[str, ...]] = []
    for entry in spec:
        if entry is None:
            dims.append(())
        elif isinstance(entry, str):
            dims.append((entry,))
        elif isinstance(entry, tuple | list):
            dims.append(tuple(entry))
        else:
            raise ValueError(f"{spec}: {entry!r} does not say how the dimension is cut")
    return Sharding((*dims, *((),) * (rank - len(dims))))


def named(sharding: Sharding, mesh: Mesh) -> NamedSharding:
    """The sharding on a mesh."""
    return NamedSharding(mesh, to_spec(sharding))


def pin(x: Any, sharding: Sharding, mesh: Mesh) -> Any:
    """State the form that a value has; moves nothing where it has it already."""
    return lax.with_sharding_constraint(x, named(sharding, mesh))


def gather_and_slice(
    shape: tuple[int, ...], itemsize: int, source: Sharding, target: Sharding, sizes: Mapping[str, int]
) -> tuple[Step, ...]:
    """A plain planner: gather what is cut differently, then cut. Correct for any pair; rarely the cheapest."""
    size = itemsize * math.prod(shape)
    steps: list[Step] = []
    now = source
    for d, (have, want) in enumerate(zip(source.dims, target.dims, strict=True)):
        kept = 0
        while kept < min(len(have), len(want)) and have[kept] == want[kept]:
            kept += 1
        if kept < len(have):
            now = Sharding((*now.dims[:d], have[:kept], *now.dims[d + 1 :]))
            steps.append(Step("all_gather", have[kept:], now, size // now.cut(sizes), dim=d))
    for d, want in enumerate(target.dims):
        missing = want[len(now.dims[d]) :]
        if missing:
            now = Sharding((*now.dims[:d], want, *now.dims[d + 1 :]))
            steps.append(Step("slice", missing, now, 0, to_dim=d))
    return tuple(steps)


def reshard(x: Any, source: Sharding, target: Sharding, steps: Sequence[Step], mesh: Mesh, repeat: int = 0) -> Any:
    """Bring `x` from `source` to `target`: finish or start partial sums, then take the steps, all in one local program.

    `steps` lead from the dimensions of `source` to those of `target`. ValueError for steps that do not. `repeat` counts
    equal moves of the same value that must not be merged with this one: the blocks travel in another shape, because
    XLA for CPU forgets barriers before it looks for common subexpressions (those for TPU and GPU keep them).
    """
    reached = steps[-1].to.dims if steps else source.dims
    if reached != target.dims:
        raise ValueError(f"the steps end at {Sharding(reached)} and not at {target}")
    finish = tuple(a for a in source.partial if a not in target.partial)
    start = tuple(a for a in target.partial if a not in source.partial)
    taken = [a for a in (*source.axes, *target.axes) if a in start]
    if taken:
        raise ValueError(f"{source} to {target}: {', '.join(taken)} cannot both cut the value and sum over it")

    def body(block: Any) -> Any:
        block = block[0] if source.partial else block
        if finish:
            block = lax.psum(block, finish)
        now = Sharding(source.dims)
        for i, step in enumerate(steps):
            ones = repeat if i == 0 else 0
            shaped = block.reshape((1,) * ones + block.shape)
            block = local_step(_deeper(step, ones), _deeper_form(now, ones), shaped, mesh)
            block = block.reshape(block.shape[ones:])
            now = Sharding(step.to.dims)
        if start:
            block = only_first(block, start)
        return block[None] if target.partial else block

    return island(body, (source,), (target,), mesh)(x)


def island(
    body: Callable[..., Any], operands: Sequence[Sharding], results: Sequence[Sharding], mesh: Mesh
) -> Callable[..., Any]:
    """`body` on local blocks of all mesh axes: the compiler has no choice left inside. One result is returned bare."""
    outs: Any = tuple(to_spec(s) for s in results)
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=tuple(to_spec(s) for s in operands),
        out_specs=outs[0] if len(outs) == 1 else outs,
        check_vma=False,
    )


def only_first(block: Any, axes: tuple[str, ...]) -> Any:
    """The block on the first device along `axes`, zeros elsewhere: a complete value as a sum over `axes`."""
    return lax.select(lax.broadcast(lax.axis_index(axes) == 0, block.shape), block, lax.full_like(block, 0))


def axis_index(axes: Sequence[str], mesh: Mesh) -> Any:
    """Position of the device along `axes`, the first one major. As `lax.axis_index` of several axes, made of fewer
    operations: a program has hundreds of these."""
    index = lax.axis_index(axes[0])
    for axis in axes[1:]:
        index = lax.add(lax.mul(index, np.int32(mesh.shape[axis])), lax.axis_index(axis))
    return index


def local_step(step: Step, before: Sharding, block: Any, mesh: Mesh) -> Any:
    """One step on a device's block, which has the sharding `before`."""
    axes = step.axes
    if step.kind == "all_gather":
        _expect(before.dims[step.dim] == (*step.to.dims[step.dim], *axes), step, before)
        return lax.all_gather(block, axes, axis=step.dim, tiled=True)
    if step.kind == "all_to_all":
        _expect(before.dims[step.dim] == (*step.to.dims[step.dim], *axes), step, before)
        _expect(step.to.dims[step.to_dim] == (*before.dims[step.to_dim], *axes), step, before)
        return lax.all_to_all(block, axes, split_axis=step.to_dim, concat_axis=step.dim, tiled=True)
    if step.kind == "slice":
        _expect(step.to.dims[step.to_dim] == (*before.dims[step.to_dim], *axes), step, before)
        size = block.shape[step.to_dim] // math.prod(mesh.shape[a] for a in axes)
        start = lax.mul(axis_index(axes, mesh), np.int32(size))
        starts: list[Any] = [np.int32(0)] * block.ndim
        starts[step.to_dim] = start
        sizes = [size if d == step.to_dim else n for d, n in enumerate(block.shape)]
        return lax.dynamic_slice(block, starts, sizes, allow_negative_indices=False)
    if step.kind == "permute":
        involved, pairs = permutation(before, step.to, dict(mesh.shape))
        return lax.ppermute(block, involved, pairs)
    if step.kind == "all_reduce":
        return lax.psum(block, axes)
    if step.kind == "reduce_scatter":
        dim = step.to_dim if step.to_dim >= 0 else step.dim
        return lax.psum_scatter(block, axes, scatter_dimension=dim, tiled=True)
    raise ValueError(f"unknown step {step.kind!r}")


def _deeper_form(sharding: Sharding, ones: int) -> Sharding:
    return Sharding((*((),) * ones, *sharding.dims), sharding.partial)


def _deeper(step: Step, ones: int) -> Step:
    """The step on an array with `ones` more dimensions of size 1 in front."""
    dim = step.dim + ones if step.dim >= 0 else step.dim
    to_dim = step.to_dim + ones if step.to_dim >= 0 else step.to_dim
    return replace(step, dim=dim, to_dim=to_dim, to=_deeper_form(step.to, ones))


def _expect(condition: bool, step: Step, before: Sharding) -> None:
    if not condition:
        raise ValueError(f"{step.kind} over {'*'.join(step.axes)} does not lead from {before} to {step.to}")


def permutation(
    before: Sharding, after: Sharding, sizes: Mapping[str, int]
) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Who sends its block to whom when only the places of blocks change: (axes, [(source, destination)]).

    Positions count over the axes, the first one major. A device that holds the block it needs keeps it.
    """
    pairs = [(b, a) for b, a in zip(before.dims, after.dims, strict=True) if b != a]
    used = {axis for b, a in pairs for axis in (*b, *a)}
    axes = tuple(axis for axis in sizes if axis in used)
    counts = [sizes[a] for a in axes]
    holders: dict[tuple[int, ...], list[int]] = defaultdict(list)
    wanters: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for position in range(math.prod(counts)):
        at = dict(zip(axes, np.unravel_index(position, counts), strict=True))
        holders[tuple(_block(b, at, sizes) for b, _ in pairs)].append(position)
        wanters[tuple(_block(a, at, sizes) for _, a in pairs)].append(position)
    moves: list[tuple[int, int]] = []
    for block, wanting in wanters.items():
        holding = holders[block]
        if len(holding) != len(wanting):
            raise ValueError(f"{before} to {after} is no permutation of blocks")
        stay = sorted(set(holding) & set(wanting))
        moves += [(p, p) for p in stay]
        moves += zip((p for p in holding if p not in stay), (p for p in wanting if p not in stay), strict=True)
    return axes, sorted(moves)


def _block(dim: tuple[str, ...], at: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Which block of a dimension a device has."""
    index = 0
    for axis in dim:
        index = index * sizes[axis] + int(at[axis])
    return index
