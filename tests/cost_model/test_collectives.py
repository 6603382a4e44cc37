"""Collectives: literal formulas on simple links, and what must hold on every machine, mesh and size."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_model.collectives import (
    KINDS,
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    broadcast_s,
    collective_latency_s,
    collective_s,
    communication_streams,
    curve,
    permute_s,
    reduce_scatter_s,
)
from cost_model.hardware import chip
from cost_model.mesh import LogicalMesh, MeshError, logical_mesh
from cost_model.scatters import scatters_by_reducing
from cost_model.topology import Dim, Topology, known_topologies, parse_topology

MOVING = tuple(k for k in KINDS if k != "slice")
SIZES = st.one_of(st.integers(0, 2**34), st.floats(0, 1e11))


def _box(*dims: Dim, of: str = "v5p") -> Topology:
    return Topology("by hand", chip(of), dims)


def _line(size: int, kind: str = "torus", wrap: bool = False, of: str = "v5p", ramp_s: float = 0.0) -> LogicalMesh:
    """One axis "x" of `size` devices on links of 1 GB/s and 1 us."""
    return logical_mesh(_box(Dim(size, kind, 1e9, 1e-6, wrap, ramp_s), of=of), {"x": size})


@dataclass(frozen=True, slots=True)
class Group:
    """A mesh and axes of it."""

    mesh: LogicalMesh
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.mesh.size(self.axes)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    topology = parse_topology(draw(st.sampled_from([n for n in known_topologies() if "gb200" not in n])))
    left, sizes = topology.num_devices, {}
    for axis in "ab":
        sizes[axis] = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
        left //= sizes[axis]
    mesh = logical_mesh(topology, {**sizes, "c": left})
    axes = draw(st.lists(st.sampled_from("abc"), unique=True, min_size=1))
    return Group(mesh, tuple(axes))


def _wires(kind: str, mesh: LogicalMesh, size_bytes: float) -> float:
    return collective_s(kind, mesh, ("x",), size_bytes) - collective_latency_s(mesh, ("x",), kind)


# Transfer times of 8 GB on 8 devices at 1 GB/s per link: formulas of the scaling book.
ON_EIGHT = {
    ("all_gather", "ring"): 3.5,  # 7/8 of 8 GB through two links
    ("all_gather", "line"): 7.0,  # the end of the line has one
    ("all_gather", "switch"): 7.0,
    ("reduce_scatter", "ring"): 3.5,
    ("all_reduce", "ring"): 7.0,
    ("all_reduce", "switch"): 14.0,
    ("all_to_all", "ring"): 8.0,  # n/8 of the local buffer over every link
    ("all_to_all", "line"): 16.0,  # the middle link carries half the traffic of half the devices
    ("all_to_all", "switch"): 7.0,
    ("permute", "ring"): 8.0,
    ("permute", "switch"): 8.0,
    ("broadcast", "line"): 8.0,
    ("broadcast", "ring"): 4.0,
}


@pytest.mark.parametrize(("kind", "links"), ON_EIGHT)
def test_transfer_on_eight_devices(kind: str, links: str) -> None:
    mesh = _line(8, "nvlink", of="h100") if links == "switch" else _line(8, wrap=links == "ring")
    assert _wires(kind, mesh, 8e9) == pytest.approx(ON_EIGHT[kind, links])


def test_an_all_to_all_of_a_ring_costs_a_quarter_of_the_all_gather() -> None:
    for n in (8, 16, 64):
        mesh = _line(n, wrap=True)
        ratio = _wires("all_to_all", mesh, 1e9) / _wires("all_gather", mesh, n * 1e9)
        assert ratio == pytest.approx(0.25, rel=1 / (n - 1) + 1e-9)


def test_without_wraparound_an_axis_takes_twice_as_long() -> None:
    for kind in ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"):
        assert _wires(kind, _line(8), 1e9) == pytest.approx(2 * _wires(kind, _line(8, wrap=True), 1e9))


def test_torus_axes_work_together() -> None:
    ring = Dim(8, "torus", 1e9, 1e-6, True)
    mesh = logical_mesh(_box(ring, ring, ring), {"x": 8, "y": 8, "z": 8})
    one = all_gather_s(mesh, ("x",), 1e9) - collective_latency_s(mesh, ("x",), "all_gather")
    for axes in (("x", "y"), ("x", "y", "z")):
        n = mesh.size(axes)
        many = all_gather_s(mesh, axes, 1e9) - collective_latency_s(mesh, axes, "all_gather")
        assert many == pytest.approx((1 - 1 / n) / (1 - 1 / 8) * one / len(axes))


def test_no_cut_of_a_lopsided_torus_carries_more_than_its_links() -> None:
    fast, slow = Dim(8, "torus", 100e9, 0.0, True), Dim(2, "torus", 1e9, 0.0)
    mesh = logical_mesh(_box(slow, fast), {"x": 2, "y": 8})
    # 8 GB: each row of 8 devices lacks the other row's 4 GB, and 8 links of 1 GB/s lead there.
    expected = 4 / 8 + collective_latency_s(mesh, ("x", "y"), "all_gather")
    assert all_gather_s(mesh, ("x", "y"), 8e9) == pytest.approx(expected, rel=0.2)
    assert all_gather_s(mesh, ("x", "y"), 8e9) >= expected


def test_axes_that_stride_over_a_ring_share_its_links() -> None:
    mesh = logical_mesh(_box(Dim(16, "torus", 1e9, 0.0, True)), {"outer": 4, "inner": 4})
    size = 4e9
    inner = all_gather_s(mesh, ("inner",), size) - collective_latency_s(mesh, ("inner",), "all_gather")
    outer = all_gather_s(mesh, ("outer",), size) - collective_latency_s(mesh, ("outer",), "all_gather")
    assert inner == pytest.approx(3.0)  # a line of 4: 3 GB through one link
    assert outer == pytest.approx(6.0)  # a ring of 4 whose every hop is 4 links that 4 rings share
    both = all_gather_s(mesh, ("outer", "inner"), size) - collective_latency_s(mesh, ("outer", "inner"), "all_gather")
    assert both == pytest.approx(15 / 16 * 4 / 2)  # together the whole ring


def _busiest_link(sizes: tuple[int, ...], wraps: tuple[bool, ...]) -> float:
    """All-to-all of one byte per device, counted pair by pair along shortest paths, one dimension after the other (both
    ways round where they are equally long): bytes over the busiest link."""
    devices = list(itertools.product(*(range(n) for n in sizes)))
    load: dict[tuple[tuple[int, ...], int, int], float] = {}
    for source, target in itertools.product(devices, devices):
        at = source
        for d, n in enumerate(sizes):
            ahead = (target[d] - source[d]) % n
            if wraps[d]:
                ways = [(1, ahead)] if 2 * ahead < n else [(-1, n - ahead)]
                ways = [(1, ahead), (-1, ahead)] if 2 * ahead == n else ways
            else:
                ways = [(1 if target[d] >= source[d] else -1, abs(target[d] - source[d]))]
            for step, hops in ways:
                for hop in range(hops):
                    link = (*at[:d], (source[d] + step * hop) % n, *at[d + 1 :])
                    key = (link, d, step)
                    load[key] = load.get(key, 0.0) + 1 / len(devices) / len(ways)
            at = (*at[:d], target[d], *at[d + 1 :])
    return max(load.values())


@pytest.mark.parametrize("sizes", [(2,), (4,), (8,), (2, 4), (4, 4), (4, 8), (2, 2, 4)])
@pytest.mark.parametrize("wrap", [False, True])
def test_an_all_to_all_takes_as_long_as_its_busiest_link(sizes: tuple[int, ...], wrap: bool) -> None:
    wraps = tuple(wrap and n % 4 == 0 for n in sizes)
    dims = tuple(Dim(n, "torus", 1e9, 0.0, w) for n, w in zip(sizes, wraps, strict=True))
    axes = tuple("xyz"[: len(sizes)])
    mesh = logical_mesh(_box(*dims), dict(zip(axes, sizes, strict=True)))
    wires = all_to_all_s(mesh, axes, 1e9) - collective_latency_s(mesh, axes, "all_to_all")
    assert wires == pytest.approx(_busiest_link(sizes, wraps))


def _tightest_cut_s(sizes: tuple[int, ...], wraps: tuple[bool, ...], rates: tuple[float, ...]) -> float:
    """All-gather of one byte per device: the least time, by trying every set of devices.

    Each set lacks the bytes of all others, and they come in through its links; that the time of the worst set can be
    met is a theorem (ForestColl).
    """
    n = math.prod(sizes)
    where = np.indices(sizes).reshape(len(sizes), n).T
    inside = (np.arange(1, 2**n - 1)[:, None] >> np.arange(n)) & 1
    intake = np.zeros(len(inside))
    for d, size in enumerate(sizes):
        for step in (1, -1):
            there = where.copy()
            there[:, d] += step
            reached = (there[:, d] >= 0) & (there[:, d] < size) | wraps[d]
            there[:, d] %= size
            other = np.ravel_multi_index(tuple(there.T), sizes)
            for source in np.flatnonzero(reached):
                intake += rates[d] * (1 - inside[:, source]) * inside[:, other[source]]
    return float(((n - inside.sum(1)) / intake).max())


TORI = [((4,), (1.0,)), ((8,), (1.0,)), ((2, 2), (1.0, 1.0)), ((2, 4), (1.0, 1.0)), ((2, 4), (1.0, 9.0)),
        ((2, 4), (9.0, 1.0)), ((4, 4), (1.0, 1.0)), ((4, 4), (1.0, 3.0)), ((2, 2, 2), (1.0, 2.0, 4.0)),
        ((2, 2, 4), (1.0, 1.0, 1.0))]  # fmt: skip


@pytest.mark.parametrize(("sizes", "rates"), TORI)
@pytest.mark.parametrize("wrap", [False, True])
def test_an_all_gather_takes_as_long_as_its_tightest_cut(
    sizes: tuple[int, ...], rates: tuple[float, ...], wrap: bool
) -> None:
    wraps = tuple(wrap and n % 4 == 0 for n in sizes)
    dims = tuple(Dim(n, "torus", r * 1e9, 0.0, w) for n, r, w in zip(sizes, rates, wraps, strict=True))
    axes = tuple("xyz"[: len(sizes)])
    mesh = logical_mesh(_box(*dims), dict(zip(axes, sizes, strict=True)))
    full = math.prod(sizes) * 1e9
    wires = all_gather_s(mesh, axes, full) - collective_latency_s(mesh, axes, "all_gather")
    assert wires == pytest.approx(_tightest_cut_s(sizes, wraps, rates))


def test_hierarchy_carries_one_shard_over_the_network() -> None:
    node, network = Dim(8, "nvlink", 100e9, 0.0), Dim(4, "network", 1e9, 0.0)
    gpu = logical_mesh(_box(network, node, of="h100"), {"x": 4, "y": 8})
    tpu = logical_mesh(_box(network, replace(node, kind="torus", wrap=True)), {"x": 4, "y": 8})
    across, inside = 3 / 4 * 1.0, 7 / 8 * 8e9 / 100e9
    for mesh, expected in ((gpu, max(across, inside)), (tpu, across + inside / 2)):
        wires = all_gather_s(mesh, ("x", "y"), 8e9) - collective_latency_s(mesh, ("x", "y"), "all_gather")
        assert wires == pytest.approx(expected)


def test_published_bandwidths() -> None:
    h100 = logical_mesh(parse_topology("h100:8"), {"x": 8})
    assert 58e6 * 2 * 7 / 8 / all_reduce_s(h100, ("x",), 58e6) / 1e9 == pytest.approx(150, rel=0.05)
    assert 5e9 * 2 * 7 / 8 / all_reduce_s(h100, ("x",), 5e9) / 1e9 == pytest.approx(370, rel=0.05)
    # v7x, taken as what a whole chip takes in over one ring of 4 chips: 90 GB/s each way.
    v7x = chip("v7x")
    ring = Dim(4, "torus", 90e9, v7x.link_latency_s, True, v7x.link_ramp_s)
    mesh = logical_mesh(Topology("ring", v7x, (ring,)), {"x": 4})
    for size, measured in ((1.6e6, 72), (400e6, 179)):
        assert 3 / 4 * size / all_gather_s(mesh, ("x",), size) / 1e9 == pytest.approx(measured, rel=0.06)


@given(groups(), st.sampled_from(MOVING), SIZES, SIZES)
def test_monotone_and_subadditive_in_bytes(group: Group, kind: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    cost = curve(kind, group.mesh, group.axes)
    assert cost(small) <= cost(large)
    # Two messages never cost less apart than combined.
    assert cost(one + other) <= (cost(one) + cost(other)) * (1 + 1e-12)


@given(groups(), st.sampled_from(KINDS))
def test_zero_bytes_cost_the_latency(group: Group, kind: str) -> None:
    nothing = collective_s(kind, group.mesh, group.axes, 0)
    assert nothing == collective_latency_s(group.mesh, group.axes, kind)
    assert 0 <= nothing < 1e-2
    assert (nothing == 0) == (group.size == 1 or kind == "slice")


@given(groups(), SIZES)
def test_order_of_kinds(group: Group, shard: float) -> None:
    mesh, axes = group.mesh, group.axes
    full = shard * group.size
    gather = all_gather_s(mesh, axes, full)
    assert permute_s(mesh, axes, shard) <= gather * (1 + 1e-12)
    assert all_to_all_s(mesh, axes, shard) <= gather * (1 + 1e-12)
    reduce = all_reduce_s(mesh, axes, full)
    assert gather <= reduce <= 2 * gather * (1 + 1e-12)
    scatter = reduce_scatter_s(mesh, axes, full)
    if scatters_by_reducing(mesh, axes):
        assert gather <= scatter <= reduce
    else:
        assert gather == scatter


@given(st.sampled_from(["ring", "line", "switch"]), st.sampled_from(MOVING), st.integers(2, 100), SIZES)
def test_more_devices_never_help_on_the_same_links(links: str, kind: str, n: int, size: float) -> None:
    if links == "switch":
        few, many = (collective_s(kind, _line(k, "nvlink", of="h100"), ("x",), size) for k in (n, n + 1))
    else:
        # A permutation between two devices goes both ways round; otherwise a ring of two is a ring.
        n += 1 if kind == "permute" else 0
        few, many = (collective_s(kind, _line(k, wrap=links == "ring"), ("x",), size) for k in (n, n + 1))
    assert few <= many * (1 + 1e-12)


@given(st.sampled_from(["all_gather", "reduce_scatter", "all_reduce", "broadcast"]), st.integers(3, 130), SIZES)
def test_no_jump_at_any_number_of_devices(kind: str, n: int, size: float) -> None:
    """On a switch the cost is concave in the number of devices: no step is larger than the one before."""
    before, here, after = (
        collective_s(kind, _line(k, "nvlink", of="h100", ramp_s=1e-4), ("x",), size) for k in (n - 1, n, n + 1)
    )
    assert after - here <= (here - before) + 1e-9 * here


@given(groups(), st.sampled_from(MOVING), st.integers(0, 34))
def test_no_jump_at_powers_of_two_bytes(group: Group, kind: str, power: int) -> None:
    cost = curve(kind, group.mesh, group.axes)
    below, at, above = (cost(2**power * (1 + step)) for step in (-1e-6, 0, 1e-6))
    assert below <= at <= above <= below * (1 + 4e-6)


@given(groups(), st.sampled_from(KINDS), st.lists(SIZES, min_size=1, max_size=5))
def test_arrays_price_as_numbers_do(group: Group, kind: str, sizes: list[float]) -> None:
    many = collective_s(kind, group.mesh, group.axes, np.array(sizes, dtype=np.float64))
    assert many.shape == (len(sizes),)
    for got, size in zip(many, sizes, strict=True):
        assert got == pytest.approx(collective_s(kind, group.mesh, group.axes, size), rel=1e-12)


@given(groups(), st.sampled_from(MOVING))
def test_order_of_axes_does_not_matter(group: Group, kind: str) -> None:
    turned = group.axes[::-1]
    assert collective_s(kind, group.mesh, turned, 1e6) == collective_s(kind, group.mesh, group.axes, 1e6)


@given(st.sampled_from(MOVING), st.floats(1e3, 1e10), st.floats(1.5, 10))
def test_faster_links_are_faster(kind: str, size: float, factor: float) -> None:
    """Units: at full rate, time is bytes over bytes per second."""
    slow = _line(8, wrap=True)
    (dim,) = slow.topology.dims
    faster = replace(dim, bandwidth_bytes_per_s=dim.bandwidth_bytes_per_s * factor)
    fast = logical_mesh(_box(faster), {"x": 8})
    assert _wires(kind, slow, size) == pytest.approx(factor * _wires(kind, fast, size), rel=1e-6)


def test_a_group_of_one_is_free() -> None:
    mesh = logical_mesh(parse_topology("v5e:2x4"), {"x": 1, "y": 8})
    for kind in KINDS:
        assert collective_s(kind, mesh, ("x",), 1e9) == 0
        assert collective_s(kind, mesh, (), 1e9) == 0
    assert (all_reduce_s(mesh, ("x",), np.ones(3)) == np.zeros(3)).all()
    assert broadcast_s(mesh, ("y",), 1e9) > 0


def test_collectives_hold_the_links_that_they_use() -> None:
    tpu = logical_mesh(parse_topology("v6e:4x4x2slices"), {"x": 2, "y": 4, "z": 4})
    streams = {a: communication_streams(tpu, tuple(a)) for a in ("x", "y", "z", "yz", "xyz")}
    assert [len(s) for s in streams.values()] == [1, 1, 1, 2, 3]
    assert not set(streams["y"]) & set(streams["z"])
    assert set(streams["yz"]) == set(streams["y"]) | set(streams["z"])
    assert set(streams["xyz"]) == set(streams["x"]) | set(streams["yz"])
    # Two axes on one ring share its links.
    split = logical_mesh(_box(Dim(16, "torus", 1e9, 0.0, True)), {"x": 4, "y": 4})
    assert communication_streams(split, ("x",)) == communication_streams(split, ("y",))
    assert communication_streams(tpu, ()) == ("none",)


def test_a_gpu_issues_collectives_on_one_stream() -> None:
    mesh = logical_mesh(parse_topology("h100:8x2"), {"x": 2, "y": 8})
    assert communication_streams(mesh, ("x",)) == communication_streams(mesh, ("y",)) == ("collectives",)


@pytest.mark.parametrize("size", [-1, -1.0, float("nan"), np.array([1.0, -2.0])])
def test_negative_sizes(size: float | np.ndarray) -> None:
    with pytest.raises(ValueError, match="size"):
        collective_s("all_gather", _line(8), ("x",), size)


def test_unknown_kinds_and_axes() -> None:
    with pytest.raises(ValueError, match="unknown collective 'all_gather_s' .one of all_gather"):
        collective_s("all_gather_s", _line(8), ("x",), 1.0)
    with pytest.raises(MeshError, match="no axis 'y'"):
        collective_s("all_gather", _line(8), ("y",), 1.0)


def _alpa(case: str) -> tuple[float, float]:
    """Six dense layers with bias on cpu:4: communication of data parallel (one combined all-reduce) and of tensor
    parallel (five of activations), float32."""
    batch, hidden = {"big batch": (256, 32), "big matrices": (32, 256)}[case]
    mesh = logical_mesh(parse_topology("cpu:4"), {"x": 4})
    data = all_reduce_s(mesh, ("x",), 6 * 4 * (hidden * hidden + hidden))
    tensor = 5 * all_reduce_s(mesh, ("x",), 4 * batch * hidden)
    return data, tensor


def test_small_networks_on_cpu_devices_are_cut_as_they_should() -> None:
    data, tensor = _alpa("big batch")
    assert data < tensor / 2
    data, tensor = _alpa("big matrices")
    assert tensor < data / 2


def test_latency_is_what_combining_saves() -> None:
    mesh = _line(8, wrap=True)
    cost = curve("all_reduce", mesh, ("x",))
    assert 2 * cost(1e6) - cost(2e6) == pytest.approx(cost.latency_s)
    assert cost.latency_s == pytest.approx(chip("v5p").collective_launch_s + 2 * 4 * 1e-6)
    assert math.isfinite(cost(2**60))
