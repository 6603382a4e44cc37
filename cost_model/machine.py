"""What a machine is: a box of devices joined by links of several kinds. Made from a name (`topology`), a file
(`cluster`), or by hand from measured links.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cost_model.hardware import Chip

# What joins the devices along a dimension, with what the word means.
KINDS: Mapping[str, str] = {
    "network": "the data-centre network between nodes or slices",
    "torus": "a line of neighbours, a ring where it wraps",
    "nvlink": "a switch inside a node or rack",
    "shared": "the memory that devices of one host share",
    "die": "the dies of one chip",
}

EXAMPLES = (
    "v4:4x4x4", "v5e:2x4", "v5e:16x16", "v5p:2x2x4", "v5p:4x4x4", "v5p:8x8x8", "v6e:4x4", "v6e:16x16",
    "v6e:16x16x2slices", "v7x:4x4x4", "a100-40:8", "a100-80:8x4", "h100:8", "h100:8x16", "h200:8", "h200:8x4",
    "b200:8x8", "gb200:72x4", "cpu:4", "cpu:8",
)  # fmt: skip


def known_topologies() -> tuple[str, ...]:
    """Example names, for error messages and completion; any legal shape of a known chip is accepted."""
    return EXAMPLES


class UnknownTopology(ValueError):
    """No topology is called so: unknown chip, or unreadable.

    `text`, `why`, examples in `known`, and the `nearest` of them.
    """

    def __init__(self, text: str, why: str) -> None:
        self.text = text
        self.why = why
        self.known = known_topologies()
        self.nearest = tuple(difflib.get_close_matches(text.lower(), self.known, n=3, cutoff=0.5))
        hint = f"; did you mean {', '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"unknown topology {text!r}: {why}{hint} (for example {', '.join(self.known)})")


class ImpossibleTopology(ValueError):
    """The description reads, but no such machine exists.

    `text`, `why` with the arithmetic, and in `nearest` names that exist.
    """

    def __init__(self, text: str, why: str, nearest: tuple[str, ...] = ()) -> None:
        self.text = text
        self.why = why
        self.nearest = nearest
        hint = f"; nearest that exist: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"impossible topology {text!r}: {why}{hint}")


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of the box.

    `kind` is one of KINDS. `bandwidth_bytes_per_s`: per device, one direction (of one link for a torus, of the whole
    port otherwise). `latency_s`: per hop. `ramp_s`: a transfer of t at full rate takes t + sqrt(ramp_s * t).
    `matrix_bytes_per_s[i][j]`, where measured, is the bandwidth from position i to position j for one device, and
    then counts instead of `bandwidth_bytes_per_s` (clusters are not equal); its diagonal is ignored.
    """

    size: int
    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float
    wrap: bool = False
    ramp_s: float = 0.0
    matrix_bytes_per_s: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        text = f"{self.kind}:{self.size}"
        if self.kind not in KINDS:
            raise ImpossibleTopology(text, f"no such kind of links (one of {', '.join(KINDS)})")
        if self.size < 1:
            raise ImpossibleTopology(text, f"a dimension has at least one device, not {self.size}")
        if not (0 <= self.latency_s < 10 and 0 <= self.ramp_s < 10):
            raise ImpossibleTopology(text, f"latency {self.latency_s:g} s or ramp {self.ramp_s:g} s is absurd")
        rows = self.matrix_bytes_per_s
        if rows and (self.kind == "torus" or len(rows) != self.size or any(len(r) != self.size for r in rows)):
            shape = f"{len(rows)} rows of {sorted({len(r) for r in rows})}"
            raise ImpossibleTopology(
                text, f"a matrix of links is {self.size} x {self.size} and not of a torus: {shape}"
            )
        off_diagonal = [x for i, row in enumerate(rows) for j, x in enumerate(row) if i != j]
        for bandwidth in (self.bandwidth_bytes_per_s, *off_diagonal):
            if not 1e3 <= bandwidth < 1e15:
                raise ImpossibleTopology(text, f"a bandwidth of {bandwidth:g} bytes/s is absurd (1e3 ... 1e15)")

    @property
    def slow(self) -> bool:
        """Whether these links leave the node or slice."""
        return self.kind == "network"

    def rate_between(self, size: int, stride: int) -> float:
        """What groups of `size` positions, `stride` apart, can count on: the slowest link inside any group."""
        rows = self.matrix_bytes_per_s
        if not rows:
            return self.bandwidth_bytes_per_s
        block = size * stride
        starts = [o + i for o in range(0, self.size, block) for i in range(stride)]
        groups = [range(s, s + block, stride) for s in starts]
        links = [min(rows[i][j], rows[j][i]) for g in groups for i in g for j in g if i < j]
        return min(links, default=self.bandwidth_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine: `dims` from the slowest to the fastest links.

    One entry is one JAX device (see `hardware` for v4 and v7x). Device i has the coordinates `coordinates(i)`,
    row-major: the first dimension is the most significant. Where nodes differ, `chip` holds the weakest of every figure
    and `parts` the homogeneous machines in the order of the first dimension.
    """

    name: str
    chip: Chip
    dims: tuple[Dim, ...]
    num_slices: int = 1
    parts: tuple[Topology, ...] = ()

    def __post_init__(self) -> None:
        if not self.dims:
            raise ImpossibleTopology(self.name, "it has no dimension; a single device is one dimension of size 1")

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape)

    @property
    def num_chips(self) -> int:
        return self.num_devices // self.chip.devices_per_chip

    @property
    def platform(self) -> str:
        """One of "tpu", "gpu", "cpu"."""
        return self.chip.platform

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

    def with_memory(self, memory_bytes: int) -> Topology:
        """The same machine whose devices let a program use `memory_bytes`."""
        if memory_bytes < 1:
            raise ImpossibleTopology(self.name, f"a device with {memory_bytes} bytes of memory")
        return replace(self, chip=replace(self.chip, memory_bytes=memory_bytes))
