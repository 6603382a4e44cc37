"""The table of chips: peaks, memory, links; every number with its source and how it came to be known.

One row describes one JAX *device*. TPU v7x shows two devices (cores) per chip, so its row is half a chip; TPU v4 is
taken as it is used, one device per chip ("megacore"), although a topology compiled ahead of time may list both cores.

Sources are named by short keys:

- "vendor": the vendor's data sheet or cloud documentation page of that chip.
- "jax": JAX's own table of TPU figures (`jax/_src/tpu_info.py`).
- "book": "How to scale your model" (jax-ml/scaling-book), chapters `tpus` and `gpus`.
- "recipes": micro-benchmarks of AI-Hypercomputer/tpu-recipes.
- "maxtext": derived from MaxText's `sharding.md` or its published runs.
- "compiler": what the TPU compiler reports: memory when a program does not fit, cycles of operations.
- "this project": measured by the authors.
- "plain choice": no source; a documented choice, to be replaced by a calibrated profile.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table: its value in the unit that the field's name says, how it is known, and from where.

    kind: "datasheet" (the vendor says so), "measured" (somebody ran it), "derived" (computed from other figures)
    or "assumed" (a plain choice).
    """

    value: float
    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class Chip:
    """What one device of a kind can do. Bandwidths are one-way and decimal; times in seconds.

    `matmul_flop_per_s`: peak rate of matrix products by numpy dtype name. `matmul_efficiency` is the share of it that a
    huge product reaches, `matmul_ramp_s` the size (as time at that rate) below which it falls off (see `compute`).
    `sustained_share`: what a whole training step keeps of the rates of single operations (see `transformer`).
    `memory_bytes`: what a program may use, `memory_capacity_bytes`: what the device has.
    `link_*`: one link of the fast interconnect (a torus direction, or the whole NVLink port), per device and direction;
    `die_*`: between the devices of one chip; `network_*`: the data-centre network, per device.
    `*_ramp_s`: transfer time at full rate below which the bandwidth falls off (see `collectives`).
    `tile`: what rows, columns and depth of a matrix product are padded to (m, n, k).
    `torus_rank`: dimensions of the torus (0: a switch), `max_domain`: devices of one NVLink domain (0: no limit known).
    `scatters_by_reducing`: the compiler all-reduces where a group is a whole slice (see `scatters`).
    `figures`: the table's rows behind these numbers, by field name.
    """

    name: str
    platform: str
    matmul_flop_per_s: Mapping[str, float] = field(hash=False)
    vector_flop_per_s: float
    memory_bytes: int
    memory_capacity_bytes: int
    memory_bandwidth_bytes_per_s: float
    memory_efficiency: float
    matmul_efficiency: float
    matmul_ramp_s: float
    sustained_share: float
    launch_overhead_s: float
    collective_launch_s: float
    overlaps_collectives: bool
    link_bandwidth_bytes_per_s: float
    link_latency_s: float
    link_ramp_s: float
    network_bandwidth_bytes_per_s: float
    network_latency_s: float
    network_ramp_s: float
    host_bandwidth_bytes_per_s: float
    die_bandwidth_bytes_per_s: float = 0.0
    tile: tuple[int, int, int] = (1, 1, 1)
    devices_per_chip: int = 1
    torus_rank: int = 0
    max_domain: int = 0
    scatters_by_reducing: bool = False
    figures: Mapping[str, Figure] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def peak_flop_per_s(self, dtype: str) -> float:
        """Peak matrix rate for a numpy dtype name.

        A dtype without an own row runs as what the hardware turns it into: 8-bit floats share one rate (or bfloat16's
        where the chip has none), other 16-bit and 8-bit types bfloat16's, everything else float32's.
        """
        rates = self.matmul_flop_per_s
        if dtype in rates:
            return rates[dtype]
        if dtype.startswith(("float8", "float4")):
            return rates.get("float8_e4m3fn", rates["bfloat16"])
        if dtype in ("int4", "uint4", "uint8"):
            return rates.get("int8", rates["bfloat16"])
        return rates["float16"] if dtype in ("int16", "uint16") else rates["float32"]


