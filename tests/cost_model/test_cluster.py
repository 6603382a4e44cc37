"""Machines from a user's file: defaults, measured links, and clear words for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cost_model.cluster import load_topology, topology_of
from cost_model.collectives import all_gather_s
from cost_model.hardware import chip
from cost_model.machine import ImpossibleTopology, UnknownTopology
from cost_model.mesh import logical_mesh
from cost_model.topology import parse_topology

LAB = """
name = "lab"
chip = "h100"
memory_bytes = 70e9
[[dims]]
kind = "network"
size = 3
latency_s = 8e-6
matrix_bytes_per_s = [[0, 40e9, 40e9], [40e9, 0, 12e9], [40e9, 12e9, 0]]
[[dims]]
kind = "nvlink"
size = 8
bandwidth_bytes_per_s = 370e9
"""


def test_a_file_is_a_topology(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(LAB)
    lab = parse_topology(str(path))
    assert lab.name == "lab"
    assert lab.num_devices == 24
    assert lab.chip.memory_bytes == 70_000_000_000
    network, node = lab.dims
    assert network.latency_s == 8e-6
    assert network.bandwidth_bytes_per_s == chip("h100").network_bandwidth_bytes_per_s
    assert network.matrix_bytes_per_s[1] == (40e9, 0.0, 12e9)
    assert node.bandwidth_bytes_per_s == 370e9
    assert node.ramp_s == chip("h100").link_ramp_s


def _table(**dim: Any) -> dict[str, Any]:
    return {"chip": "h100", "dims": [{"kind": "network", "size": 4, **dim}]}


def test_the_slowest_measured_link_of_a_group_counts() -> None:
    fast, slow = 40e9, 4e9
    # Nodes 0, 1 and nodes 2, 3 are near each other; everything between the pairs is slow.
    rows = [[0, fast, slow, slow], [fast, 0, slow, slow], [slow, slow, 0, fast], [slow, slow, fast, 0]]
    mesh = logical_mesh(topology_of(_table(matrix_bytes_per_s=rows), "pairs"), {"far": 2, "near": 2})
    size = 1e9
    equal = logical_mesh(topology_of(_table(bandwidth_bytes_per_s=fast), "equal"), {"far": 2, "near": 2})
    assert all_gather_s(mesh, ("near",), size) == all_gather_s(equal, ("near",), size)
    assert all_gather_s(mesh, ("far",), size) > 5 * all_gather_s(equal, ("far",), size)


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"chip": "h100"}, "lacks 'dims'"),
    ({"dims": []}, "lacks 'chip'"),
    ({"chip": "h1000", "dims": []}, "did you mean h100"),
    ({"chip": "h100", "dims": [], "colour": "red"}, "unknown keys colour"),
    ({"chip": "h100", "dims": "8"}, "must be tables"),
    ({"chip": "h100", "dims": [{"kind": "nvlink"}]}, "needs 'kind' and 'size'"),
    (_table(speed=1e9), "unknown keys speed"),
    (_table(bandwidth_bytes_per_s="fast"), "wrong type"),
]


@pytest.mark.parametrize(("table", "why"), UNKNOWN)
def test_unreadable_tables(table: dict[str, Any], why: str) -> None:
    with pytest.raises(UnknownTopology) as caught:
        topology_of(table, "lab.toml")
    assert why in str(caught.value)
    assert caught.value.text == "lab.toml"


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (_table(bandwidth_bytes_per_s=-1.0), "-1 bytes/s is absurd"),
    (_table(matrix_bytes_per_s=[[0, 1e9], [1e9, 0]]), "a matrix of links is 4 x 4"),
    (_table(matrix_bytes_per_s=[[0, 1e9, 1e9, -1e9]] * 4), "absurd"),
    ({"chip": "h100", "dims": [{"kind": "string", "size": 2}]}, "no kind of links is called 'string'"),
    ({"chip": "h100", "dims": []}, "no dimension"),
]


@pytest.mark.parametrize(("table", "why"), IMPOSSIBLE)
def test_absurd_tables(table: dict[str, Any], why: str) -> None:
    with pytest.raises(ImpossibleTopology) as caught:
        topology_of(table, "lab.toml")
    assert why in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownTopology, match="No such file"):
        load_topology(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("chip = ")
    with pytest.raises(UnknownTopology, match="not TOML"):
        load_topology(str(broken))
