"""Machines by name: `v5p:4x4x4`, `v6e:16x16x2slices`, `h100:8x16`, `a100:8x2+h100:8x2`, `cpu:8`, `cluster.toml`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping

from cost_model.cluster import join, load_topology
from cost_model.hardware import Chip, UnknownChip, chip
from cost_model.machine import EXAMPLES, Dim, ImpossibleTopology, Topology, UnknownTopology, known_topologies

__all__ = [
    "Dim",
    "ImpossibleTopology",
    "Topology",
    "UnknownTopology",
    "known_topologies",
    "parse_topology",
    "wraps",
]

# The largest torus of a generation, sorted: v4 4,096 chips, v5p 8,960, v7x 9,216, the others 256 (vendor).
_LARGEST: Mapping[str, tuple[int, ...]] = {
    "v4": (16, 16, 16),
    "v5p": (16, 20, 28),
    "v7x": (16, 24, 24),
    "v5e": (16, 16),
    "v6e": (16, 16),
}

# Of a card's port, what groups across nodes get without rails: their flows cross a second layer of switches with half
# the links (a plain choice; a file says what was measured).
NO_RAILS_SHARE = 0.5


def parse_topology(text: str) -> Topology:
    """The machine of a name.

    TPU: `v5p:4x4x4`, `v5e:2x4`, several slices as `v6e:16x16x2slices`. GPU and CPU: `h100:8` (one node), `h100:8x16` (8
    per node, 16 nodes), on rails: card i of every node is on the same switch. `h100:8x16norails` is a cluster whose
    nodes each hang on one switch, with half as many links up from it. Unequal nodes are joined by `+`:
    `a100:8x2+h100:8x2`. A name that ends in `.toml` is a file (see `cluster.load_topology`). Case does not matter,
    `tpu7x` is `v7x`, `a100` is `a100-80`.
    Raises UnknownTopology (no such chip, unreadable) and ImpossibleTopology (no such machine).
    """
    if text.strip().lower().endswith(".toml"):
        return load_topology(text.strip())
    parts = [_parse_part(text, part) for part in text.strip().lower().split("+")]
    return parts[0] if len(parts) == 1 else join(parts)


def _parse_part(text: str, part: str) -> Topology:
    """One homogeneous machine; `text` is the whole name, for messages."""
    head, _, shape = part.strip().partition(":")
    try:
        kind = chip(head)
    except UnknownChip as error:
        near = f" (nearest: {', '.join(error.nearest)})" if error.nearest else ""
        raise UnknownTopology(text, f"no chip is called {head!r}{near}; chips are {', '.join(error.known)}") from error
    example = next(e for e in EXAMPLES if e.startswith(kind.name + ":"))
    if not shape:
        raise UnknownTopology(text, f"it lacks a shape, as in {example}")
    *numbers, last = shape.split("x")
    num_slices, rails = 1, True
    if last.endswith("norails") and kind.max_domain:
        last, rails = last.removesuffix("norails"), False
    if match := re.fullmatch(r"(\d+)slices?", last):
        num_slices = int(match[1])
    else:
        numbers.append(last)
    if not numbers or not all(re.fullmatch(r"\d+", n) for n in numbers):
        raise UnknownTopology(text, f"{shape!r} is no shape, as in {example}")
    sizes = tuple(int(n) for n in numbers)
    if min(*sizes, num_slices) < 1:
        raise ImpossibleTopology(text, "every size must be at least 1")
    if kind.torus_rank:
        return _torus(text, kind, sizes, num_slices)
    if len(sizes) > 2 or num_slices > 1:
        raise ImpossibleTopology(text, f"{kind.name} takes DEVICES or DEVICESxNODES, as in {example}")
    return _switched(text, kind, sizes[0], sizes[1] if len(sizes) == 2 else 1, rails)


def _network(kind: Chip, size: int, rails: bool = True) -> Dim:
    bandwidth = kind.network_bandwidth_bytes_per_s * (1.0 if rails else NO_RAILS_SHARE)
    return Dim(size, "network", bandwidth, kind.network_latency_s, ramp_s=kind.network_ramp_s)


def _switched(text: str, kind: Chip, per_node: int, nodes: int, rails: bool) -> Topology:
    """GPUs in NVLink domains, or virtual devices of a host."""
    if kind.max_domain and per_node > kind.max_domain:
        why = f"one NVLink domain of {kind.name} has at most {kind.max_domain} GPUs, not {per_node}"
        needed = -(-per_node * nodes // kind.max_domain)
        raise ImpossibleTopology(text, why, (f"{kind.name}:{kind.max_domain}x{needed}",))
    links = "shared" if kind.platform == "cpu" else "nvlink"
    local = Dim(per_node, links, kind.link_bandwidth_bytes_per_s, kind.link_latency_s, ramp_s=kind.link_ramp_s)
    name = f"{kind.name}:{per_node}"
    if nodes == 1:
        return Topology(name, kind, (local,))
    return Topology(f"{name}x{nodes}{'' if rails else 'norails'}", kind, (_network(kind, nodes, rails), local))


def _torus(text: str, kind: Chip, sizes: tuple[int, ...], num_slices: int) -> Topology:
    _check_torus(text, kind, sizes)
    rate, hop_s, ramp_s = kind.link_bandwidth_bytes_per_s, kind.link_latency_s, kind.link_ramp_s
    dims = [Dim(n, "torus", rate, hop_s, wraps(kind, n), ramp_s) for n in sizes]
    if kind.devices_per_chip > 1:
        # The dies of a chip share its links (already halved in the table) and talk to each other directly.
        dims.append(Dim(kind.devices_per_chip, "die", kind.die_bandwidth_bytes_per_s, hop_s))
    name = f"{kind.name}:{_text(sizes)}"
    if num_slices > 1:
        dims.insert(0, _network(kind, num_slices))
        name += f"x{num_slices}slices"
    return Topology(name, kind, tuple(dims), num_slices)


def wraps(kind: Chip, size: int) -> bool:
    """Whether a torus axis of `size` chips is closed to a ring: v5e and v6e only a full axis of 16, the 3-D generations
    every multiple of 4 (scaling-book, `tpus`)."""
    return size == 16 if kind.torus_rank == 2 else size % 4 == 0


def _check_torus(text: str, kind: Chip, sizes: tuple[int, ...]) -> None:
    """Raise ImpossibleTopology unless a slice of that shape exists (or it is a single chip)."""
    rank, nearest = kind.torus_rank, _nearest_shapes(kind, sizes)
    if len(sizes) != rank:
        why = f"{kind.name} is a {rank}-D torus, but {_text(sizes)} has {len(sizes)} axes"
        if len(sizes) == rank + 1:
            why += f"; several slices are written {_text(sizes)}slices"
        raise ImpossibleTopology(text, why, nearest)
    if set(sizes) == {1}:
        return
    for axis, size in enumerate(sizes):
        allowed = _axis_sizes(kind, axis)
        if size not in allowed:
            why = f"axis {axis} has {size} chips, but can have {', '.join(map(str, allowed))} (a host holds 2x2 chips)"
            raise ImpossibleTopology(text, why, nearest)
    largest = _LARGEST[kind.name]
    if not _fits(sizes, largest):
        why = f"{_text(sizes)} = {math.prod(sizes)} chips is not inside the largest slice, {_text(largest)}"
        raise ImpossibleTopology(text, why, nearest)


def _text(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _fits(sizes: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    return all(n <= limit for n, limit in zip(sorted(sizes), largest, strict=True))


def _axis_sizes(kind: Chip, axis: int) -> tuple[int, ...]:
    """Sizes of an axis: hosts of 2x2 chips; above that powers of two (2-D) or multiples of 4 (3-D)."""
    if kind.torus_rank == 2:
        return (2, 4, 8, 16)
    fours = tuple(range(4, max(_LARGEST[kind.name]) + 1, 4))
    return (1, 2, *fours) if axis == 2 else (2, *fours)


def _nearest_shapes(kind: Chip, sizes: tuple[int, ...], count: int = 3) -> tuple[str, ...]:
    """Names of slices that exist with about as many chips, nearest first; ties to the most equal axes."""
    largest = _LARGEST[kind.name]
    options = itertools.product(*(_axis_sizes(kind, axis) for axis in range(kind.torus_rank)))
    shapes = {s for s in options if _fits(s, largest) and (list(s) == sorted(s) or s == (2, 2, 1))}
    shapes.add((1,) * kind.torus_rank)
    wanted = math.prod(sizes)

    def distance(shape: tuple[int, ...]) -> tuple[float, int, tuple[int, ...]]:
        return abs(math.log(math.prod(shape) / wanted)), max(shape), shape

    return tuple(f"{kind.name}:{_text(s)}" for s in sorted(shapes, key=distance)[:count])
