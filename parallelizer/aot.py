"""Devices to compile for that are not there: TPU and GPU topologies ahead of time, and virtual CPU devices.

Position i of every list returned here is the device with index i of `cost_model.topology.Topology`: row-major in the
sizes of the name, slices and nodes first, the cores of one chip last. For "v5e:2x4" device i is at (i // 4, i % 4); for
"v5p:4x4x8" the third axis varies fastest. (JAX itself lists the first axis fastest and groups by host.)
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from cost_model.topology import Topology, parse_topology
from parallelizer.errors import AheadOfTimeError, TooFewDevicesError

# libtpu looks for a TPU host around it unless it is told not to; without the last line two processes abort on its lock.
TPU_WITHOUT_HARDWARE: Mapping[str, str] = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The library writes a log file per process otherwise.
_TPU_QUIET: Mapping[str, str] = {"TPU_LOG_DIR": "disabled", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
# JAX's names of chips where they differ from ours, and the configuration with one device per chip.
_TPU_NAMES = {"v7x": "tpu7x"}
_TPU_CONFIGURATIONS = {"v4": "megacore"}


class AotUnavailable(AheadOfTimeError):
    """Nothing here can compile for a topology: `why`, and `fix` (what to install or choose; may be empty)."""

    @property
    def why(self) -> str:
        return str(self.details["reason"])

    @property
    def fix(self) -> str:
        return str(self.way_out[0]) if len(self.way_out) > 1 else ""


@dataclass(frozen=True, slots=True)
class VersionMatch:
    """Whether the installed libtpu is the one that the installed jax asks for. `installed` is None without libtpu."""

    jax: str
    required: str
    installed: str | None

    @property
    def ok(self) -> bool:
        return self.installed is not None and _satisfies(self.installed, self.required)

    @property
    def fix(self) -> str:
        return "" if self.ok else f"pip install 'jax[tpu]=={self.jax}'"


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """What the GPU compiler wants to know about a card; from the vendors' datasheets, not read off a card."""

    name: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    memory_bytes: int
    memory_bandwidth_bytes_per_s: int
    cache_bytes: int
    shared_memory_bytes: int
    threads_per_core: int = 2048

    def text(self) -> str:
        """The target configuration as XLA's text proto."""
        major, minor = self.capability
        reserved = 1024
        return (
            "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
            f"shared_memory_per_core: {self.shared_memory_bytes} threads_per_core_limit: {self.threads_per_core} "
            f"core_count: {self.cores} fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
            f"block_dim_limit_z: 65535 memory_bandwidth: {self.memory_bandwidth_bytes_per_s} "
            f"l2_cache_size: {self.cache_bytes} clock_rate_ghz: {self.clock_ghz} "
            f"device_memory_size: {self.memory_bytes} "
            f"shared_memory_per_block_optin: {self.shared_memory_bytes - reserved} "
            f"cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536 "
            f'registers_per_block_limit: 65536 }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} '
            f'runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{self.name}"'
        )


_MB = 1 << 20
GPU_TARGETS: Mapping[str, GpuTarget] = {
    "a100-40": GpuTarget("NVIDIA A100", (8, 0), 108, 1.41, 40 * 10**9, 1555 * 10**9, 40 * _MB, 167936),
    "a100-80": GpuTarget("NVIDIA A100", (8, 0), 108, 1.41, 80 * 10**9, 2039 * 10**9, 40 * _MB, 167936),
    "h100": GpuTarget("NVIDIA H100", (9, 0), 132, 1.98, 80 * 10**9, 3350 * 10**9, 50 * _MB, 233472),
    "h200": GpuTarget("NVIDIA H200", (9, 0), 132, 1.98, 141 * 10**9, 4800 * 10**9, 50 * _MB, 233472),
    "b200": GpuTarget("NVIDIA B200", (10, 0), 148, 1.96, 180 * 10**9, 8000 * 10**9, 126 * _MB, 233472),
    "gb200": GpuTarget("NVIDIA GB200", (10, 0), 152, 1.96, 186 * 10**9, 8000 * 10**9, 126 * _MB, 233472),
}


def devices_for(topology_name: str, platform: str | None = None) -> list[Any]:
    """The devices of a topology, to build a `jax.sharding.Mesh` on and compile for; see the module for their order.

    `platform` ("cpu", "tpu", "gpu") defaults to that of the name. CPU devices are this process's own and also run; the
    others only compile (`jax.jit(...).lower(...).compile()`).
    Raises UnknownTopology or ImpossibleTopology for a bad name, TooFewDevicesError if this process has fewer CPU
    devices, and AotUnavailable if the compiler is missing, is of another version, or does not know the topology.
    """
    topology = parse_topology(topology_name)
    if (platform or topology.platform) != topology.platform:
        raise AotUnavailable.of(topology_name, f"it is a {topology.platform} topology, not a {platform} one")
    if topology.platform == "cpu":
        return _cpu(topology)
    return _tpu(topology) if topology.platform == "tpu" else _gpu(topology)


