"""A logical mesh laid on a topology, without devices: which links every axis rides on, and the order of devices.

The rule of `logical_mesh`, which depends on nothing but the topology and the sizes in their order: axes are placed from
the last to the first, and each takes, in this order of preference,

1. as little of the slow links (between nodes or slices) as possible: the last axes are inside the node;
2. all that is left of a dimension rather than a part (a part of a ring is a line, and the rest pays for the detour);
3. as few dimensions as possible (leaving whole ones for the other axes);
4. the links with more bandwidth, then the later dimensions.

Where a dimension is shared, the later axis has the inner, contiguous part, and the earlier one strides over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cost_model.topology import Dim, Topology


class MeshError(ValueError):
    """The sizes make no mesh on the topology. `sizes` as asked, `num_devices` of the topology."""

    def __init__(self, message: str, sizes: Mapping[str, int], num_devices: int) -> None:
        self.sizes = dict(sizes)
        self.num_devices = num_devices
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a physical dimension that an axis rides on: `size` devices, `stride` apart, along dimension `dim`."""

    dim: int
    size: int
    stride: int


@dataclass(frozen=True, slots=True)
class LogicalMesh:
    """Axes over a topology. `device_order[i]` is the physical index of the device at row-major position i of the mesh;
    `pieces[k]` says what axis k rides on, major to minor."""

    topology: Topology
    axis_names: tuple[str, ...]
    axis_sizes: tuple[int, ...]
    device_order: tuple[int, ...] = field(hash=False, repr=False)
    pieces: tuple[tuple[Piece, ...], ...]

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(self.axis_names, self.axis_sizes, strict=True))

    @property
    def num_devices(self) -> int:
        return len(self.device_order)

    def size(self, axes: Iterable[str]) -> int:
        """Devices in a group over `axes` (1 for none). Raises MeshError for an unknown axis."""
        return math.prod(self.axis_sizes[self._position(a)] for a in axes)

    def pieces_of(self, axes: Iterable[str]) -> tuple[Piece, ...]:
        """What the axes together ride on; pieces of one dimension that continue each other are joined."""
        found = sorted(
            (p for a in axes for p in self.pieces[self._position(a)]), key=lambda p: (p.dim, -p.stride, -p.size)
        )  # fmt: skip
        joined: list[Piece] = []
        for piece in found:
            before = joined[-1] if joined else None
            if before is not None and before.dim == piece.dim and before.stride == piece.size * piece.stride:
                joined[-1] = Piece(piece.dim, before.size * piece.size, piece.stride)
            else:
                joined.append(piece)
        return tuple(joined)

    def rides_on(self, axis: str) -> str:
        """In words, the links that an axis uses, as in "network 16", "torus 8 (ring) x torus 8 (ring)" or
        "torus 4 of 16, every 4th"; "nothing" for an axis of one device. Raises MeshError for an unknown axis."""
        words = []
        for piece in self.pieces[self._position(axis)]:
            dim = self.topology.dims[piece.dim]
            text = f"{dim.kind} {piece.size}" + (f" of {dim.size}" if piece.size != dim.size else "")
            text += f", every {_ordinal(piece.stride)}" if piece.stride > 1 else ""
            words.append(text + (" (ring)" if dim.wrap and piece.size == dim.size else ""))
        return " x ".join(words) or "nothing"

    def _position(self, axis: str) -> int:
        try:
            return self.axis_names.index(axis)
        except ValueError:
            names = ", ".join(self.axis_names)
            raise MeshError(f"no axis {axis!r} in the mesh ({names})", self.sizes, self.num_devices) from None


def _ordinal(n: int) -> str:
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def logical_mesh(topology: Topology, sizes: Mapping[str, int]) -> LogicalMesh:
    """Lay axes of `sizes` (in their order, major to minor) on the topology by the rule above.

    Raises MeshError unless the sizes are positive and their product is the number of devices.
    """
    _check(topology, sizes)
    left = [d.size for d in topology.dims]
    inner = [1] * len(left)
    by_axis: dict[str, tuple[Piece, ...]] = {}
    for axis, size in reversed(list(sizes.items())):
        taken = min(_ways(left, size), key=lambda take: _preference(topology.dims, left, inner, take))
        by_axis[axis] = tuple(Piece(d, n, inner[d]) for d, n in enumerate(taken) if n > 1)
        for d, n in enumerate(taken):
            left[d] //= n
            inner[d] *= n
    pieces = tuple(by_axis[a] for a in sizes)
    order = _device_order(topology, pieces)
    return LogicalMesh(topology, tuple(sizes), tuple(int(n) for n in sizes.values()), order, pieces)


def _check(topology: Topology, sizes: Mapping[str, int]) -> None:
    n = topology.num_devices
    product = math.prod(sizes.values())
    text = " x ".join(f"{a}={s}" for a, s in sizes.items()) or "no axes"
    if any(s < 1 for s in sizes.values()):
        raise MeshError(f"mesh {text}: every axis needs at least one device", sizes, n)
    if product == n:
        return
    more = f"{topology.name} has {n} devices"
    if product < n and n % product == 0:
        more += f"; one more axis of {n // product} would use them all"
    raise MeshError(f"mesh {text} = {product} devices, but {more}", sizes, n)


def _ways(left: Sequence[int], size: int, at: int = 0) -> Iterator[tuple[int, ...]]:
    """Every way to write `size` as a product of divisors of what is left of each dimension."""
    if at == len(left):
        if size == 1:
            yield ()
        return
    common = math.gcd(left[at], size) if math.prod(left[at:]) % size == 0 else 0
    for n in range(1, common + 1):
        if common % n == 0:
            for rest in _ways(left, size // n, at + 1):
                yield (n, *rest)


def _preference(
    dims: Sequence[Dim], left: Sequence[int], inner: Sequence[int], take: tuple[int, ...]
) -> tuple[object, ...]:
    """Sorting key of a way to take devices from the dimensions: smaller is better (the rule in the module's text)."""
    used = [d for d, n in enumerate(take) if n > 1]
    slow = math.prod(take[d] for d in used if dims[d].slow)
    split = sum(1 for d in used if take[d] != left[d])
    bandwidth = sum(dims[d].bandwidth_bytes_per_s * (2 if dims[d].wrap else 1) / inner[d] for d in used)
    return slow, split, len(used), -bandwidth, tuple(-d for d in reversed(used)), take[::-1]


def _device_order(topology: Topology, pieces: tuple[tuple[Piece, ...], ...]) -> tuple[int, ...]:
    """Physical device of every mesh position: physical indices, cut into pieces and transposed to the order of axes."""
    cut = sorted((p for axis in pieces for p in axis), key=lambda p: (p.dim, -p.stride))
    place = {(p.dim, p.stride): i for i, p in enumerate(cut)}
    indices = np.arange(topology.num_devices).reshape([p.size for p in cut])
    order = [place[p.dim, p.stride] for axis in pieces for p in axis]
    return tuple(int(i) for i in indices.transpose(order).reshape(-1))
