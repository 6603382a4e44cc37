"""Time of a collective over mesh axes: latency + bytes / bandwidth, where the bandwidth depends on the size.

Every function takes a mesh, the axes that form the groups, and a size in bytes (a number, or a numpy array of them: the
result is then an array), and returns seconds. All groups run at once, and so share links where axes stride over a dimension.

The model, with t the time of a transfer at full rate over one kind of links:

- A transfer takes t + sqrt(ramp * t): bandwidth grows smoothly with size. This form meets both published curves at hand with
  one constant each: TPU v7x all-gathers (72 GB/s at 1.6 MB, 179 GB/s at 400 MB) and NVLink (about 150 of 450 GB/s at 58 MB).
- Torus axes work together: a device takes in data through all links of all axes at once (both directions of a ring, the
  one inner link at the end of a line), and no cut of the box may carry more than its links do; the larger bound counts.
  Source of the ring formulas: scaling-book, `sharding`; an all-to-all moves n/8 of the local buffer over every link.
- Links of different kinds (dies, torus or NVLink, network) are levels of a hierarchy, and each outer one carries
  only one shard of the level inside. GPUs pipeline the levels (the slowest counts: scaling-book, `gpus`), the others take
  one after the other.
- Latency: a launch, plus hops: half a ring, a whole line, log2 of a switch (trees). An all-reduce goes both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_model.mesh import LogicalMesh, Piece

Size = Any  # float, int or numpy array of bytes
Seconds = Any  # float for a number, numpy array for an array

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute", "broadcast", "slice")


@dataclass(frozen=True, slots=True)
class Leg:
    """A piece of links as one group sees it: `rate` is bytes per second and device in one direction after contention,
    `ring` whether the group can go round, `hop_s` the latency of one step along it."""

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
    """Links of one kind that a collective uses together. `torus`: lines of neighbours; else a switch (one leg)."""

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

    @property
    def size(self) -> int:
        return math.prod(level.size for level in self.levels)


def route(mesh: LogicalMesh, axes: Iterable[str]) -> Route:
    """The links under a group over `axes`; without levels when the group is a single device."""
    chip = mesh.topology.chip
    by_kind: dict[str, list[Piece]] = {}
    for piece in mesh.pieces_of(axes):
        by_kind.setdefault(mesh.topology.dims[piece.dim].kind, []).append(piece)
    inner_first = sorted(by_kind.items(), key=lambda item: -max(p.dim for p in item[1]))
    levels = []
    for kind, pieces in inner_first:
        groups = [pieces] if kind == "torus" else [[p] for p in reversed(pieces)]
        for group in groups:
            ramp = max(mesh.topology.dims[p.dim].ramp_s for p in group)
            levels.append(Level(kind, tuple(_leg(mesh, p) for p in group), ramp))
    return Route(tuple(levels), chip.collective_launch_s, chip.platform == "gpu")


def _leg(mesh: LogicalMesh, piece: Piece) -> Leg:
    """On a torus, groups with a stride interleave and share every link; behind a switch every device has its own port."""
    dim = mesh.topology.dims[piece.dim]
    if dim.kind != "torus":
        return Leg(piece.size, dim.bandwidth_bytes_per_s, False, dim.latency_s)
    ring = dim.wrap and piece.size * piece.stride == dim.size
    return Leg(piece.size, dim.bandwidth_bytes_per_s / piece.stride, ring, dim.latency_s * piece.stride)


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


def collective_s(kind: str, mesh: LogicalMesh, axes: Sequence[str], size_bytes: Size) -> Seconds:
    """Seconds of a collective of `kind` (one of KINDS; "slice" is free) over `axes`, sizes as the functions above say.

    Zero over a group of one device. Raises ValueError for an unknown kind or axis, or a negative size.
    """
    way = route(mesh, axes)
    return latency_of(way, kind) + transfer_of(way, kind, size_bytes)


def collective_latency_s(mesh: LogicalMesh, axes: Sequence[str], kind: str) -> float:
    """The part of `collective_s` that does not depend on the size: what combining two collectives saves."""
    return latency_of(route(mesh, axes), kind)


def latency_of(way: Route, kind: str) -> float:
    """Latency of a collective over a known route, in seconds."""
    _check_kind(kind)
    if kind == "slice" or not way.levels:
        return 0.0
    if kind == "permute":
        return way.launch_s + max(leg.hop_s for level in way.levels for leg in level.legs)
    hops = sum(_hops(level, leg) * leg.hop_s for level in way.levels for leg in level.legs)
    return way.launch_s + (2 if kind == "all_reduce" else 1) * hops


def _hops(level: Level, leg: Leg) -> float:
    """Steps until the farthest device is reached."""
    if not level.torus:
        return math.log2(leg.size)
    return leg.size / 2 if leg.ring else leg.size - 1


def transfer_of(way: Route, kind: str, size_bytes: Size) -> Seconds:
    """Time on the wires over a known route: a float for a number, an array for an array."""
    _check_kind(kind)
    size = np.asarray(size_bytes, dtype=np.float64)
    if (size < 0).any():
        raise ValueError(f"{kind}: a negative size in bytes ({float(size.min()):g})")
    total = np.zeros_like(size)
    if kind != "slice":
        inside = 1
        for level in way.levels:
            full = _FULL_RATE_S[kind](level, size, inside)
            ramped = full + np.sqrt(level.ramp_s * full)
            total = np.maximum(total, ramped) if way.pipelined or kind == "permute" else total + ramped
            inside *= level.size
        if kind == "all_reduce":
            total = 2 * total
    return float(total) if np.ndim(size_bytes) == 0 else total


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown collective {kind!r} (one of {', '.join(KINDS)})")


def _gather(level: Level, size: np.ndarray, inside: int) -> np.ndarray:
    """All-gather (or its mirror, reduce-scatter) of a full buffer; a level gathers what the levels inside still lack.

    Bounds: (1) every device takes in (n-1)/n of the buffer through all its links; (2) the end of a leg, a plane of n/leg
    devices, takes in what the other planes hold through the links of that leg alone.
    """
    n = level.size
    seconds_per_byte = (n - 1) / n / _intake(level)
    for leg in level.legs:
        seconds_per_byte = max(seconds_per_byte, (leg.size - 1) / n / leg.intake_bytes_per_s)
    return size / inside * seconds_per_byte


def _intake(level: Level) -> float:
    return sum(leg.intake_bytes_per_s for leg in level.legs)


def _exchange(level: Level, size: np.ndarray, inside: int) -> np.ndarray:
    """All-to-all of a local buffer: on a torus, the load of the busiest link of any leg under shortest paths."""
    del inside
    if not level.torus:
        return size * max((leg.size - 1) / leg.size / leg.rate_bytes_per_s for leg in level.legs)
    return size * max(leg.size / (8 if leg.ring else 4) / leg.rate_bytes_per_s for leg in level.legs)


def _shift(level: Level, size: np.ndarray, inside: int) -> np.ndarray:
    """Everyone sends its buffer to the next: one direction of one link (both directions lead to the only other one)."""
    del inside
    slowest = min(leg.intake_bytes_per_s if leg.size == 2 else leg.rate_bytes_per_s for leg in level.legs)
    return size / slowest


def _spread(level: Level, size: np.ndarray, inside: int) -> np.ndarray:
    """Broadcast, pipelined: every device takes the buffer in once, at the end of the longest leg."""
    del inside
    return size / _intake(level)


_FULL_RATE_S: Mapping[str, Callable[[Level, np.ndarray, int], np.ndarray]] = {
    "all_gather": _gather,
    "reduce_scatter": _gather,
    "all_reduce": _gather,
    "all_to_all": _exchange,
    "permute": _shift,
    "broadcast": _spread,
}
