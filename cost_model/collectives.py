"""Time of a collective over mesh axes: latency + bytes / bandwidth, where the bandwidth depends on the size.

Every function takes a mesh, the axes that form the groups, and a size in bytes (a number, or a numpy array of them: the
result is then an array), and returns seconds. All groups run at once, and so share links where axes stride over a
dimension.

The model, with t the time of a transfer at full rate over one kind of links:

- A transfer takes t + sqrt(ramp * t): bandwidth grows smoothly with size. This form meets both published curves at hand
  with one constant each: TPU v7x all-gathers (72 GB/s at 1.6 MB, 179 GB/s at 400 MB) and NVLink (about 150 of 450 GB/s
  at 58 MB, 370 GB/s at several GB).
- Torus axes work together: a device takes in data through all links of all axes at once (both directions of a ring, the
  one inner link at the end of a line), and no cut of the box may carry more than its links do; the larger bound counts.
  Source of the ring formulas: scaling-book, `sharding`; an all-to-all moves n/8 of the local buffer over every link.
- Links of different kinds (dies, torus or NVLink, network) are levels of a hierarchy, and each outer one carries
  only one shard of the level inside. GPUs pipeline the levels (the slowest counts: scaling-book, `gpus`), the others
  take one after the other.
- TPU compilers turn some reduce-scatters into all-reduces, which take twice as long: `scatters` says which.
- Latency: a launch, plus hops: half a ring, a whole line, log2 of a switch (trees). An all-reduce goes both ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_model.mesh import LogicalMesh, Piece
from cost_model.scatters import scatters_by_reducing

Size = Any  # bytes: float, int or numpy array
Seconds = Any  # a float for a number, a numpy array for an array

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute", "broadcast", "slice")


@dataclass(frozen=True, slots=True)
class Leg:
    """A piece of links as one group sees it.

    `rate_bytes_per_s`: per device in one direction, after contention with the other groups. `ring`: whether the group
    can go round. `hop_s`: latency of one step along it.
    """

    size: int
    rate_bytes_per_s: float
    ring: bool
    hop_s: float

    @property
    def intake_bytes_per_s(self) -> float:
        """What the worst placed device takes in: both ways round a ring, one way at the end of a line."""
        return self.rate_bytes_per_s * (2 if self.ring else 1)


@dataclass(frozen=True, slots=True)
class Level:
    """Links that a collective uses together: the lines of a torus, or one switch (a single leg)."""

    kind: str
    legs: tuple[Leg, ...]
    ramp_s: float

    @property
    def size(self) -> int:
        return math.prod(leg.size for leg in self.legs)

    @property
    def torus(self) -> bool:
        return self.kind == "torus"


@dataclass(frozen=True, slots=True)
class Route:
    """What a collective over some axes uses: levels from the innermost (fastest) to the outermost."""

    levels: tuple[Level, ...]
    launch_s: float
    pipelined: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of one collective as a function of its size; call it with bytes (a number or an array).

    Per level i, t = size * `seconds_per_byte[i]` at full rate takes t + sqrt(`ramp_s[i]` * t); the levels add up, or
    the slowest counts (`slowest`). `latency_s` comes on top.
    """

    kind: str
    latency_s: float
    seconds_per_byte: tuple[float, ...]
    ramp_s: tuple[float, ...]
    slowest: bool

    def __call__(self, size_bytes: Size) -> Seconds:
        if isinstance(size_bytes, int | float):
            if not size_bytes >= 0:
                raise ValueError(f"{self.kind}: a size of {size_bytes} bytes")
            return self.latency_s + self._transfer(size_bytes, math.sqrt, max)
        size = np.asarray(size_bytes, dtype=np.float64)
        if not (size >= 0).all():
            raise ValueError(f"{self.kind}: a negative size in bytes")
        seconds = self.latency_s + self._transfer(size, np.sqrt, np.maximum)
        return np.full_like(size, seconds) if np.ndim(seconds) < size.ndim else seconds

    def _transfer(self, size: Any, sqrt: Any, larger: Any) -> Any:
        total: Any = 0.0
        for per_byte, ramp in zip(self.seconds_per_byte, self.ramp_s, strict=True):
            full = size * per_byte
            ramped = full + sqrt(ramp * full)
            total = larger(total, ramped) if self.slowest else total + ramped
        return total


def route(mesh: LogicalMesh, axes: Iterable[str]) -> Route:
    """The links under a group over `axes`; without levels when the group is a single device."""
    dims, chip = mesh.topology.dims, mesh.topology.chip
    levels: list[Level] = []
    torus: list[Piece] = []
    # Later dimensions are faster; of one dimension the smaller stride is the inner piece.
    for piece in sorted(mesh.pieces_of(axes), key=lambda p: (-p.dim, p.stride)):
        if dims[piece.dim].kind == "torus":
            torus.append(piece)
        else:
            levels.append(Level(dims[piece.dim].kind, (_leg(mesh, piece),), dims[piece.dim].ramp_s))
    if torus:
        level = Level("torus", tuple(_leg(mesh, p) for p in torus), max(dims[p.dim].ramp_s for p in torus))
        levels.insert(sum(1 for inner in levels if inner.kind == "die"), level)
    return Route(tuple(levels), chip.collective_launch_s, chip.platform == "gpu")


def _leg(mesh: LogicalMesh, piece: Piece) -> Leg:
    """On a torus, groups with a stride interleave and share each link; behind a switch a device has its own port."""
    dim = mesh.topology.dims[piece.dim]
    if dim.kind != "torus":
        return Leg(piece.size, dim.rate_between(piece.size, piece.stride), False, dim.latency_s)
    ring = dim.wrap and piece.size * piece.stride == dim.size
    return Leg(piece.size, dim.bandwidth_bytes_per_s / piece.stride, ring, dim.latency_s * piece.stride)


