"""What this machine can do: versions, devices, compilers for topologies without devices, and the topologies known.

Every question to JAX is asked in a process of its own, because a broken installation may abort the process that asks
(libtpu of another version does), and because asking for devices would claim them. What cannot be found is reported as
missing, with the reason; `examine` itself does not fail.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("parallelizer", "jax", "jaxlib", "libtpu", "numpy", "highspy", "rich", "optax", "flax")
REQUIRED = frozenset({"jax", "jaxlib", "numpy", "highspy", "rich"})

_DEVICES = """
import json, jax
print(json.dumps([[d.platform, d.device_kind] for d in jax.devices()]))
"""
_COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from parallelizer import aot
from parallelizer.errors import AheadOfTimeError
try:
    device = aot.devices_for(sys.argv[1])[0]
    shape = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=SingleDeviceSharding(device))
    jax.jit(lambda x: x @ x).lower(shape).compile(aot.compiler_options_for(sys.argv[1]))
    print(json.dumps(["", ""]))
except AheadOfTimeError as error:
    print(json.dumps([error.details["reason"], error.way_out[0] if len(error.way_out) > 1 else ""]))
"""
# The topology that stands for all of its platform when its compiler is tried.
_TRIED = {"tpu": "v5e:2x2", "gpu": "h200:8"}


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
            rows.append(f"compile for {c.platform:<3} without devices: {'yes' if c.usable else 'no'}; {c.reason}")
            if c.way_out:
                rows.append(f"    to get it: {c.way_out}")
        rows += ["", "topologies that can be planned for, as examples (other sizes work too):"]
        rows += [f"    {row}" for row in textwrap.wrap(", ".join(self.topologies), 100)]
        rows += ["", *[f"problem: {p}" for p in self.problems]] if self.problems else ["", "all is well"]
        return "\n".join(rows)


def examine(topologies: Sequence[str], timeout_s: float = 120.0) -> Report:
    """Look at this machine. `topologies` are the names that planning knows; each question may take `timeout_s`."""
    # Started together, so that the slow start of JAX is paid once.
    devices = _ask(_DEVICES)
    compilers = {kind: _ask(_COMPILE, name, platforms="cpu") for kind, name in _TRIED.items()}
    return Report(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions={name: _version(name) for name in PACKAGES},
        devices=_devices(*_answer(devices, timeout_s)),
        compilers=tuple(_compiler(name, *_answer(asked, timeout_s)) for name, asked in compilers.items()),
        topologies=tuple(topologies),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ask(code: str, *args: str, platforms: str | None = None) -> subprocess.Popen[str]:
    path = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {} if platforms is None else {"JAX_PLATFORMS": platforms}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **chosen, "PYTHONPATH": os.pathsep.join(path)},
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


def _compiler(name: str, found: Any, problem: str) -> Compiler:
    reason, way_out = found or (problem, "")
    return Compiler(name, not reason, reason or f"a program for {_TRIED[name]} was compiled", way_out)
