"""The devices at hand, as a topology and in its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from cost_model.topology import Topology, parse_topology
from parallelizer import aot
from parallelizer.errors import TooFewDevicesError, UnknownTopologyError

_TPU_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "TPU7x": "v7x", "TPU v7x": "v7x",
}  # fmt: skip
_GPU_KINDS = ("gb200", "b200", "h200", "h100", "a100")


def local_topology(devices: Sequence[Any] | None = None) -> tuple[Topology, list[Any]]:
    """(topology, devices in its order) of the given devices, by default all that JAX sees.

    Raises UnknownTopologyError for hardware that the table of chips does not have.
    """
    found = list(devices) if devices is not None else jax.devices()
    platform = found[0].platform
    if platform == "cpu":
        return parse_topology(f"cpu:{len(found)}"), found
    kind = found[0].device_kind
    if platform == "tpu":
        return _tpu(found, kind)
    chip = next((k for k in _GPU_KINDS if k in kind.lower()), None)
    if chip is None:
        raise UnknownTopologyError.of(kind, _GPU_KINDS, "this GPU is not in the table of chips")
    if chip == "a100":
        chip = "a100-80" if (found[0].memory_stats() or {}).get("bytes_limit", 0) > 45e9 else "a100-40"
    hosts = len({d.process_index for d in found})
    per_host = len(found) // hosts
    found.sort(key=lambda d: (d.process_index, d.id))
    return parse_topology(f"{chip}:{per_host}" + (f"x{hosts}" if hosts > 1 else "")), found


def _tpu(found: list[Any], kind: str) -> tuple[Topology, list[Any]]:
    chip = _TPU_KINDS.get(kind)
    if chip is None:
        raise UnknownTopologyError.of(kind, tuple(_TPU_KINDS), "this TPU is not in the table of chips")
    extent = [max(d.coords[i] for d in found) - min(d.coords[i] for d in found) + 1 for i in range(3)]
    sizes = extent if chip in ("v4", "v5p", "v7x") else extent[:2]
    topology = parse_topology(f"{chip}:{'x'.join(map(str, sizes))}")
    found.sort(key=lambda d: (*d.coords[: len(sizes)], getattr(d, "core_on_chip", 0)))
    return topology, found


def devices_of(topology: Topology, devices: Sequence[Any] | None = None) -> list[Any]:
    """Devices for a topology: those given, else those present when they are of its kind, else descriptions to
    compile for."""
    if devices is not None:
        if len(devices) < topology.num_devices:
            raise TooFewDevicesError.of(topology.num_devices, len(devices), topology.platform)
        return list(devices)[: topology.num_devices]
    if topology.platform != "cpu" and jax.default_backend() == topology.platform:
        here, found = local_topology()
        if here.name == topology.name:
            return found
    return aot.devices_for(topology.name, topology.platform)
