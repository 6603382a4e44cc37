"""Which reduce-scatters become all-reduces: the table of what was seen in compiled programs, and what it costs."""

from __future__ import annotations

import pytest

from cost_model.collectives import all_gather_s, all_reduce_s, reduce_scatter_s
from cost_model.mesh import LogicalMesh, MeshError, logical_mesh
from cost_model.scatters import scatters_by_reducing
from cost_model.topology import parse_topology


def laid(topology: str, *sizes: int) -> LogicalMesh:
    return logical_mesh(parse_topology(topology), dict(zip("abc", sizes, strict=False)))


# Topology, sizes of the mesh, axes of the group, and whether an all-reduce was compiled (libtpu 0.0.42).
SEEN = (
    ("v5e:2x2", (4,), "a", False),
    ("v5e:2x4", (8,), "a", False),
    ("v5e:2x4", (2, 4), "ab", False),
    ("v5e:4x4", (16,), "a", True),
    ("v5e:4x4", (4, 4), "ab", True),
    ("v5e:4x4", (4, 4), "ba", True),
    ("v5e:4x4", (4, 4), "a", False),
    ("v5e:4x4", (2, 8), "b", False),
    ("v5e:4x4", (2, 8), "ab", True),
    ("v5e:4x8", (32,), "a", False),
    ("v6e:8x8", (64,), "a", True),
    ("v6e:8x8", (16, 4), "a", False),
    ("v6e:8x16", (128,), "a", False),
    ("v6e:16x16", (32, 8), "ab", True),
    ("v5p:2x2x1", (4,), "a", False),
    ("v5p:2x2x2", (2, 2, 2), "abc", True),
    ("v5p:2x2x2", (2, 2, 2), "bc", False),
    ("v5p:2x2x4", (16,), "a", True),
    ("v5p:4x4x4", (4, 16), "b", False),
    ("v5p:4x4x4", (4, 16), "ab", True),
    ("v5p:4x8x8", (256,), "a", True),
    ("v7x:4x4x4", (128,), "a", False),
    ("v5e:4x4x2slices", (2, 16), "b", True),
    ("v5e:4x4x2slices", (2, 16), "a", False),
    ("h100:8", (8,), "a", False),
    ("cpu:8", (8,), "a", False),
)


@pytest.mark.parametrize(("topology", "sizes", "axes", "seen"), SEEN)
def test_what_was_compiled(topology: str, sizes: tuple[int, ...], axes: str, seen: bool) -> None:
    assert scatters_by_reducing(laid(topology, *sizes), axes) == seen


def test_it_costs_an_all_reduce() -> None:
    square, oblong = laid("v5e:4x4", 16), laid("v5e:2x4", 8)
    assert reduce_scatter_s(square, ("a",), 1e8) == all_reduce_s(square, ("a",), 1e8)
    assert reduce_scatter_s(oblong, ("a",), 1e8) == all_gather_s(oblong, ("a",), 1e8)


def test_unknown_axis() -> None:
    with pytest.raises(MeshError, match="no axis 'z'"):
        scatters_by_reducing(laid("v5e:4x4", 16), "z")
