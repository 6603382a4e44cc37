"""Which device holds and which device needs each part of an array: the intersections of two tilings.

A dimension of n elements cut in k tiles has tiles of ceil(n / k) elements, as in GSPMD; the last ones may be shorter or
empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from passes.ir.sharding import Sharding

Box = tuple[tuple[int, int], ...]
"""A block of an array: (start, stop) in elements per dimension."""


class BadPlacement(ValueError):
    """A placement that no array can have. `problem` says which rule is broken: "axis", "rank", "repeated", "devices" or
    "partial"; `facts` are the numbers and names that show it."""

    def __init__(self, problem: str, message: str, **facts: object) -> None:
        self.problem = problem
        self.facts = facts
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Placement:
    """An array laid over a mesh.

    `devices` are indices into the topology, in the mesh's row-major order; `axes` the mesh's (name, size), `sharding`
    the axes per dimension.
    """

    devices: tuple[int, ...]
    axes: tuple[tuple[str, int], ...]
    sharding: Sharding

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.axes)

    def parts(self) -> tuple[int, ...]:
        """Number of tiles along every dimension."""
        sizes = self.sizes
        return tuple(math.prod(sizes[a] for a in dim) for dim in self.sharding.dims)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise BadPlacement unless an array of `shape` can lie so (dimensions need not divide)."""
        sizes = self.sizes
        product = math.prod(sizes.values())
        if product != len(self.devices):
            text = " x ".join(f"{a}={n}" for a, n in self.axes) or "no axes"
            raise BadPlacement(
                "devices", f"mesh {text} = {product} devices, given {len(self.devices)}", given=len(self.devices)
            )
        if len(set(self.devices)) != len(self.devices):
            twice = sorted({d for d in self.devices if self.devices.count(d) > 1})
            raise BadPlacement("repeated", f"devices {twice} occur twice in the mesh", repeated=twice)
        if len(self.sharding.dims) != len(shape):
            raise BadPlacement(
                "rank", f"{len(self.sharding.dims)} dimensions in the sharding, {len(shape)} in the shape", shape=shape
            )
        used = self.sharding.axes
        if self.sharding.partial:
            raise BadPlacement("partial", "an unfinished sum cannot be moved", axes=self.sharding.partial)
        for axis in used:
            if axis not in sizes:
                raise BadPlacement("axis", f"no axis {axis!r} in the mesh", axis=axis, known=tuple(sizes))
            if used.count(axis) > 1:
                raise BadPlacement("repeated", f"axis {axis!r} cuts two dimensions", repeated=[axis])

    def tile_of(self) -> tuple[tuple[int, ...], ...]:
        """Per device (in mesh order) the coordinates of its tile."""
        names = [a for a, _ in self.axes]
        out = []
        for position in range(len(self.devices)):
            at: dict[str, int] = {}
            rest = position
            for name, size in reversed(self.axes):
                rest, at[name] = divmod(rest, size)
            coordinates = []
            for dim in self.sharding.dims:
                index = 0
                for axis in dim:
                    index = index * self.axes[names.index(axis)][1] + at[axis]
                coordinates.append(index)
            out.append(tuple(coordinates))
        return tuple(out)


@dataclass(frozen=True, slots=True)
class Atom:
    """A block that the source never cuts and the destination never cuts, so that all of it has the same history.

    `holders` and `needers` are devices of the topology, ascending; a device may be both.
    """

    box: Box
    elements: int
    holders: tuple[int, ...]
    needers: tuple[int, ...]

    @property
    def rows_dim(self) -> int:
        """The dimension along which the block is cut in pieces: its longest."""
        lengths = [stop - start for start, stop in self.box]
        return lengths.index(max(lengths)) if lengths else -1

    @property
    def rows(self) -> int:
        """Length of `rows_dim`; 1 for a scalar."""
        return max((stop - start for start, stop in self.box), default=1)

    def cut(self, low: int, high: int) -> Box:
        """Rows low ... high of the block."""
        dim = self.rows_dim
        if dim < 0:
            return self.box
        start = self.box[dim][0]
        return (*self.box[:dim], (start + low, start + high), *self.box[dim + 1 :])


def box_elements(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def intersect(a: Box, b: Box) -> Box | None:
    """The common block of two, or None when it is empty."""
    out = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return None if any(start >= stop for start, stop in out) else out


def tiles(placement: Placement, shape: tuple[int, ...]) -> dict[tuple[int, ...], Box]:
    """The block of every tile, by tile coordinates; tiles behind the end of the array are absent."""
    spans = []
    for n, parts in zip(shape, placement.parts(), strict=True):
        size = -(-n // parts)
        spans.append([(i * size, min(n, (i + 1) * size)) for i in range(parts) if i * size < n])
    out: dict[tuple[int, ...], Box] = {(): ()}
    for row in spans:
        out = {(*at, i): (*box, span) for at, box in out.items() for i, span in enumerate(row)}
    return out


def boxes(placement: Placement, shape: tuple[int, ...]) -> tuple[Box | None, ...]:
    """The block of every device in mesh order; None where a device's tile is behind the end of the array."""
    by_tile = tiles(placement, shape)
    return tuple(by_tile.get(tile) for tile in placement.tile_of())


def atoms(shape: tuple[int, ...], source: Placement, destination: Placement) -> tuple[Atom, ...]:
    """Every common block of a source tile and a destination tile, in the order of their positions in the array."""
    holders = _devices_of(source)
    needers = _devices_of(destination)
    parts = destination.parts()
    sizes = [-(-n // p) for n, p in zip(shape, parts, strict=True)]
    there = tiles(destination, shape)
    out = []
    for tile, box in tiles(source, shape).items():
        near: list[tuple[int, ...]] = [()]
        for (start, stop), size in zip(box, sizes, strict=True):
            near = [(*at, i) for at in near for i in range(start // size, -(-stop // size))]
        for other in near:
            common = intersect(box, there[other])
            if common is not None:
                out.append(Atom(common, box_elements(common), holders[tile], needers[other]))
    return tuple(sorted(out, key=lambda a: a.box))


def _devices_of(placement: Placement) -> dict[tuple[int, ...], tuple[int, ...]]:
    out: dict[tuple[int, ...], list[int]] = {}
    for device, tile in zip(placement.devices, placement.tile_of(), strict=True):
        out.setdefault(tile, []).append(device)
    return {tile: tuple(sorted(devices)) for tile, devices in out.items()}