class UnknownChip(ValueError):
    """No row of that name. `name` is what was asked, `known` all names, `nearest` the closest ones."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known = tuple(CHIPS)
        self.nearest = tuple(difflib.get_close_matches(name.lower(), [*CHIPS, *ALIASES], n=3, cutoff=0.4))
        hint = f"; did you mean {', '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"unknown chip {name!r}{hint} (known: {', '.join(self.known)})")


def chip(name: str) -> Chip:
    """The row of a chip by name or alias, whatever the case. Raises UnknownChip."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in CHIPS:
        raise UnknownChip(name)
    return CHIPS[key]


def weakest(chips: Sequence[Chip]) -> Chip:
    """A chip that every one of `chips` can stand in for: the least of every capacity, the most of every delay.

    Raises ValueError for chips of different platforms.
    """
    platforms = sorted({c.platform for c in chips})
    if len(platforms) != 1:
        raise ValueError(f"chips of different platforms do not run one program: {', '.join(platforms)}")
    first = chips[0]
    if len({c.name for c in chips}) == 1:
        return first
    longest = ("matmul_ramp_s", "launch_overhead_s", "collective_launch_s", "link_latency_s", "link_ramp_s",
               "network_latency_s", "network_ramp_s")  # fmt: skip
    least = [f.name for f in fields(Chip) if isinstance(getattr(first, f.name), int | float) and f.name not in longest]
    dtypes = [d for d in first.matmul_flop_per_s if all(d in c.matmul_flop_per_s for c in chips)]
    return replace(
        first,
        name="+".join(dict.fromkeys(c.name for c in chips)),
        matmul_flop_per_s={d: min(c.matmul_flop_per_s[d] for c in chips) for d in dtypes},
        tile=max((c.tile for c in chips), key=math.prod),
        figures={},
        **{name: min(getattr(c, name) for c in chips) for name in least},
        **{name: max(getattr(c, name) for c in chips) for name in longest},
    )


def _datasheet(value: float, source: str = "vendor") -> Figure:
    return Figure(value, "datasheet", source)


def _measured(value: float, source: str) -> Figure:
    return Figure(value, "measured", source)


def _derived(value: float, source: str) -> Figure:
    return Figure(value, "derived", source)


def _assumed(value: float, source: str = "plain choice") -> Figure:
    return Figure(value, "assumed", source)


def _row(name: str, platform: str, figures: Mapping[str, Figure], *, overlaps: bool, **structure: Any) -> Chip:
    """Turn a row of figures into a Chip; keys "matmul <dtype>" become the rates by dtype."""
    rates = {k.removeprefix("matmul "): f.value for k, f in figures.items() if k.startswith("matmul ")}
    plain = {k: f.value for k, f in figures.items() if not k.startswith("matmul ")}
    memory: dict[str, Any] = {k: int(plain.pop(k)) for k in ("memory_bytes", "memory_capacity_bytes")}
    return Chip(
        name=name,
        platform=platform,
        matmul_flop_per_s=rates,
        overlaps_collectives=overlaps,
        figures=dict(figures),
        **{**memory, **plain, **structure},
    )


# What the TPU generations share unless their row says otherwise. Ramp and latency of the links: fitted to all-gathers
# on v7x (72 GB/s at 1.6 MB, 179 GB/s at 400 MB, taken as the intake over one ring of 4 whole chips). Ramp of
# products: fitted to v7x (105, 350, 679, 893, 956 TFLOP/s at 512, 1024, 2048, 4096, 32768).
_TPU: Mapping[str, Figure] = {
    "memory_efficiency": _measured(0.87, "recipes: 3.21 of 3.70 TB/s per v7x core"),
    "matmul_ramp_s": _measured(4.7e-6, "recipes: fit to matrix products on v7x"),
    "launch_overhead_s": _assumed(0.5e-6),
    "collective_launch_s": _measured(2e-6, "recipes: fit to all-gathers on v7x"),
    "link_latency_s": _assumed(1e-6, "book: about a microsecond per hop"),
    "link_ramp_s": _measured(6e-6, "recipes: fit to all-gathers on v7x"),
    "network_latency_s": _assumed(100e-6),
    "network_ramp_s": _assumed(1e-3),
    "host_bandwidth_bytes_per_s": _datasheet(15e9, "book"),
}


