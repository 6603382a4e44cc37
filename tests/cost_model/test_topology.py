"""Machines by name: shapes, wraparound, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_model.hardware import chip
from cost_model.topology import (
    Dim,
    ImpossibleTopology,
    Topology,
    UnknownTopology,
    known_topologies,
    parse_topology,
    wraps,
)

# name -> (canonical name, kind of links and size per dimension, devices, chips)
SHAPES = {
    "v5p:4x4x4": ("v5p:4x4x4", [("torus", 4)] * 3, 64, 64),
    "v4:2x2x1": ("v4:2x2x1", [("torus", 2), ("torus", 2), ("torus", 1)], 4, 4),
    "v5e:2x4": ("v5e:2x4", [("torus", 2), ("torus", 4)], 8, 8),
    "v5e:1x1": ("v5e:1x1", [("torus", 1), ("torus", 1)], 1, 1),
    "V5litepod:16x16": ("v5e:16x16", [("torus", 16), ("torus", 16)], 256, 256),
    "v6e:16x16x2slices": ("v6e:16x16x2slices", [("network", 2), ("torus", 16), ("torus", 16)], 512, 512),
    "v6e:4x4x1slice": ("v6e:4x4", [("torus", 4), ("torus", 4)], 16, 16),
    "tpu7x:4x4x4": ("v7x:4x4x4", [("torus", 4)] * 3 + [("die", 2)], 128, 64),
    "h100:8": ("h100:8", [("nvlink", 8)], 8, 8),
    "h100:8x1": ("h100:8", [("nvlink", 8)], 8, 8),
    "h100:8x16": ("h100:8x16", [("network", 16), ("nvlink", 8)], 128, 128),
    "h100:8x16norails": ("h100:8x16norails", [("network", 16), ("nvlink", 8)], 128, 128),
    "a100:4": ("a100-80:4", [("nvlink", 4)], 4, 4),
    "gb200:72x4": ("gb200:72x4", [("network", 4), ("nvlink", 72)], 288, 288),
    "cpu:8": ("cpu:8", [("shared", 8)], 8, 8),
    "cpu:4x2": ("cpu:4x2", [("network", 2), ("shared", 4)], 8, 8),
    "a100:8x2+h100:8x2": ("a100-80:8x2+h100:8x2", [("network", 4), ("nvlink", 8)], 32, 32),
}


@pytest.mark.parametrize("text", SHAPES)
def test_shapes(text: str) -> None:
    name, dims, devices, chips = SHAPES[text]
    topology = parse_topology(text)
    assert topology.name == name
    assert [(d.kind, d.size) for d in topology.dims] == dims
    assert topology.num_devices == devices
    assert topology.num_chips == chips
    assert parse_topology(topology.name) == topology


@pytest.mark.parametrize("name", known_topologies())
def test_known_names_are_canonical(name: str) -> None:
    assert parse_topology(name).name == name


@pytest.mark.parametrize(
    ("name", "platform", "slices"), [("v6e:4x4x3slices", "tpu", 3), ("h200:8x4", "gpu", 1), ("cpu:2", "cpu", 1)]
)
def test_platform_and_slices(name: str, platform: str, slices: int) -> None:
    topology = parse_topology(name)
    assert (topology.platform, topology.num_slices) == (platform, slices)


# Wraparound: v5e and v6e only on a full axis of 16, v4, v5p and v7x on multiples of 4.
WRAPS = {
    "v5e:16x16": [True, True],
    "v5e:8x16": [False, True],
    "v6e:8x8": [False, False],
    "v6e:4x4": [False, False],
    "v4:4x4x8": [True, True, True],
    "v4:2x2x4": [False, False, True],
    "v5p:2x2x2": [False, False, False],
    "v5p:8x12x16": [True, True, True],
    "v7x:2x4x4": [False, True, True, False],
}


@pytest.mark.parametrize("name", WRAPS)
def test_wraparound(name: str) -> None:
    assert [d.wrap for d in parse_topology(name).dims] == WRAPS[name]


def test_wrap_rule_of_a_generation() -> None:
    assert [n for n in (1, 2, 4, 8, 12, 16) if wraps(chip("v6e"), n)] == [16]
    assert [n for n in (1, 2, 4, 8, 12, 16) if wraps(chip("v5p"), n)] == [4, 8, 12, 16]


UNKNOWN = {
    "foo:8": "no chip is called 'foo'",
    "v5pp:4x4x4": "nearest: v5p",
    "v5p": "lacks a shape, as in v5p:",
    "v5p:": "lacks a shape",
    "h100:axb": "'axb' is no shape",
    "h100:8x": "'8x' is no shape",
    "v6e:2slices": "'2slices' is no shape",
    "h100:-8": "'-8' is no shape",
    "": "no chip is called ''",
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown(text: str) -> None:
    with pytest.raises(UnknownTopology) as caught:
        parse_topology(text)
    assert UNKNOWN[text] in str(caught.value)
    assert caught.value.text == text
    assert caught.value.known == known_topologies()


def test_unknown_names_the_nearest() -> None:
    with pytest.raises(UnknownTopology, match="did you mean .*v5p:4x4x4"):
        parse_topology("v5pp:4x4x4")


IMPOSSIBLE = {
    "v5e:3x5": ("axis 0 has 3 chips, but can have 2, 4, 8, 16", "v5e:4x4"),
    "v5e:32x16": ("axis 0 has 32 chips", "v5e:16x16"),
    "v5p:4x4": ("3-D torus, but 4x4 has 2 axes", "v5p:2x2x4"),
    "v6e:16x16x2": ("written 16x16x2slices", "v6e:16x16"),
    "v5p:1x2x2": ("axis 0 has 1 chips", "v5p:2x2x1"),
    "v5p:28x28x28": ("21952 chips is not inside the largest slice, 16x20x28", "v5p:16x20x28"),
    "h100:16x2": ("at most 8 GPUs, not 16", "h100:8x4"),
    "h100:8x2x2": ("takes DEVICES or DEVICESxNODES", None),
    "cpu:0": ("every size must be at least 1", None),
    "v6e:4x4x0slices": ("every size must be at least 1", None),
    "a100:4x2+h100:8": ("a100-80:4x2 has 4, h100:8 has 8", None),
}


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_impossible(text: str) -> None:
    why, near = IMPOSSIBLE[text]
    with pytest.raises(ImpossibleTopology) as caught:
        parse_topology(text)
    assert why in str(caught.value)
    if near is not None:
        assert near in caught.value.nearest
    for name in caught.value.nearest:
        assert parse_topology(name).name == name


@given(st.sampled_from(known_topologies()), st.data())
def test_coordinates_are_row_major(name: str, data: st.DataObject) -> None:
    topology = parse_topology(name)
    index = data.draw(st.integers(0, topology.num_devices - 1))
    at = topology.coordinates(index)
    assert all(0 <= x < n for x, n in zip(at, topology.shape, strict=True))
    assert topology.index(at) == index


def test_last_dimension_is_minor() -> None:
    assert parse_topology("h100:8x16").coordinates(19) == (2, 3)


def test_unequal_nodes_count_on_the_weakest_and_keep_their_parts() -> None:
    both = parse_topology("a100:8x2+h100:8x3")
    assert both.chip.peak_flop_per_s("bfloat16") == 312e12
    assert both.dims[0].size == 5
    assert both.dims[0].bandwidth_bytes_per_s == chip("a100").network_bandwidth_bytes_per_s
    assert both.dims[1].bandwidth_bytes_per_s == 300e9
    assert [p.name for p in both.parts] == ["a100-80:8x2", "h100:8x3"]


@pytest.mark.parametrize("bandwidth", [0.0, -1e9, float("nan"), float("inf"), 1e18, 5.0])
def test_absurd_bandwidths(bandwidth: float) -> None:
    with pytest.raises(ImpossibleTopology, match="absurd"):
        Dim(4, "nvlink", bandwidth, 1e-6)


def test_other_absurd_links() -> None:
    with pytest.raises(ImpossibleTopology, match="latency -1 s"):
        Dim(4, "nvlink", 1e9, -1.0)
    with pytest.raises(ImpossibleTopology, match="at least one device, not 0"):
        Dim(0, "nvlink", 1e9, 1e-6)
    with pytest.raises(ImpossibleTopology, match="no such kind of links"):
        Dim(4, "carrier pigeon", 1e9, 1e-6)
    with pytest.raises(ImpossibleTopology, match="no dimension"):
        Topology("nothing", chip("cpu"), ())


def test_memory_limit() -> None:
    small = parse_topology("h100:8").with_memory(10**9)
    assert small.chip.memory_bytes == 10**9
    assert small.num_devices == 8
    with pytest.raises(ImpossibleTopology, match="-5 bytes of memory"):
        small.with_memory(-5)


def test_without_rails_only_the_network_is_slower() -> None:
    rails, plain = parse_topology("h100:8x16"), parse_topology("h100:8x16norails")
    assert plain.dims[0].bandwidth_bytes_per_s == rails.dims[0].bandwidth_bytes_per_s / 2
    assert plain.dims[1:] == rails.dims[1:]
    assert parse_topology("h100:8norails") == parse_topology("h100:8")


@pytest.mark.parametrize("text", ["v5e:4x4norails", "cpu:4x2norails", "v6e:4x4x2slicesnorails"])
def test_rails_are_for_gpus(text: str) -> None:
    with pytest.raises((UnknownTopology, ImpossibleTopology)):
        parse_topology(text)
