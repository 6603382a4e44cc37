"""The machine: how many devices, joined by which links; parsed from a name or built by hand from measured links.

A `Topology` is a box of devices. Device i has the coordinates `coordinates(i)`, row-major: the first dimension is the most
significant. Dimensions run from the slowest links (slices, nodes) to the fastest (torus axes, NVLink, dies of one chip).
One entry is one JAX device; see `hardware` for v4 and v7x.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from cost_model.hardware import Chip, UnknownChip, chip

KINDS = ("network", "torus", "nvlink", "shared", "die")
SLOW_KINDS = ("network",)

# The largest torus that is offered: v4 4,096 chips, v5p 8,960, v7x 9,216, the others 256 (vendor's documentation).
_MAX_TORUS = {"v4": (16, 16, 16), "v5p": (16, 20, 28), "v7x": (16, 24, 24), "v5e": (16, 16), "v6e": (16, 16)}
_EXAMPLES = (
    "v4:4x4x4", "v5e:2x4", "v5e:16x16", "v5p:2x2x4", "v5p:4x4x4", "v5p:8x8x8", "v6e:4x4", "v6e:16x16", "v6e:16x16x2slices",
    "v7x:4x4x4", "a100-40:8", "a100-80:8x4", "h100:8", "h100:8x16", "h200:8", "h200:8x4", "b200:8x8", "gb200:72x4",
    "cpu:4", "cpu:8",
)  # fmt: skip


class UnknownTopology(ValueError):
    """The text is no topology: unknown chip, or a form that cannot be read. `text`, `known` examples, `nearest` of them."""

    def __init__(self, text: str, why: str) -> None:
        self.text = text
        self.why = why
        self.known = known_topologies()
        self.nearest = tuple(difflib.get_close_matches(text.lower(), self.known, n=3, cutoff=0.5))
        hint = f"; did you mean {', '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"unknown topology {text!r}: {why}{hint} (for example {', '.join(self.known)})")


class ImpossibleTopology(ValueError):
    """The text reads, but no such machine exists. `text`, `why` with the arithmetic, `nearest` shapes that exist."""

    def __init__(self, text: str, why: str, nearest: tuple[str, ...] = ()) -> None:
        self.text = text
        self.why = why
        self.nearest = nearest
        hint = f"; nearest that exist: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"impossible topology {text!r}: {why}{hint}")


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of the box.

    kind: "torus" (a line of neighbours, a ring where `wrap`), "nvlink" (a switch), "die" (devices of one chip),
    "network" (the data-centre network), "shared" (devices of one host through its memory).
    `bandwidth_bytes_per_s`: per device, one direction (of one link for a torus, of the whole port otherwise).
    `latency_s`: per hop. `ramp_s`: a transfer that would take t at full rate takes t + sqrt(ramp_s * t).
    """

    size: int
    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float
    wrap: bool = False
    ramp_s: float = 0.0

    def __post_init__(self) -> None:
        text = f"{self.kind}:{self.size}"
        if self.kind not in KINDS:
            raise ImpossibleTopology(text, f"no such kind of links (one of {', '.join(KINDS)})")
        if self.size < 1:
            raise ImpossibleTopology(text, f"a dimension has at least one device, not {self.size}")
        if not 0 < self.bandwidth_bytes_per_s < 1e15:
            raise ImpossibleTopology(text, f"a bandwidth of {self.bandwidth_bytes_per_s:g} bytes/s is absurd")
        if not (0 <= self.latency_s < 10 and 0 <= self.ramp_s < 10):
            raise ImpossibleTopology(text, f"latency {self.latency_s:g} s or ramp {self.ramp_s:g} s is absurd")

    @property
    def slow(self) -> bool:
        """Whether these links leave the node or slice."""
        return self.kind in SLOW_KINDS


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine: `dims` from the slowest to the fastest links; `name` is canonical (parsing it gives an equal topology)."""

    name: str
    chip: Chip
    dims: tuple[Dim, ...]
    num_slices: int = 1

    def __post_init__(self) -> None:
        if not self.dims:
            raise ImpossibleTopology(self.name, "it has no dimension; a single device is one dimension of size 1")

    @property
    def num_devices(self) -> int:
        return math.prod(d.size for d in self.dims)

    @property
    def platform(self) -> str:
        """ "tpu", "gpu" or "cpu"."""
        return self.chip.platform

    @property
    def num_chips(self) -> int:
        return self.num_devices // self.chip.devices_per_chip

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)

    def coordinates(self, index: int) -> tuple[int, ...]:
        """Coordinates of device `index` (0 ... num_devices - 1), one per dimension."""
        out: list[int] = []
        for size in reversed(self.shape):
            index, at = divmod(index, size)
            out.append(at)
        return tuple(reversed(out))

    def index(self, coordinates: tuple[int, ...]) -> int:
        """The device at `coordinates`."""
        out = 0
        for size, at in zip(self.shape, coordinates, strict=True):
            out = out * size + at
        return out


def known_topologies() -> tuple[str, ...]:
    """Example names, for error messages and completion; any legal shape of a known chip is accepted."""
    return _EXAMPLES


def parse_topology(text: str) -> Topology:
    """The machine of a name.

    TPU: `v5p:4x4x4`, `v5e:2x4`, several slices as `v6e:16x16x2slices`. GPU and CPU: `h100:8` (one node), `h100:8x16` (8 per
    node, 16 nodes). Case does not matter, `tpu7x` is `v7x`, `a100` is `a100-80`.
    Raises UnknownTopology (no such chip, unreadable) and ImpossibleTopology (no such machine).
    """
    head, colon, shape = text.strip().lower().partition(":")
    try:
        kind = chip(head)
    except UnknownChip as error:
        near = f"; nearest chips: {', '.join(error.nearest)}" if error.nearest else ""
        raise UnknownTopology(text, f"no chip is called {head!r}{near}; chips: {', '.join(error.known)}") from error
    if not colon or not shape:
        raise UnknownTopology(text, f"it lacks a shape, as in {_example(kind)}")
    *parts, last = shape.split("x")
    num_slices = 1
    if match := re.fullmatch(r"(\d+)slices?", last):
        num_slices = int(match[1])
    else:
        parts.append(last)
    if not parts or not all(re.fullmatch(r"\d+", p) for p in parts):
        raise UnknownTopology(text, f"{shape!r} is no shape, as in {_example(kind)}")
    sizes = tuple(int(p) for p in parts)
    if min(*sizes, num_slices) < 1:
        raise ImpossibleTopology(text, "every size must be at least 1")
    return _tpu(text, kind, sizes, num_slices) if kind.torus_rank else _switched(text, kind, sizes, num_slices)


def _example(kind: Chip) -> str:
    return next(e for e in _EXAMPLES if e.startswith(kind.name + ":"))


def _network(kind: Chip, size: int) -> Dim:
    return Dim(
        size, "network", kind.network_bandwidth_bytes_per_s, kind.network_latency_s, ramp_s=kind.network_ramp_s
    )  # fmt: skip


def _tpu(text: str, kind: Chip, sizes: tuple[int, ...], num_slices: int) -> Topology:
    _check_torus(text, kind, sizes)
    dims = [
        Dim(n, "torus", kind.link_bandwidth_bytes_per_s, kind.link_latency_s, wraps(kind, n), kind.link_ramp_s)
        for n in sizes
    ]
    if kind.devices_per_chip > 1:
        # The two dies of a chip share its links (already halved in the table) and talk to each other directly.
        dims.append(Dim(kind.devices_per_chip, "die", kind.die_bandwidth_bytes_per_s, kind.link_latency_s))
    name = f"{kind.name}:{'x'.join(map(str, sizes))}"
    if num_slices > 1:
        dims.insert(0, _network(kind, num_slices))
        name += f"x{num_slices}slices"
    return Topology(name, kind, tuple(dims), num_slices)


def wraps(kind: Chip, size: int) -> bool:
    """Whether a torus axis of `size` chips is closed to a ring: v5e and v6e only a full axis of 16, the others every
    multiple of 4 (scaling-book, `tpus`)."""
    return size == 16 if kind.torus_rank == 2 else size % 4 == 0


def _check_torus(text: str, kind: Chip, sizes: tuple[int, ...]) -> None:
    limits = _MAX_TORUS[kind.name]
    if len(sizes) != kind.torus_rank:
        hint = ""
        if len(sizes) == kind.torus_rank + 1:
            hint = f"; several slices are written {'x'.join(map(str, sizes[:-1]))}x{sizes[-1]}slices"
        raise ImpossibleTopology(
            text, f"{kind.name} is a {kind.torus_rank}-D torus, {'x'.join(map(str, sizes))} has {len(sizes)} axes{hint}",
            _nearest_shapes(kind, sizes),
        )  # fmt: skip
    if set(sizes) == {1}:
        return
    for axis, n in enumerate(sizes):
        if n not in _axis_sizes(kind, axis):
            allowed = ", ".join(map(str, _axis_sizes(kind, axis)))
            why = f"axis {axis} has {n} chips; a {kind.name} slice is made of hosts of 2x2 chips, so it may have {allowed}"
            raise ImpossibleTopology(text, why, _nearest_shapes(kind, sizes))
    if any(n > limit for n, limit in zip(sorted(sizes), limits, strict=True)):
        whole = "x".join(map(str, limits))
        why = f"{math.prod(sizes)} chips in {'x'.join(map(str, sizes))} do not fit in the largest slice, {whole}"
        raise ImpossibleTopology(text, why, _nearest_shapes(kind, sizes))


def _axis_sizes(kind: Chip, axis: int) -> tuple[int, ...]:
    """Sizes that an axis may have: blocks of 2x2 chips, and above that powers of two (2-D) or multiples of 4 (3-D)."""
    limits = _MAX_TORUS[kind.name]
    if kind.torus_rank == 2:
        return (2, 4, 8, 16)
    fours = tuple(range(4, max(limits) + 1, 4))
    return (1, 2, *fours) if axis == 2 else (2, *fours)


def _nearest_shapes(kind: Chip, sizes: tuple[int, ...], count: int = 3) -> tuple[str, ...]:
    """Shapes that exist with about as many chips, nearest first; ties to the squarer one."""
    rank, limits = kind.torus_rank, _MAX_TORUS[kind.name]
    shapes: list[tuple[int, ...]] = [(1,) * rank]
    axes = [_axis_sizes(kind, axis) for axis in range(rank)]
    grid: list[tuple[int, ...]] = [()]
    for options in axes:
        grid = [(*g, n) for g in grid for n in options]
    shapes += [g for g in grid if list(g) == sorted(g) and all(n <= m for n, m in zip(g, limits, strict=True))]
    if rank == 3:
        shapes.append((2, 2, 1))
    wanted = math.prod(sizes)

    def distance(shape: tuple[int, ...]) -> tuple[float, int]:
        return abs(math.log(math.prod(shape) / wanted)), max(shape)

    nearest = sorted(shapes, key=distance)[:count]
    return tuple(f"{kind.name}:{'x'.join(map(str, s))}" for s in nearest)


def _switched(text: str, kind: Chip, sizes: tuple[int, ...], num_slices: int) -> Topology:
    """GPUs in NVLink domains, or devices of a host: SIZE or SIZExNODES."""
    if len(sizes) > 2 or num_slices > 1:
        raise ImpossibleTopology(text, f"{kind.name} takes DEVICES or DEVICESxNODES, as in {_example(kind)}")
    per_node = sizes[0]
    if kind.max_domain and per_node > kind.max_domain:
        nodes = -(-per_node // kind.max_domain)
        why = f"one NVLink domain of {kind.name} has at most {kind.max_domain} GPUs, not {per_node}"
        raise ImpossibleTopology(text, why, (f"{kind.name}:{kind.max_domain}x{nodes}",))
    links = "shared" if kind.platform == "cpu" else "nvlink"
    local = Dim(per_node, links, kind.link_bandwidth_bytes_per_s, kind.link_latency_s, ramp_s=kind.link_ramp_s)
    name = f"{kind.name}:{per_node}"
    if len(sizes) == 1 or sizes[1] == 1:
        return Topology(name, kind, (local,))
    return Topology(f"{name}x{sizes[1]}", kind, (_network(kind, sizes[1]), local))


