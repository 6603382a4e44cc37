"""What this machine can do: versions, devices, compilers for topologies without devices, and the topologies known.

Every question to JAX is asked in a process of its own, because a broken installation may abort the process that asks
(libtpu of another version does), and because asking for devices would claim them. What cannot be found is reported as
missing, with the reason; `examine` itself does not fail.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PACKAGES = ("parallelizer", "jax", "jaxlib", "libtpu", "numpy", "highspy", "rich", "optax", "flax")
REQUIRED = frozenset({"jax", "jaxlib", "numpy", "highspy", "rich"})

# libtpu looks for a TPU host around it unless it is told not to; without the last line two processes abort on its lock.
TPU_WITHOUT_HARDWARE: Mapping[str, str] = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_DEVICES = """
import json, jax
print(json.dumps([[d.platform, d.device_kind, d.process_index] for d in jax.devices()]))
"""
_COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
devices = topologies.get_topology_desc(platform=sys.argv[1], **json.loads(sys.argv[2])).devices
shape = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=SingleDeviceSharding(devices[0]))
jax.jit(lambda x: x @ x).lower(shape).compile()
print(json.dumps(len(devices)))
"""
_H200 = (
    "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
    "shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 "
    "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 "
    "l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 150000000000 "
    "shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 "
    'registers_per_block_limit: 65536 } platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
    'runtime_version { major: 12 minor: 9 patch: 0 } device_description_str: "NVIDIA H200"'
)


@dataclass(frozen=True, slots=True)
class Devices:
    """What `jax.devices()` says: count, platform ("cpu", "tpu", "gpu") and kind; `problem` where it says nothing."""

    count: int
    platform: str
    kind: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Whether programs for a platform can be compiled here without its devices, and if not, why and what would help."""

    platform: str
    usable: bool
    reason: str
    way_out: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings. `versions` maps a package to its version, None where it is not installed."""

    python: str
    system: str
    versions: Mapping[str, str | None]
    devices: Devices
    compilers: tuple[Compiler, ...]
    topologies: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps the package from working at all here; empty where all is well."""
        missing = [f"{name} is not installed" for name in sorted(REQUIRED) if self.versions.get(name) is None]
        return (*missing, *([f"no devices: {self.devices.problem}"] if self.devices.problem else []))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data, with "ok"."""
        return {**asdict(self), "problems": list(self.problems), "ok": not self.problems}

    def to_text(self) -> str:
        """The report for people."""
        rows = [f"python       {self.python} on {self.system}"]
        rows += [f"{name:<12} {version or 'not installed'}" for name, version in self.versions.items()]
        d = self.devices
        rows += ["", "devices      " + (d.problem or f"{d.count} x {d.kind} ({d.platform})"), ""]
        for c in self.compilers:
            rows.append(f"compile for {c.platform:<5} without devices: {'yes' if c.usable else 'no'}; {c.reason}")
            if c.way_out:
                rows.append(f"    to get it: {c.way_out}")
        rows += ["", "topologies that can be planned for:"]
        rows += [f"    {name}" for name in self.topologies]
        rows += ["", *[f"problem: {p}" for p in self.problems]] if self.problems else ["", "all is well"]
        return "\n".join(rows)


def examine(topologies: Sequence[str], timeout_s: float = 120.0) -> Report:
    """Look at this machine. `topologies` are the names that planning knows; each question may take `timeout_s`."""
    versions = {name: _version(name) for name in PACKAGES}
    # Started together, so that the slow start of JAX is paid once.
    plugin = next((c for c in ("cuda13", "cuda12") if importlib.util.find_spec(f"jax_{c}_plugin")), None)
    devices = _ask(_DEVICES)
    tpu_options = json.dumps({"topology_name": "v5e:2x2"})
    tpu = _ask(_COMPILE, "tpu", tpu_options, env=TPU_WITHOUT_HARDWARE) if versions["libtpu"] else None
    gpu_options = {"topology_name": "h", "target_config": _H200, "topology": "1x1x8"}
    gpu = _ask(_COMPILE, "cuda", json.dumps(gpu_options), env={"JAX_PLATFORMS": "cpu"}) if plugin else None
    return Report(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions=versions,
        devices=_devices(*_answer(devices, timeout_s)),
        compilers=(
            _compiler("tpu", versions["libtpu"], "libtpu", "pip install 'parallelizer[tpu]'", tpu, timeout_s),
            _compiler("cuda", plugin, "jax-cuda12-plugin", _gpu_command(versions["jax"]), gpu, timeout_s),
        ),
        topologies=tuple(topologies),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ask(code: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    platforms = {"JAX_PLATFORMS": "cpu"} if args else {}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **platforms, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str], timeout_s: float) -> tuple[Any, str]:
    """(what the process printed as JSON, "") or (None, why there is no answer)."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, f"no answer within {timeout_s:g} s"
    lines = out.strip().splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    last = [row for row in err.strip().splitlines() if row.strip()]
    return None, last[-1].strip() if last else f"the process ended with {process.returncode}"


def _devices(found: Any, problem: str) -> Devices:
    if not found:
        return Devices(0, "", "", problem or "JAX lists none")
    return Devices(len(found), found[0][0], found[0][1])


def _compiler(
    name: str, version: str | None, package: str, command: str, asked: subprocess.Popen[str] | None, timeout_s: float
) -> Compiler:
    found, problem = _answer(asked, timeout_s) if asked else (None, "")
    if version is None:
        return Compiler(name, False, f"{package} is not installed", command)
    if found is None:
        return Compiler(name, False, f"{package} {version}: {problem}", command)
    return Compiler(name, True, f"{package} {version} compiled a product for one of {found} devices")


def _gpu_command(jax_version: str | None) -> str:
    generation = "cuda12" if jax_version is None or jax_version.startswith("0.10.") else "cuda13"
    pinned = f"=={jax_version}" if jax_version else ""
    return f"pip install --no-deps jax-{generation}-plugin{pinned} jax-{generation}-pjrt{pinned}"
