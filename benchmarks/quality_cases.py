"""What `quality.py` compares: models at published sizes on topologies, and the layouts that people write by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cost_model.topology import Topology
from passes.dim_names import Dims


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the zoo with options, its global batch, and a topology. `compiled` are the options of the smaller
    program that is compiled where the whole one takes too long."""

    name: str
    model: str
    topology: str
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)
    compiled: Mapping[str, Any] = field(default_factory=dict)


_LONG = {"sequence": 131_072, "rope_base": 5e6}

CASES = (
    Case("gpt3-1.3b", "gpt3-1.3b", "v5e:4x4", 64),
    Case("gpt3-15b", "gpt3-15b", "v5e:16x16", 256),
    Case("gpt3-15b-h100", "gpt3-15b", "h100:8x8", 256),
    Case("gpt3-175b", "gpt3-175b", "v5p:4x4x4", 128),
    Case("gpt3-175b-v6e", "gpt3-175b", "v6e:16x16", 256),
    Case("llama3-8b", "llama3-8b", "h100:8x1", 16, {"sequence": 4096}),
    Case("llama3-8b-v5e", "llama3-8b", "v5e:16x16", 256, {"sequence": 4096}),
    Case("llama3-70b", "llama3-70b", "v5p:4x4x4", 64, {"sequence": 4096}),
    Case("llama3-405b", "llama3-405b", "v6e:16x16", 128, {"sequence": 4096}),
    Case("long-context-128k", "llama3-8b", "v5p:4x4x4", 1, _LONG),
    Case("mixtral-8x7b", "mixtral-8x7b", "v6e:16x16", 256),
    Case("mixtral-8x7b-h100", "mixtral-8x7b", "h100:8x8", 64),
    Case("deepseek-moe-16b", "deepseek-moe-16b", "v5e:16x16", 256),
    Case("moe-10b", "moe-10b", "v5e:4x4", 64),
    Case("vit-h", "vit-h", "v5e:4x4", 1024),
    Case("vit-h-256", "vit-h", "v5e:16x16", 4096),
    Case("wide-resnet-2b", "wide-resnet-2b", "h100:8x1", 256),
    Case("wide-resnet-4b", "wide-resnet-4b", "v5e:4x4", 64),
    Case("unet-sd", "unet-sd", "v5e:4x4", 256),
    Case("dit-xl-2", "dit-xl-2", "v5e:4x4", 256),
    Case("dlrm", "dlrm-criteo", "h100:8x1", 65_536),
    Case("t5-11b", "t5-11b", "v5p:4x4x4", 512),
    Case("graphcast", "graphcast", "v5p:4x4x4", 64),
    Case("meshgraphnet", "meshgraphnet", "v5e:4x4", 64),
)


@dataclass(frozen=True, slots=True)
class Hand:
    """One layout of the sweep: its name or rules by dimension, and the mesh."""

    label: str
    layout: str | Mapping[str, str | tuple[str, ...]]
    mesh: Mapping[str, int]


def sweep(topology: Topology, dims: Dims) -> Iterator[Hand]:
    """Every layout that an expert would try: data parallel, ZeRO-2, fully sharded, hybrid at each size of the inner
    group, Megatron without and with sequence parallelism at each degree, fully sharded x tensor at each split, experts
    at each degree, and the sequence cut at each degree."""
    n = topology.num_devices
    inner = [k for k in range(2, n) if n % k == 0]
    for name, axis in (("ddp", "data"), ("zero2", "data"), ("fsdp", "fsdp")):
        yield Hand(name, name, {axis: n})
    yield from (Hand(f"hybrid_fsdp {k}", "hybrid_fsdp", {"replica": n // k, "fsdp": k}) for k in inner)
    if dims.with_role("heads", "mlp"):
        for k in [*inner, n]:
            yield Hand(f"megatron {k}", "megatron", {"data": n // k, "tensor": k})
            yield Hand(f"megatron_sequence {k}", "megatron_sequence", {"data": n // k, "tensor": k})
            if k < n:
                yield Hand(f"fsdp_tensor {n // k}x{k}", "fsdp_tensor", {"fsdp": n // k, "tensor": k})
    experts = math.gcd(n, *(d.size for d in dims.with_role("experts")))
    if dims.with_role("experts"):
        yield from (
            Hand(f"expert {k}", "expert", {"fsdp": n // k, "expert": k}) for k in [*inner, n] if experts % k == 0
        )
    if dims.with_role("length") and dims.with_role("heads"):
        rules = {"batch": "data", "embed": ("data", "sequence"), "length": "sequence"}
        if dims.with_role("batch"):
            yield from (Hand(f"sequence {k}", rules, {"data": n // k, "sequence": k}) for k in [*inner, n])
        else:  # one example: nothing to cut but its length
            yield Hand(f"sequence {n}", {"embed": "sequence", "length": "sequence"}, {"sequence": n})
