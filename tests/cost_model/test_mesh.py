"""Where logical axes land on the links: literal cases, and what must hold for every factorisation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_model.hardware import chip
from cost_model.mesh import MeshError, Piece, logical_mesh
from cost_model.topology import Dim, Topology, known_topologies, parse_topology

# (topology, sizes) -> per axis the pieces (dimension, size, stride)
CASES: list[tuple[str, dict[str, int], list[list[tuple[int, int, int]]]]] = [
    ("v5p:8x8x8", {"x": 64, "y": 8}, [[(0, 8, 1), (1, 8, 1)], [(2, 8, 1)]]),
    ("v5p:8x8x8", {"x": 8, "y": 64}, [[(0, 8, 1)], [(1, 8, 1), (2, 8, 1)]]),
    ("v5p:8x8x8", {"x": 512}, [[(0, 8, 1), (1, 8, 1), (2, 8, 1)]]),
    ("v5p:4x4x8", {"x": 16, "y": 8}, [[(0, 4, 1), (1, 4, 1)], [(2, 8, 1)]]),
    ("v5p:4x4x8", {"x": 8, "y": 16}, [[(2, 8, 1)], [(0, 4, 1), (1, 4, 1)]]),
    ("v5e:2x4", {"x": 2, "y": 4}, [[(0, 2, 1)], [(1, 4, 1)]]),
    ("v5e:2x4", {"x": 4, "y": 2}, [[(1, 4, 1)], [(0, 2, 1)]]),
    ("v5e:16x16", {"x": 64, "y": 4}, [[(0, 16, 1), (1, 4, 4)], [(1, 4, 1)]]),
    ("v5p:16x16x16", {"a": 16, "b": 8, "c": 32}, [[(0, 16, 1)], [(2, 8, 2)], [(1, 16, 1), (2, 2, 1)]]),
    ("h100:8x16", {"x": 16, "y": 8}, [[(0, 16, 1)], [(1, 8, 1)]]),
    ("h100:8x16", {"x": 8, "y": 16}, [[(0, 8, 2)], [(0, 2, 1), (1, 8, 1)]]),
    ("h100:8x16", {"x": 32, "y": 4}, [[(0, 16, 1), (1, 2, 4)], [(1, 4, 1)]]),
    ("h100:8x16", {"x": 16, "y": 4, "z": 2}, [[(0, 16, 1)], [(1, 4, 2)], [(1, 2, 1)]]),
    ("v6e:16x16x2slices", {"x": 2, "y": 256}, [[(0, 2, 1)], [(1, 16, 1), (2, 16, 1)]]),
    ("v7x:4x4x4", {"x": 64, "y": 2}, [[(0, 4, 1), (1, 4, 1), (2, 4, 1)], [(3, 2, 1)]]),
    ("v7x:4x4x4", {"x": 8, "y": 16}, [[(0, 4, 1), (3, 2, 1)], [(1, 4, 1), (2, 4, 1)]]),
    ("cpu:8", {"x": 2, "y": 4}, [[(0, 2, 4)], [(0, 4, 1)]]),
    ("cpu:8", {"x": 1, "y": 8}, [[], [(0, 8, 1)]]),
]


@pytest.mark.parametrize(("name", "sizes", "pieces"), CASES)
def test_placement(name: str, sizes: dict[str, int], pieces: list[list[tuple[int, int, int]]]) -> None:
    mesh = logical_mesh(parse_topology(name), sizes)
    assert [[(p.dim, p.size, p.stride) for p in axis] for axis in mesh.pieces] == pieces


ORDERS = {
    ("cpu:4", ("x", 2), ("y", 2)): (0, 1, 2, 3),
    ("v5e:2x4", ("x", 4), ("y", 2)): (0, 4, 1, 5, 2, 6, 3, 7),
    ("v5e:2x4", ("x", 2), ("y", 4)): (0, 1, 2, 3, 4, 5, 6, 7),
}


@pytest.mark.parametrize("case", ORDERS)
def test_device_order(case: tuple[str, tuple[str, int], tuple[str, int]]) -> None:
    name, *sizes = case
    assert logical_mesh(parse_topology(name), dict(sizes)).device_order == ORDERS[case]


def test_a_hand_made_machine_gives_the_last_axis_its_faster_links() -> None:
    slow, fast = Dim(2, "shared", 1e9, 1e-6), Dim(2, "shared", 1e10, 1e-6)
    for dims, at in [((slow, fast), 1), ((fast, slow), 0)]:
        mesh = logical_mesh(Topology("pair of pairs", chip("cpu"), dims), {"x": 2, "y": 2})
        assert mesh.pieces[1] == (Piece(at, 2, 1),)


def _factorisations() -> st.SearchStrategy[tuple[str, dict[str, int]]]:
    @st.composite
    def draw(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
        name = draw(st.sampled_from(known_topologies()))
        left = parse_topology(name).num_devices
        sizes = {}
        for axis in "abc"[: draw(st.integers(0, 3))]:
            sizes[axis] = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
            left //= sizes[axis]
        return name, {**sizes, "z": left}

    return draw()


@given(_factorisations())
def test_every_factorisation_is_placed(case: tuple[str, dict[str, int]]) -> None:
    name, sizes = case
    topology = parse_topology(name)
    mesh = logical_mesh(topology, sizes)
    assert mesh.sizes == sizes
    assert sorted(mesh.device_order) == list(range(topology.num_devices))
    assert mesh.num_devices == topology.num_devices
    for axis, pieces in zip(mesh.axis_names, mesh.pieces, strict=True):
        assert math.prod(p.size for p in pieces) == sizes[axis]
    # All axes together are the whole box again.
    assert [(p.dim, p.size, p.stride) for p in mesh.pieces_of(mesh.axis_names)] == [
        (d, dim.size, 1) for d, dim in enumerate(topology.dims) if dim.size > 1
    ]
    assert logical_mesh(topology, sizes) == mesh


@given(_factorisations())
def test_pieces_describe_the_device_order(case: tuple[str, dict[str, int]]) -> None:
    """Stepping along an axis changes exactly the coordinates that its pieces say."""
    name, sizes = case
    topology = parse_topology(name)
    mesh = logical_mesh(topology, sizes)
    inner = 1
    for axis, pieces in reversed(list(zip(mesh.axis_names, mesh.pieces, strict=True))):
        group = [topology.coordinates(mesh.device_order[i * inner]) for i in range(sizes[axis])]
        moved = {d for d in range(len(topology.dims)) if len({at[d] for at in group}) > 1}
        assert moved == {p.dim for p in pieces}
        assert all(at[p.dim] % p.stride == 0 for at in group for p in pieces)
        inner *= sizes[axis]


def test_sizes() -> None:
    mesh = logical_mesh(parse_topology("cpu:8"), {"x": 2, "y": 4})
    assert mesh.size(("x", "y")) == 8
    assert mesh.size(("y",)) == 4
    assert mesh.size(()) == 1
    with pytest.raises(MeshError, match=r"no axis 'q' in the mesh \(x, y\)"):
        mesh.size(("q",))


WORDS = [
    ("v5p:8x8x8", {"x": 64, "y": 8}, "x", "torus 8 (ring) x torus 8 (ring)"),
    ("v5e:2x4", {"x": 8}, "x", "torus 2 x torus 4"),
    ("h100:8x16", {"x": 8, "y": 16}, "x", "network 8 of 16, every 2nd"),
    ("h100:8x16", {"x": 8, "y": 16}, "y", "network 2 of 16 x nvlink 8"),
    ("cpu:8", {"x": 1, "y": 8}, "x", "nothing"),
]


@pytest.mark.parametrize(("name", "sizes", "axis", "words"), WORDS)
def test_links_in_words(name: str, sizes: dict[str, int], axis: str, words: str) -> None:
    assert logical_mesh(parse_topology(name), sizes).rides_on(axis) == words


BAD = [
    ({"x": 4}, "x=4 = 4 devices, but cpu:8 has 8 devices; one more axis of 2 would use them all"),
    ({"x": 4, "y": 4}, "x=4 x y=4 = 16 devices, but cpu:8 has 8 devices"),
    ({"x": 3}, "x=3 = 3 devices, but cpu:8 has 8"),
    ({}, "no axes = 1 devices"),
    ({"x": 8, "y": 0}, "at least one device"),
    ({"x": -2, "y": -4}, "at least one device"),
]


@pytest.mark.parametrize(("sizes", "why"), BAD)
def test_sizes_that_make_no_mesh(sizes: dict[str, int], why: str) -> None:
    with pytest.raises(MeshError) as caught:
        logical_mesh(parse_topology("cpu:8"), sizes)
    assert why in str(caught.value)
    assert caught.value.sizes == sizes
    assert caught.value.num_devices == 8


def test_a_single_device() -> None:
    assert logical_mesh(parse_topology("v5e:1x1"), {"x": 1}).device_order == (0,)
    assert logical_mesh(parse_topology("cpu:1"), {}).device_order == (0,)
