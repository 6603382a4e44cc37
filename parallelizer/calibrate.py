"""Measures the devices at hand and writes a profile that plans then use: products, memory, launches, collectives.

Everything runs on all devices at once, as a training step does: devices that share a host share its cores.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cost_model.collectives import Curve, curve
from cost_model.compute import ramped_s
from cost_model.mesh import logical_mesh
from cost_model.profile import Profile, Sample, calibrated, fit_links, fit_products
from cost_model.topology import Topology
from parallelizer.profiles import hardware_of
from parallelizer.runtime.devices import local_topology

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute")
# FLOP per element of the element-wise benchmark: so many multiply-adds that memory does not matter.
_CHAIN = 64
# Launches: so many dependent products, too small to take time themselves.
_LAUNCHES = 64


@dataclass(frozen=True, slots=True)
class Effort:
    """What is measured: sides of products by dtype, bytes per device of streams and collectives,
    collectives over parts of the devices too, seconds per point."""

    sides: tuple[int, ...] = (64, 128, 256, 512, 1024)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", "float64", "int8")
    stream_bytes: int = 64 << 20
    collective_bytes: tuple[int, ...] = (1 << 10, 1 << 14, 1 << 18, 1 << 22)
    partial_groups: bool = True
    seconds: float = 0.2


QUICK = Effort((64, 256, 512), ("float32", "bfloat16"), 16 << 20, (1 << 12, 1 << 16, 1 << 20), False, 0.05)
# Devices with matrix units are measured on what fills them.
LARGE = Effort((512, 1024, 2048, 4096, 8192), ("float32", "bfloat16", "float16", "int8"), 1 << 30,
               (1 << 14, 1 << 18, 1 << 22, 1 << 26))  # fmt: skip


def calibrate(devices: Sequence[Any] | None = None, effort: Effort | None = None) -> Profile:
    """Measure the given devices, by default all that JAX sees; takes one to two minutes (`QUICK`: some seconds).

    Raises UnknownTopologyError for hardware that the table of chips does not have.
    """
    topology, found = local_topology(devices)
    effort = effort or (Effort() if topology.platform == "cpu" else LARGE)
    bench = _Bench(found, effort)
    rates, samples = {}, []
    ramp_s = 0.0
    for dtype in effort.dtypes:
        with _wide(dtype):
            flop, seconds = zip(*bench.products(dtype), strict=True)
        rate, ramp = fit_products(flop, seconds)
        rates[dtype], ramp_s = rate, ramp if dtype == "float32" else ramp_s
        samples += [
            Sample(f"product {dtype}", f, s, float(ramped_s(np.asarray(f / rate), ramp)))
            for f, s in zip(flop, seconds, strict=True)
        ]
    figures = {
        "matmul_ramp_s": ramp_s,
        "memory_bandwidth_bytes_per_s": 2 * effort.stream_bytes / bench.stream_s(1),
        "vector_flop_per_s": 2 * _CHAIN * (effort.stream_bytes // 16) / 4 / bench.stream_s(_CHAIN),
        "launch_overhead_s": bench.launch_s(),
    }
    if len(found) > 1:
        links, measured = _links(topology, bench)
        figures |= links
        samples += measured
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    hardware = hardware_of(found[0].platform, found[0].device_kind)
    return Profile(topology.chip.name, len(found), hardware, rates, figures, tuple(samples), versions)


def _wide(dtype: str) -> Any:
    return jax.enable_x64(dtype == "float64")


class _Bench:
    """Runs programs on all devices at once and times them."""

    def __init__(self, devices: Sequence[Any], effort: Effort) -> None:
        self.devices, self.effort = list(devices), effort
        self.mesh = Mesh(np.array(self.devices), ("x",))

    def products(self, dtype: str) -> Iterator[tuple[float, float]]:
        """(FLOP, seconds) of square products on every device."""
        for n in self.effort.sides:
            x = self.array((n, n), dtype)
            result = "int32" if dtype == "int8" else dtype
            yield 2.0 * n**3, self.time(lambda a, r=result: jnp.matmul(a, a, preferred_element_type=r), x)

    def stream_s(self, work: int) -> float:
        """One pass over an array: `work` multiply-adds per float32 element (a sixteenth of the array if many)."""
        x = self.array((self.effort.stream_bytes // (4 if work == 1 else 64),), "float32")

        def run(a: jax.Array) -> jax.Array:
            y = a
            for _ in range(work):
                y = y * 1.0001 + a
            return y

        return self.time(run, x)

    def launch_s(self) -> float:
        """One of many dependent operations without work."""
        x = self.array((8, 8), "float32")

        def run(a: jax.Array) -> jax.Array:
            for _ in range(_LAUNCHES):
                a = a @ a
            return a

        return self.time(run, x) / _LAUNCHES

    def array(self, shape: tuple[int, ...], dtype: str) -> jax.Array:
        """Small numbers of this shape on every device."""
        block = np.full((len(self.devices) * shape[0], *shape[1:]), 1e-3 if dtype != "int8" else 1)
        return jax.device_put(block.astype(jnp.dtype(dtype)), NamedSharding(self.mesh, PartitionSpec("x")))

    def time(self, run: Callable[..., jax.Array], x: jax.Array, mesh: Mesh | None = None, axes: Any = ("x",)) -> float:
        """Seconds of the local program `run`, compiled and warm: the lower quartile, since others use the machine."""
        spec = PartitionSpec(axes)
        local = jax.shard_map(run, mesh=mesh or self.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        compiled = jax.jit(local).lower(x).compile()
        compiled(x).block_until_ready()
        taken: list[float] = []
        end = time.perf_counter() + self.effort.seconds
        while len(taken) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            compiled(x).block_until_ready()
            taken.append(time.perf_counter() - start)
        return statistics.quantiles(taken, n=4)[0]

    def collective(self, kind: str, shape: dict[str, int], axes: tuple[str, ...], size_bytes: int) -> float:
        """A collective whose larger side is `size_bytes` on each device."""
        mesh = Mesh(np.array(self.devices).reshape(tuple(shape.values())), tuple(shape))
        group = int(np.prod([shape[a] for a in axes]))
        elements = max(group, size_bytes // 4 // group * group)
        local = elements // group if kind == "all_gather" else elements
        names = tuple(shape)
        x = jax.device_put(
            np.ones(local * len(self.devices), np.float32), NamedSharding(mesh, PartitionSpec(names))
        )  # fmt: skip
        ring = [(i, (i + 1) % group) for i in range(group)]
        runs: dict[str, Callable[[jax.Array], jax.Array]] = {
            "all_gather": lambda a: jax.lax.all_gather(a, axes, tiled=True),
            "reduce_scatter": lambda a: jax.lax.psum_scatter(a, axes, tiled=True),
            "all_reduce": lambda a: jax.lax.psum(a, axes),
            "all_to_all": lambda a: jax.lax.all_to_all(a, axes, 0, 0, tiled=True),
            "permute": lambda a: jax.lax.ppermute(a, axes, ring),
        }
        return self.time(runs[kind], x, mesh, names)


def _links(topology: Topology, bench: _Bench) -> tuple[dict[str, float], list[Sample]]:
    """Constants of the links inside a node, from every kind of collective over whole and partial groups."""
    n, chip = topology.num_devices, topology.chip
    shapes: list[tuple[dict[str, int], tuple[str, ...]]] = [({"x": n}, ("x",))]
    if n % 2 == 0 and n > 2 and bench.effort.partial_groups:
        shapes += [({"x": 2, "y": n // 2}, ("x",)), ({"x": 2, "y": n // 2}, ("y",))]
    points = [(*s, kind, size) for s in shapes for kind in KINDS for size in bench.effort.collective_bytes]
    seconds = [bench.collective(kind, shape, axes, size) for shape, axes, kind, size in points]

    def curves(on: Topology) -> list[Curve]:
        return [curve(kind, logical_mesh(on, shape), axes) for shape, axes, kind, _ in points]

    sizes = [float(size) for *_, size in points]
    fit = fit_links(curves(topology), sizes, seconds, chip.collective_launch_s, chip.link_latency_s)
    figures = {
        "collective_launch_s": fit.launch_s,
        "link_bandwidth_bytes_per_s": chip.link_bandwidth_bytes_per_s / fit.slowdown,
        "link_latency_s": fit.hop_s,
        "link_ramp_s": fit.ramp_s,
    }
    made = calibrated(topology, Profile(chip.name, n, "", {}, figures, (), {}), "being made")
    names = [f"{kind} over {int(np.prod([shape[a] for a in axes]))}" for shape, axes, kind, _ in points]
    rows = zip(names, sizes, seconds, curves(made), strict=True)
    return figures, [Sample(name, size, taken, float(c(size))) for name, size, taken, c in rows]


def text_of(profile: Profile) -> str:
    """What was measured, beside the fitted model, as a table."""
    rows = [f"{profile.chip} x {profile.devices}: {profile.hardware}"]
    rows += [f"  {rate / 1e9:10.2f} GFLOP/s of {dtype} products" for dtype, rate in profile.rates.items()]
    rows += [f"  {value:10.3g} {name}" for name, value in profile.figures.items()]
    rows.append(f"  {'measured us':>12} {'fitted us':>12}  what")
    rows += [f"  {s.measured_s * 1e6:12.1f} {s.fitted_s * 1e6:12.1f}  {s.what}, {s.size:g}" for s in profile.samples]
    rows.append(f"  median error of the fit {profile.median_error:.0%}")
    return "\n".join(rows)