def _tpu_rates(bf16: Figure, int8: Figure, fp8: Figure | None = None) -> dict[str, Figure]:
    """Rates of a TPU. float32 products run as one bfloat16 pass at JAX's default precision, float64 is emulated."""
    single = _derived(bf16.value, "JAX's default precision: one bfloat16 pass")
    rates = {"matmul bfloat16": bf16, "matmul float16": single, "matmul float32": single, "matmul int8": int8}
    rates["matmul float64"] = _assumed(bf16.value / 64)
    if fp8 is not None:
        rates |= {"matmul float8_e4m3fn": fp8, "matmul float8_e5m2": fp8}
    return rates


def _sustained(share: float) -> Figure:
    """One constant per generation: the median of what its published training runs imply (`benchmarks/published.py`)."""
    return _derived(share, "maxtext, recipes: fit to all published training runs on this generation")


def _estimated_ramp(seconds: float) -> Figure:
    return _derived(seconds, "compiler: fit to its estimates of products of 512 to 4096")


def _usable(gib: float) -> Figure:
    return _measured(gib * GIB, f"compiler: {gib}G")


_TPU_ROWS: tuple[Chip, ...] = (
    _row(
        "v4", "tpu",
        {**_TPU, **_tpu_rates(_datasheet(275e12), _datasheet(275e12)),
         "vector_flop_per_s": _assumed(8.6e12, "2 cores x 8 x 128 x 4 lanes at 1.05 GHz"),
         "memory_bytes": _usable(2 * 15.25), "memory_capacity_bytes": _datasheet(32 * GIB),
         "memory_bandwidth_bytes_per_s": _datasheet(1.23e12),
         "matmul_efficiency": _assumed(0.9),
         "sustained_share": _sustained(0.83),
         "link_bandwidth_bytes_per_s": _datasheet(45e9, "book"),
         "network_bandwidth_bytes_per_s": _assumed(3.1e9, "as v5e")},
        overlaps=True, torus_rank=3, tile=(8, 128, 128), scatters_by_reducing=True,
    ),
    _row(
        "v5e", "tpu",
        {**_TPU, **_tpu_rates(_datasheet(197e12), _datasheet(394e12)),
         "vector_flop_per_s": _derived(6.1e12, "book: 8 x 128 x 4 lanes at 1.5 GHz"),
         "memory_bytes": _usable(15.75), "memory_capacity_bytes": _datasheet(16 * GIB),
         "memory_bandwidth_bytes_per_s": _datasheet(819e9),
         "memory_efficiency": _derived(0.81, "compiler: its estimate of a sum of two arrays, 663 of 819 GB/s"),
         "matmul_efficiency": _assumed(0.95),
         "matmul_ramp_s": _estimated_ramp(7e-6),
         "sustained_share": _sustained(0.99),
         "link_bandwidth_bytes_per_s": _derived(45e9, "book: 50 nominal, 45 effective"),
         "network_bandwidth_bytes_per_s": _datasheet(3.1e9)},
        overlaps=True, torus_rank=2, tile=(8, 128, 128), scatters_by_reducing=True,
    ),
    _row(
        "v5p", "tpu",
        {**_TPU, **_tpu_rates(_datasheet(459e12), _datasheet(918e12), _datasheet(459e12)),
         "vector_flop_per_s": _derived(14e12, "book: 2 cores x 8 x 128 x 4 lanes at 1.75 GHz"),
         "memory_bytes": _usable(95.74), "memory_capacity_bytes": _datasheet(96 * GIB),
         "memory_bandwidth_bytes_per_s": _datasheet(2.765e12),
         "memory_efficiency": _derived(0.72, "compiler: its estimate of a sum of two arrays, 1,995 of 2,765 GB/s"),
         "matmul_efficiency": _assumed(0.93),
         "sustained_share": _sustained(0.93),
         "link_bandwidth_bytes_per_s": _derived(90e9, "book: 100 nominal, 90 effective"),
         "network_bandwidth_bytes_per_s": _datasheet(6.25e9)},
        overlaps=True, torus_rank=3, tile=(8, 128, 128), scatters_by_reducing=True,
    ),
    _row(
        "v6e", "tpu",
        {**_TPU, **_tpu_rates(_datasheet(918e12), _datasheet(1836e12), _datasheet(918e12)),
         "vector_flop_per_s": _assumed(12e12, "twice v5e"),
         "memory_bytes": _usable(31.25), "memory_capacity_bytes": _datasheet(32 * GIB),
         "memory_bandwidth_bytes_per_s": _datasheet(1.64e12),
         "memory_efficiency": _measured(0.83, "recipes: a copy of 34 MB at 1.36 of 1.64 TB/s"),
         "matmul_efficiency": _measured(0.90, "recipes: 827 of 918 TFLOP/s at 8192^3"),
         "matmul_ramp_s": _estimated_ramp(8e-6),
         "sustained_share": _sustained(0.89),
         "link_bandwidth_bytes_per_s": _measured(59e9, "recipes: v6e-256 reduces at 236 GB/s, 4 links; 100 nominal"),
         "network_bandwidth_bytes_per_s": _derived(12.5e9, "maxtext"),
         "host_bandwidth_bytes_per_s": _datasheet(32e9)},
        overlaps=True, torus_rank=2, tile=(8, 256, 256), scatters_by_reducing=True,
    ),
    _row(
        "v7x", "tpu",
        {**_TPU, **_tpu_rates(_datasheet(1153.5e12), _assumed(1153.5e12, "as bfloat16"), _datasheet(2307e12)),
         "vector_flop_per_s": _assumed(12e12, "as v6e, per core"),
         "memory_bytes": _usable(94.75), "memory_capacity_bytes": _datasheet(96 * GIB),
         "memory_bandwidth_bytes_per_s": _datasheet(3.70e12, "jax: 7.40 per chip"),
         "matmul_efficiency": _measured(0.83, "recipes: 956 of 1153 TFLOP/s per core"),
         "sustained_share": _sustained(0.97),
         "link_bandwidth_bytes_per_s": _derived(45e9, "maxtext: 90 effective per chip, shared by two cores"),
         "die_bandwidth_bytes_per_s": _derived(540e9, "vendor: six times one link between the two dies"),
         "network_bandwidth_bytes_per_s": _assumed(6.25e9, "12.5 per chip, from memory")},
        overlaps=True, torus_rank=3, devices_per_chip=2, tile=(8, 256, 256),
    ),
)  # fmt: skip

