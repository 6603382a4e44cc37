"""Reduce-scatters that TPU compilers turn into all-reduces of which every device keeps a slice: twice the time.

Seen in programs of one `psum_scatter` compiled ahead of time (libtpu 0.0.42), for 2-D tori from 2x2 to 16x16, 3-D ones
from 2x2x1 to 8x8x8, meshes of one to three axes, and arrays from 32 bytes to 2 GB in bfloat16 and float32: it depends
on the group and the torus alone, not on the size, the type, the dimension scattered, or the order of the axes.

| generation | the group is all of a slice and | elsewhere |
|---|---|---|
| v5e, v6e | a square of at least 4x4 | stays: 2x2, 2x4, 4x8, 8x16, one axis of a mesh |
| v5p | longer than 1 in all three dimensions, 2x2x2 to 8x8x8 | stays: 2x2x1, one axis, one plane |
| v7x | never | stays |

v4 does as v5p does, its two cores counting as a dimension where the compiler sees both. Of several slices each is a
group of its own here: within v5e:4x4x2slices the sums are all-reduced in the slice.
"""

from __future__ import annotations

from collections.abc import Iterable

from cost_model.mesh import LogicalMesh


def scatters_by_reducing(mesh: LogicalMesh, axes: Iterable[str]) -> bool:
    """Whether a reduce-scatter over `axes` is compiled as an all-reduce and a slice; never on CPUs and GPUs.

    Raises MeshError for an unknown axis.
    """
    topology = mesh.topology
    if topology.platform != "tpu" or not topology.chip.scatters_by_reducing:
        return False
    sides = {d: dim.size for d, dim in enumerate(topology.dims) if dim.kind == "torus" and dim.size > 1}
    covered = {p.dim: p.size for p in mesh.pieces_of(axes)}
    if any(covered.get(d) != size for d, size in sides.items()):
        return False
    lengths = sorted(sides.values())
    if topology.chip.torus_rank == 3:
        return len(lengths) == 3
    return len(lengths) == 2 and lengths[0] == lengths[1] >= 4
