"""Candidate logical meshes of a topology: how its devices may be arranged in named axes, major to minor x, y, z."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cost_model.mesh import LogicalMesh, logical_mesh
from cost_model.topology import Topology

AXIS_NAMES = ("x", "y", "z")


def candidate_meshes(topology: Topology, max_axes: int = 2) -> tuple[LogicalMesh, ...]:
    """All meshes with one to `max_axes` axes, each larger than 1; of two that differ only by renaming axes, the first.

    Every axis count has all factorisations of the number of devices. Where all links are alike, only sizes in
    falling order are kept, because the others are the same mesh with other names.
    """
    n = topology.num_devices
    alike = len({(d.kind, d.bandwidth_bytes_per_s, d.wrap, d.size) for d in topology.dims}) <= 1
    out = []
    for count in range(1, max_axes + 1):
        for sizes in _factorisations(n, count):
            if alike and list(sizes) != sorted(sizes, reverse=True):
                continue
            out.append(logical_mesh(topology, dict(zip(AXIS_NAMES, sizes, strict=False))))
    return tuple(out) or (logical_mesh(topology, {AXIS_NAMES[0]: n}),)


def _factorisations(n: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        if n > 1:
            yield (n,)
        return
    for k in range(2, n // 2 + 1):
        if n % k == 0:
            for rest in _factorisations(n // k, count - 1):
                yield (k, *rest)


def possible_cuts(sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Into how many pieces some set of the axes cuts an array."""
    products = {1}
    for k in sizes.values():
        products |= {p * k for p in products}
    return tuple(sorted(products - {1})) or (math.prod(sizes.values()),)