def compiler_options_for(topology_name: str) -> dict[str, str | bool | int]:
    """Compiler options without which compiling for a topology needs its hardware (GPU: no autotuning on a card)."""
    if parse_topology(topology_name).platform != "gpu":
        return {}
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def libtpu_match() -> VersionMatch:
    """Compare the installed libtpu with what the installed jax requires; a newer one fails on v5p and v7x."""
    required = ""
    for line in importlib.metadata.requires("jax") or ():
        found = re.match(r"libtpu\s*([^;\s]+)\s*;.*\btpu\b", line)
        if found:
            required = found[1].strip("()")
    try:
        installed: str | None = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        installed = None
    return VersionMatch(jax.__version__, required, installed)


def _satisfies(version: str, required: str) -> bool:
    """Whether a version is within "==0.0.42.*" (or equal to "==0.0.42.1"); any other form is not judged."""
    if not required.startswith("=="):
        return True
    wanted = required.removeprefix("==").split(".")
    have = version.split(".")
    if wanted[-1] == "*":
        wanted = wanted[:-1]
        have = have[: len(wanted)]
    return have == wanted


def _cpu(topology: Topology) -> list[Any]:
    devices = jax.devices("cpu")
    if len(devices) < topology.num_devices:
        raise TooFewDevicesError.of(topology.num_devices, len(devices), "cpu")
    return list(devices[: topology.num_devices])


def _tpu(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise AotUnavailable.of(topology.name, "libtpu is not installed", ("pip install 'parallelizer[tpu]'",))
    # On a TPU host its own environment must stay; elsewhere libtpu has to be told that there is no such host.
    if jax.default_backend() != "tpu":
        for name, value in {**TPU_WITHOUT_HARDWARE, **_TPU_QUIET}.items():
            # Importing JAX beside libtpu asks a metadata server; without one it leaves a warning as the value.
            if os.environ.get(name, "WARNING").startswith("WARNING"):
                os.environ[name] = value
    chip = topology.chip.name
    sizes = [d.size for d in topology.dims if d.kind == "torus"]
    options: dict[str, Any] = {"topology_name": f"{_TPU_NAMES.get(chip, chip)}:{'x'.join(map(str, sizes))}"}
    if chip in _TPU_CONFIGURATIONS:
        options["chip_config_name"] = _TPU_CONFIGURATIONS[chip]
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    if set(sizes) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    devices = list(_described(topology, "tpu", options))
    rank = len(sizes)
    devices.sort(key=lambda d: (getattr(d, "slice_index", 0) or 0, *d.coords[:rank], d.core_on_chip))
    return _checked(topology, devices)


def _gpu(topology: Topology) -> list[Any]:
    plugin = next((c for c in ("cuda13", "cuda12") if importlib.util.find_spec(f"jax_{c}_plugin")), None)
    if plugin is None:
        version = jax.__version__
        name = "cuda12" if version.startswith("0.10.") else "cuda13"
        fix = f"pip install --no-deps jax-{name}-plugin=={version} jax-{name}-pjrt=={version}"
        raise AotUnavailable.of(topology.name, "no CUDA plugin of JAX is installed", (fix,))
    target = GPU_TARGETS.get(topology.chip.name)
    if target is None:
        known = ", ".join(GPU_TARGETS)
        raise AotUnavailable.of(topology.name, f"no compiler target is known for it (known: {known})")
    nodes = topology.dims[0].size if len(topology.dims) > 1 else 1
    options = {
        "topology_name": re.sub(r"\W", "_", topology.name),
        "target_config": target.text(),
        # Slices, hosts, cards of a host. JAX numbers them in this order.
        "topology": f"1x{nodes}x{topology.num_devices // nodes}",
    }
    devices = sorted(_described(topology, "cuda", options), key=lambda d: d.id)
    return _checked(topology, devices)


def _described(topology: Topology, platform: str, options: Mapping[str, Any]) -> Any:
    try:
        return topologies.get_topology_desc(platform=platform, **options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        match = libtpu_match()
        mismatch = platform == "tpu" and not match.ok
        why = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if mismatch:
            why = f"libtpu {match.installed} is installed where jax {match.jax} requires {match.required}; {why}"
        raise AotUnavailable.of(topology.name, why, (match.fix,) if mismatch else ()) from error


def _checked(topology: Topology, devices: list[Any]) -> list[Any]:
    if len(devices) != topology.num_devices:
        why = f"the compiler knows {len(devices)} devices for it, the topology has {topology.num_devices}"
        raise AotUnavailable.of(topology.name, why)
    return devices


def mesh_for(devices: list[Any], order: tuple[int, ...], axes: Mapping[str, int]) -> jax.sharding.Mesh:
    """A mesh with automatic axes whose row-major position i holds `devices[order[i]]`.

    Raises ValueError unless `order` has one device for each position of the mesh.
    """
    grid = np.empty(len(order), dtype=object)
    for position, index in enumerate(order):
        grid[position] = devices[index]
    return jax.sharding.Mesh(grid.reshape(tuple(axes.values())), tuple(axes))