def curve(kind: str, mesh: LogicalMesh, axes: Iterable[str]) -> Curve:
    """The cost of a collective of `kind` (one of KINDS) over `axes` for all sizes: what to keep when pricing many.

    Raises ValueError for an unknown kind, MeshError for an unknown axis.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown collective {kind!r} (one of {', '.join(KINDS)})")
    axes = tuple(axes)
    way = route(mesh, axes)
    if kind == "slice" or not way.levels:
        return Curve(kind, 0.0, (), (), False)
    inside, costs, ramps = 1, [], []
    reducing = kind == "reduce_scatter" and scatters_by_reducing(mesh, axes)
    for level in way.levels:
        # An all-reduce is a reduce-scatter and an all-gather: twice the time at every size doubles both terms.
        passes = 2 if kind == "all_reduce" or (reducing and level.torus) else 1
        costs.append(passes * _seconds_per_byte(kind, level, inside))
        ramps.append(passes * level.ramp_s)
        inside *= level.size
    latency_s = _latency_s("all_reduce" if reducing else kind, way)
    return Curve(kind, latency_s, tuple(costs), tuple(ramps), way.pipelined or kind == "permute")


def collective_s(kind: str, mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """Seconds of a collective of `kind` over `axes`; sizes as the functions below say, "slice" is free.

    Zero over a group of one device. Raises ValueError for an unknown kind or axis, or a negative size.
    """
    return curve(kind, mesh, axes)(size_bytes)


def collective_latency_s(mesh: LogicalMesh, axes: Sequence[str], kind: str) -> float:
    """The part of `collective_s` that does not depend on the size: what combining two collectives saves."""
    return curve(kind, mesh, axes).latency_s


def all_gather_s(mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """`size_bytes`: the full, gathered buffer of one device."""
    return collective_s("all_gather", mesh, axes, size_bytes)


def reduce_scatter_s(mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """`size_bytes`: the full input of one device."""
    return collective_s("reduce_scatter", mesh, axes, size_bytes)


def all_reduce_s(mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """`size_bytes`: the buffer of one device. A reduce-scatter and an all-gather with one launch."""
    return collective_s("all_reduce", mesh, axes, size_bytes)


def all_to_all_s(mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """`size_bytes`: the local buffer of one device."""
    return collective_s("all_to_all", mesh, axes, size_bytes)


def permute_s(mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """`size_bytes`: the local buffer of one device, sent to a neighbour along the axes (over their slowest links)."""
    return collective_s("permute", mesh, axes, size_bytes)


def broadcast_s(mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """`size_bytes`: the buffer that one device of every group sends to the others, pipelined."""
    return collective_s("broadcast", mesh, axes, size_bytes)


def communication_streams(mesh: LogicalMesh, axes: Iterable[str]) -> tuple[str, ...]:
    """The streams (`simulate.Task`) that a collective over `axes` holds while it runs: one for each set of links.

    Collectives that share links queue behind each other, others run side by side: each dimension of a torus is a set of
    links of its own, a switch or a network is one. A GPU issues all collectives on one stream, whatever the links.
    """
    topology = mesh.topology
    if topology.platform == "gpu":
        return ("collectives",)
    dims = sorted({piece.dim for piece in mesh.pieces_of(axes)})
    return tuple(f"{topology.dims[d].kind} {d}" for d in dims) or ("none",)


def _latency_s(kind: str, way: Route) -> float:
    if kind == "permute":
        return way.launch_s + max(leg.hop_s for level in way.levels for leg in level.legs)
    hops = sum(_hops(level, leg) * leg.hop_s for level in way.levels for leg in level.legs)
    return way.launch_s + (2 if kind == "all_reduce" else 1) * hops


def _hops(level: Level, leg: Leg) -> float:
    """Steps until the farthest device is reached."""
    if not level.torus:
        return math.log2(leg.size)
    return leg.size / 2 if leg.ring else leg.size - 1


def _seconds_per_byte(kind: str, level: Level, inside: int) -> float:
    """At full rate, per byte of the collective's size; `inside` devices share what arrives over this level."""
    if kind == "all_to_all":
        return _exchange(level)
    if kind == "permute":
        # Both directions of a ring of two lead to the only other device.
        return 1 / min(leg.intake_bytes_per_s if leg.size == 2 else leg.rate_bytes_per_s for leg in level.legs)
    if kind == "broadcast":
        return 1 / _intake(level) / inside
    return _gather(level) / inside


def _intake(level: Level) -> float:
    return sum(leg.intake_bytes_per_s for leg in level.legs)


def _gather(level: Level) -> float:
    """All-gather, or its mirror, reduce-scatter: the larger of two bounds that good schedules meet.

    (1) Every device takes in (n-1)/n of the buffer through all its links. (2) The end of a leg, a plane of n/leg
    devices, takes in what the other planes hold through the links of that leg alone.
    """
    n = level.size
    planes = [(leg.size - 1) / n / leg.intake_bytes_per_s for leg in level.legs]
    return max((n - 1) / n / _intake(level), *planes)


def _exchange(level: Level) -> float:
    """All-to-all: on a torus, the load of the busiest link of any leg under shortest paths; else every port's."""
    if not level.torus:
        return max((leg.size - 1) / leg.size / leg.rate_bytes_per_s for leg in level.legs)
    return max(leg.size / (8 if leg.ring else 4) / leg.rate_bytes_per_s for leg in level.legs)