# What the NVIDIA generations share. Ramp of NVLink: a 58 MB all-reduce reaches about 150 GB/s of 450 (book). JAX gives
# a process three quarters of the device's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_JAX_SHARE = 0.75
_GPU: Mapping[str, Figure] = {
    "memory_efficiency": _measured(0.90, "this project: 4.3 of 4.8 TB/s on an H200"),
    "matmul_ramp_s": _assumed(6e-6),
    "sustained_share": _assumed(0.71, "as h100"),
    "launch_overhead_s": _assumed(2e-6),
    "collective_launch_s": _assumed(8e-6),
    "link_latency_s": _assumed(2e-6),
    "link_ramp_s": _measured(400e-6, "book: a 58 MB all-reduce reaches about 150 GB/s on 8 H100"),
    "network_latency_s": _assumed(6e-6),
    "network_ramp_s": _assumed(500e-6),
}


def _gpu_rates(bf16: float, fp8: float | None, int8: float, tf32: float, fp64: float) -> dict[str, Figure]:
    """Dense rates of an NVIDIA GPU; float32 products use TF32 at JAX's default precision."""
    rates = {"matmul bfloat16": _datasheet(bf16), "matmul float16": _datasheet(bf16), "matmul int8": _datasheet(int8)}
    rates |= {"matmul float32": _datasheet(tf32, "vendor: TF32"), "matmul float64": _datasheet(fp64)}
    if fp8 is not None:
        rates |= {"matmul float8_e4m3fn": _datasheet(fp8), "matmul float8_e5m2": _datasheet(fp8)}
    return rates


def _gpu(
    name: str, rates: dict[str, Figure], *, vector: float, visible_gib: float, memory: float, efficiency: Figure,
    link: float, network: Figure, host: Figure, domain: int,
) -> Chip:  # fmt: skip
    figures = {
        **_GPU, **rates,
        "vector_flop_per_s": _datasheet(vector),
        "memory_bytes": _derived(_JAX_SHARE * visible_gib * GIB, "JAX's default share of the visible memory"),
        "memory_capacity_bytes": _assumed(visible_gib * GIB, "visible to a program, from memory"),
        "memory_bandwidth_bytes_per_s": _datasheet(memory),
        "matmul_efficiency": efficiency,
        "link_bandwidth_bytes_per_s": _datasheet(link),
        "network_bandwidth_bytes_per_s": network,
        "host_bandwidth_bytes_per_s": host,
    }  # fmt: skip
    if name == "h100":
        figures["sustained_share"] = _sustained(0.71)
    return _row(name, "gpu", figures, overlaps=True, max_domain=domain, tile=(16, 16, 16))


