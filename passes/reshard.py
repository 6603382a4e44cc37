"""The cheapest steps from one sharding of an array to another on one mesh.

Shardings of an array are the nodes of a graph whose edges are single collectives: an all-gather of minor axes, a local
slice, an all-to-all that moves the minor axis of one dimension to the minor place of another, a permute that swaps the
order of axes. The cheapest sequence is a shortest path; all pairs are computed at once (Floyd-Warshall on at most a few
hundred nodes), so pricing a pair of strategies is one look-up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cost_model.collectives import collective_latency_s, collective_s
from cost_model.mesh import LogicalMesh
from passes.ir import Sharding, Step

Dims = tuple[tuple[str, ...], ...]

# A path of several steps that costs the same as a shorter one is never wanted; a slice moves nothing but is not
# quite free.
_SLICE_S = 1e-9


# What joining a combined collective costs a tensor all the same, as a share of an all-reduce's latency: being copied
# in and out. The same for every kind, so that one all-reduce is cheaper than a reduce-scatter and an all-gather of
# few bytes.
_JOINING = 0.02


def combined_s(kind: str, mesh: LogicalMesh, axes: tuple[str, ...], size_bytes: float, latency_share: float) -> float:
    """Seconds of a collective that pays only a share of its latency, because the compiler combines it with others."""
    seconds = float(collective_s(kind, mesh, axes, size_bytes))
    if latency_share < 1.0:
        seconds -= (1 - latency_share) * collective_latency_s(mesh, axes, kind)
        seconds += _JOINING * collective_latency_s(mesh, axes, "all_reduce")
    return seconds


@dataclass(frozen=True, slots=True)
class _Move:
    """An edge of the graph: `divisor` is by how many pieces the larger of operand and result is cut."""

    source: int
    target: int
    kind: str
    axes: tuple[str, ...]
    dim: int
    to_dim: int
    divisor: int


@dataclass(frozen=True)
class Forms:
    """All shardings of an array of given rank whose cuts divide `limits`, and the single steps between them."""

    sizes: tuple[tuple[str, int], ...]
    limits: tuple[int, ...]

    @cached_property
    def dims(self) -> tuple[Dims, ...]:
        """Every sharding: each axis on some dimension or none, in every order within a dimension."""
        sizes = dict(self.sizes)
        axes = tuple(sizes)
        rank = len(self.limits)
        out: list[Dims] = []
        for places in itertools.product(range(-1, rank), repeat=len(axes)):
            per_dim = [tuple(a for a, p in zip(axes, places, strict=True) if p == d) for d in range(rank)]
            if all(self.limits[d] % _product(sizes, on) == 0 for d, on in enumerate(per_dim)):
                out += itertools.product(*(itertools.permutations(on) for on in per_dim))
        return tuple(out)

    @cached_property
    def index(self) -> dict[Dims, int]:
        return {d: i for i, d in enumerate(self.dims)}

    @cached_property
    def moves(self) -> tuple[_Move, ...]:
        sizes = dict(self.sizes)
        out: list[_Move] = []
        for i, dims in enumerate(self.dims):
            cut = _product(sizes, [a for d in dims for a in d])
            used = {a for d in dims for a in d}
            for d, on in enumerate(dims):
                for k in range(1, len(on) + 1):
                    gathered = on[-k:]
                    self._add(
                        out, i, _put(dims, d, on[:-k]), "all_gather", gathered, d, -1, cut // _product(sizes, gathered)
                    )
                for other in range(len(dims)):
                    if other != d and on:
                        moved = _put(_put(dims, d, on[:-1]), other, (*dims[other], on[-1]))
                        self._add(out, i, moved, "all_to_all", (on[-1],), d, other, cut)
                for order in itertools.permutations(on):
                    if order != on:
                        self._add(out, i, _put(dims, d, order), "permute", on, d, d, cut)
                for a, _ in self.sizes:
                    if a not in used:
                        self._add(out, i, _put(dims, d, (*on, a)), "slice", (a,), -1, d, cut)
        return tuple(out)

    def _add(
        self,
        out: list[_Move],
        i: int,
        dims: Dims,
        kind: str,
        axes: tuple[str, ...],
        dim: int,
        to_dim: int,
        divisor: int,
    ) -> None:
        j = self.index.get(dims)
        if j is not None:
            out.append(_Move(i, j, kind, axes, dim, to_dim, divisor))


class ReshardTable:
    """Prices and steps between all shardings of one array on one mesh."""

    def __init__(self, forms: Forms, size_bytes: int, mesh: LogicalMesh, latency_share: float = 1.0) -> None:
        self.forms = forms
        self.size_bytes = size_bytes
        n = len(forms.dims)
        cost = np.full((n, n), np.inf)
        best = np.full((n, n), -1, dtype=np.int32)
        prices: dict[tuple[str, tuple[str, ...], int], float] = {}
        for m, move in enumerate(forms.moves):
            key = (move.kind, move.axes, move.divisor)
            if key not in prices:
                if move.kind == "slice":
                    prices[key] = _SLICE_S
                else:
                    prices[key] = combined_s(move.kind, mesh, move.axes, size_bytes / move.divisor, latency_share)
            if prices[key] < cost[move.source, move.target]:
                cost[move.source, move.target] = prices[key]
                best[move.source, move.target] = m
        np.fill_diagonal(cost, 0.0)
        self.cost, self._middle = _all_pairs(cost)
        self._best = best

    def price(self, source: Dims, target: Dims) -> float:
        return float(self.cost[self.forms.index[source], self.forms.index[target]])

    def steps(self, source: Dims, target: Dims) -> tuple[Step, ...]:
        i, j = self.forms.index[source], self.forms.index[target]
        return tuple(self._step(m) for m in self._path(i, j))

    def _path(self, i: int, j: int) -> list[_Move]:
        if i == j:
            return []
        k = int(self._middle[i, j])
        if k < 0:
            return [self.forms.moves[int(self._best[i, j])]]
        return self._path(i, k) + self._path(k, j)

    def _step(self, move: _Move) -> Step:
        size = 0 if move.kind == "slice" else self.size_bytes // move.divisor
        return Step(move.kind, move.axes, Sharding(self.forms.dims[move.target]), size, move.dim, move.to_dim)


class Reshards:
    """Tables by what they depend on, made once per planning."""

    def __init__(self, mesh: LogicalMesh) -> None:
        self.mesh = mesh
        self.sizes = tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
        self._forms: dict[tuple[int, ...], Forms] = {}
        self._tables: dict[tuple[tuple[int, ...], int, float], ReshardTable] = {}

    def forms(self, shape: tuple[int, ...]) -> Forms:
        """Shapes that allow the same cuts share their forms: only the common divisors with the mesh matter."""
        limits = tuple(_common(n, self.sizes) for n in shape)
        if limits not in self._forms:
            self._forms[limits] = Forms(self.sizes, limits)
        return self._forms[limits]

    def table(self, shape: tuple[int, ...], itemsize: int, latency_share: float = 1.0) -> ReshardTable:
        """Prices for arrays of this shape. `latency_share` is the part of a collective's latency that this array pays
        where the compiler combines it with others."""
        forms = self.forms(shape)
        size = itemsize
        for n in shape:
            size *= n
        key = (forms.limits, size, latency_share)
        if key not in self._tables:
            self._tables[key] = ReshardTable(forms, size, self.mesh, latency_share)
        return self._tables[key]


def plan_reshard(
    shape: tuple[int, ...], itemsize: int, source: Sharding, target: Sharding, mesh: LogicalMesh
) -> tuple[Step, ...]:
    """The cheapest steps from `source` to `target` for one array of `shape`; empty when they are equal.

    Raises KeyError when one of them does not divide the shape.
    """
    return Reshards(mesh).table(shape, itemsize).steps(source.dims, target.dims)


def _all_pairs(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shortest paths between all pairs, and a node on the way (-1: the direct edge). Strict improvement keeps ties
    short."""
    cost = cost.copy()
    middle = np.full(cost.shape, -1, dtype=np.int32)
    for k in range(len(cost)):
        through = cost[:, k, None] + cost[None, k, :]
        better = through < cost * (1 - 1e-12)
        if better.any():
            cost = np.where(better, through, cost)
            middle[better] = k
    return cost, middle


def _put(dims: Dims, d: int, on: tuple[str, ...]) -> Dims:
    return (*dims[:d], on, *dims[d + 1 :])


def _product(sizes: Mapping[str, int], axes: Iterable[str]) -> int:
    n = 1
    for a in axes:
        n *= sizes[a]
    return n


def _common(n: int, sizes: tuple[tuple[str, int], ...]) -> int:
    """Largest product of mesh axes' prime parts that divides n: what cuts of n are legal depends on this alone."""
    total = 1
    for _, k in sizes:
        total *= k
    return int(np.gcd(n, total)) if n else total
