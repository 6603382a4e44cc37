"""Machines that no name describes: a user's TOML file with measured links, and joins of unequal nodes.

A file:

    name = "lab"
    chip = "h100"
    memory_bytes = 70e9                       # what a program may use per device; default: the chip's
    [[dims]]                                  # from the slowest links to the fastest
    kind = "network"
    size = 3
    bandwidth_bytes_per_s = 40e9              # per device, one direction; default: the chip's
    latency_s = 8e-6                          # default: the chip's
    matrix_bytes_per_s = [[0, 40e9, 40e9],    # optional: measured between nodes, per device
                          [40e9, 0, 12e9],
                          [40e9, 12e9, 0]]
    [[dims]]
    kind = "nvlink"
    size = 8
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from cost_model.hardware import Chip, UnknownChip, chip, weakest
from cost_model.machine import KINDS, Dim, ImpossibleTopology, Topology, UnknownTopology

_DIM_KEYS = tuple(f.name for f in fields(Dim))
_TOP_KEYS = ("name", "chip", "memory_bytes", "num_slices", "dims")


def load_topology(path: str) -> Topology:
    """Read a machine from a TOML file (see the module's text).

    Raises UnknownTopology (no such file, not TOML, unknown key or chip), ImpossibleTopology (absurd numbers).
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UnknownTopology(path, f"the file cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UnknownTopology(path, f"the file is not TOML: {error}") from error
    return topology_of(table, path)


def topology_of(table: Mapping[str, Any], source: str) -> Topology:
    """A machine from the table of such a file; `source` names it in messages."""
    _check_keys(source, "the file", table, _TOP_KEYS)
    for key in ("chip", "dims"):
        if key not in table:
            raise UnknownTopology(source, f"it lacks {key!r}")
    try:
        kind = chip(str(table["chip"]))
    except UnknownChip as error:
        raise UnknownTopology(source, str(error)) from error
    if not isinstance(table["dims"], list) or not all(isinstance(d, dict) for d in table["dims"]):
        raise UnknownTopology(source, "'dims' must be tables: [[dims]]")
    dims = tuple(_dim(source, kind, d) for d in table["dims"])
    topology = Topology(str(table.get("name", source)), kind, dims, int(table.get("num_slices", 1)))
    return topology.with_memory(int(table["memory_bytes"])) if "memory_bytes" in table else topology


def _check_keys(source: str, where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    foreign = sorted(set(table) - set(known))
    if foreign:
        raise UnknownTopology(source, f"{where} has unknown keys {', '.join(foreign)} (known: {', '.join(known)})")


def _dim(source: str, kind: Chip, table: Mapping[str, Any]) -> Dim:
    """One [[dims]] table; what it does not say is the chip's."""
    _check_keys(source, "a [[dims]] table", table, _DIM_KEYS)
    if "kind" not in table or "size" not in table:
        raise UnknownTopology(source, "every [[dims]] needs 'kind' and 'size'")
    links = table["kind"]
    if links not in KINDS:
        raise ImpossibleTopology(source, f"no kind of links is called {links!r} (one of {', '.join(KINDS)})")
    prefix = "network" if links == "network" else "link"
    rate = kind.die_bandwidth_bytes_per_s if links == "die" else getattr(kind, f"{prefix}_bandwidth_bytes_per_s")
    defaults = {
        "bandwidth_bytes_per_s": rate,
        "latency_s": getattr(kind, f"{prefix}_latency_s"),
        "ramp_s": getattr(kind, f"{prefix}_ramp_s"),
    }
    given = dict(table)
    try:
        if "matrix_bytes_per_s" in given:
            rows = given["matrix_bytes_per_s"]
            given["matrix_bytes_per_s"] = tuple(tuple(float(x) for x in row) for row in rows)
        return Dim(**{**defaults, **given})
    except TypeError as error:
        raise UnknownTopology(
            source, f"a [[dims]] table of {links!r} has a value of the wrong type: {error}"
        ) from error


def join(parts: Sequence[Topology]) -> Topology:
    """One machine of unequal nodes: `parts` one after the other along the network.

    The joined machine counts on the weakest of every figure (a step waits for its slowest device). Raises
    ImpossibleTopology unless the nodes (or slices) of all parts have the same shape.
    """
    name = "+".join(p.name for p in parts)
    insides = [_inside(p) for p in parts]
    shapes = [tuple((d.kind, d.size) for d in inside) for inside in insides]
    if len(set(shapes)) > 1:
        each = ", ".join(
            f"{p.name} has {'x'.join(str(d.size) for d in i)}" for p, i in zip(parts, insides, strict=True)
        )
        raise ImpossibleTopology(
            name, f"nodes of different shapes make no box of devices: {each}; plan them separately"
        )
    kind = weakest([p.chip for p in parts])
    inside = tuple(_slowest_dim(together) for together in zip(*insides, strict=True))
    nodes = sum(_nodes(p) for p in parts)
    network = Dim(
        nodes,
        "network",
        min([kind.network_bandwidth_bytes_per_s, *(p.dims[0].bandwidth_bytes_per_s for p in parts if p.dims[0].slow)]),
        kind.network_latency_s,
        ramp_s=kind.network_ramp_s,
    )
    slices = nodes if kind.torus_rank else 1
    return Topology(name, kind, (network, *inside), slices, tuple(parts))


def _inside(part: Topology) -> tuple[Dim, ...]:
    return tuple(d for d in part.dims if not d.slow)


def _nodes(part: Topology) -> int:
    return part.num_devices // max(1, _product(_inside(part)))


def _product(dims: Sequence[Dim]) -> int:
    out = 1
    for d in dims:
        out *= d.size
    return out


def _slowest_dim(dims: Sequence[Dim]) -> Dim:
    return replace(
        dims[0],
        bandwidth_bytes_per_s=min(d.bandwidth_bytes_per_s for d in dims),
        latency_s=max(d.latency_s for d in dims),
        ramp_s=max(d.ramp_s for d in dims),
        wrap=all(d.wrap for d in dims),
    )