_HOPPER = _measured(0.79, "this project: 769 to 798 of 989 TFLOP/s on an H200, 8192^3")
_IB = _datasheet(50e9)
_GPU_ROWS: tuple[Chip, ...] = (
    *(
        _gpu(name, _gpu_rates(312e12, None, 624e12, 156e12, 19.5e12), vector=19.5e12, visible_gib=gib, memory=bandwidth,
             efficiency=_assumed(0.85), link=300e9, network=_assumed(25e9, "from memory"),
             host=_assumed(32e9, "from memory"), domain=16)
        for name, gib, bandwidth in (("a100-40", 39.4, 1.6e12), ("a100-80", 79.1, 2.0e12))
    ),
    _gpu("h100", _gpu_rates(989e12, 1979e12, 1979e12, 494.5e12, 67e12), vector=67e12, visible_gib=79.1, memory=3.35e12,
         efficiency=_HOPPER, link=450e9, network=_IB, host=_measured(55e9, "64 nominal, 55 measured"), domain=8),
    _gpu("h200", _gpu_rates(989e12, 1979e12, 1979e12, 494.5e12, 67e12), vector=67e12, visible_gib=139.8, memory=4.8e12,
         efficiency=_HOPPER, link=450e9, network=_IB, host=_assumed(55e9, "as h100"), domain=8),
    _gpu("b200", _gpu_rates(2250e12, 4500e12, 4500e12, 1125e12, 37e12), vector=75e12, visible_gib=178.0, memory=8.0e12,
         efficiency=_assumed(0.77), link=900e9, network=_IB, host=_assumed(64e9, "from memory"), domain=8),
    _gpu("gb200", _gpu_rates(2500e12, 5000e12, 5000e12, 1250e12, 40e12), vector=80e12, visible_gib=173.0, memory=8.0e12,
         efficiency=_assumed(0.77), link=900e9, network=_IB, host=_assumed(450e9, "C2C, from memory"), domain=72),
)  # fmt: skip

# Virtual devices that share one small host: plain constants of the right order, to be calibrated where it matters.
# Measured on 4 and 8 devices of 2 busy cores, and rounded: an all-reduce of 4 kB took 33 and 151 us, of 1.5 MB 0.6 and
# 4.7 ms; products ran at 8 to 18 GFLOP/s. A rendezvous of threads costs far more than a small message's bytes, and
# nothing overlaps.
_HOST = "this project: virtual devices on 2 busy cores, rounded"
_CPU = _row(
    "cpu", "cpu",
    {"matmul float32": _measured(10e9, _HOST), "matmul bfloat16": _assumed(5e9), "matmul float16": _assumed(5e9),
     "matmul float64": _assumed(5e9), "matmul int8": _assumed(10e9),
     "vector_flop_per_s": _assumed(20e9),
     "memory_bytes": _assumed(8e9), "memory_capacity_bytes": _assumed(8e9),
     "memory_bandwidth_bytes_per_s": _assumed(20e9), "memory_efficiency": _assumed(1.0),
     "matmul_efficiency": _assumed(1.0), "matmul_ramp_s": _assumed(2e-6), "sustained_share": _assumed(1.0),
     "launch_overhead_s": _assumed(2e-6), "collective_launch_s": _measured(60e-6, _HOST),
     "link_bandwidth_bytes_per_s": _measured(2e9, _HOST), "link_latency_s": _assumed(5e-6),
     "link_ramp_s": _assumed(0.0),
     "network_bandwidth_bytes_per_s": _assumed(0.5e9), "network_latency_s": _assumed(50e-6),
     "network_ramp_s": _assumed(0.0), "host_bandwidth_bytes_per_s": _assumed(5e9)},
    overlaps=False,
)  # fmt: skip

CHIPS: Mapping[str, Chip] = {row.name: row for row in (*_TPU_ROWS, *_GPU_ROWS, _CPU)}
ALIASES: Mapping[str, str] = {
    "tpu7x": "v7x",
    "ironwood": "v7x",
    "trillium": "v6e",
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "a100": "a100-80",
}
