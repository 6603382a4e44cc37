"""What a plan predicts beside what the compiler made: bytes, FLOP, memory and computing time of models x layouts.

    python benchmarks/fidelity.py [--json] [--only TEXT] [--topologies v5e:4x4,cpu:8] [--quick]

Every row is a model of the zoo under a layout that pins fix, compiled for the topology without its hardware. Targets:
collectives' bytes within 2 %, FLOP within 1 %, peak memory within 5 % in the median and 10 % at worst, computing time
within 15 % of the compiler's own estimate (the sum of its `estimated_cycles`, TPU only) in the median. Figures are
predicted / compiled, for one device and step; a larger miss says why in its last column. Topologies whose compiler is
not installed are named and left out. A row takes 10 to 60 seconds of a quiet core. With `--json` the last line is
one JSON object with "ok".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
from jax.sharding import PartitionSpec

import parallelizer as pz
from cost_model.topology import parse_topology
from parallelizer import zoo
from parallelizer.audit import Audit, compare
from parallelizer.compiled import read_collectives, read_flop, read_memory
from parallelizer.compiled.cycles import CLOCK_HZ, CompiledCycles, read_cycles
from parallelizer.errors import AheadOfTimeError
from parallelizer.plans import Plan
from passes.fast_memory import fast_bytes
from passes.footprint import spaces, usages_of

BYTES_WITHIN, FLOP_WITHIN, TIME_MEDIAN = 0.02, 0.01, 0.15
MEMORY_MEDIAN, MEMORY_WORST = 0.05, 0.10
TOPOLOGIES = ("cpu:8", "v5e:4x4", "v5p:2x2x4", "v6e:4x4", "h200:8")


@dataclass(frozen=True, slots=True)
class Case:
    """A model with options, its batch, and a layout: "dp", "fsdp", "tp", "fsdp+tp", "sequence" or "expert" (see
    `pins`)."""

    model: str
    layout: str
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        scanned = self.options.get("scan", self.model != "mlp")
        kind = "scanned" if scanned else "unrolled"
        remat = self.options.get("remat", "none")
        parts = [self.model, self.layout, kind] + ([f"remat {remat}"] if remat != "none" else [])
        return ", ".join(parts)


# Wide enough that products and not launches take the time; compiling takes no longer for it.
_GPT = {"layers": 4, "embed": 1024, "heads": 8, "sequence": 512, "vocab": 8192, "dtype": "bfloat16"}
_LLAMA = {**_GPT, "kv_heads": 8, "mlp": 2816}
_MOE = {"layers": 4, "embed": 1024, "heads": 8, "kv_heads": 8, "sequence": 512, "vocab": 8192, "experts": 8,
        "expert_mlp": 2048, "dense_mlp": 2048, "group": 512, "dtype": "bfloat16"}  # fmt: skip
_BERT = {"layers": 4, "embed": 1024, "heads": 8, "sequence": 512, "scan": True, "dtype": "bfloat16"}
_VIT = {"layers": 4, "embed": 1024, "heads": 8, "mlp": 4096, "patch": 16, "image": 224, "classes": 1024,
        "dtype": "bfloat16", "remat": "none"}  # fmt: skip
QUICK = (
    Case("gpt-demo", "fsdp", 64, _GPT),
    Case("gpt-demo", "fsdp+tp", 64, _GPT),
    Case("mlp", "tp", 4096, {"hidden": 2048, "layers": 4}),
    Case("moe-toy", "expert", 64, _MOE),
)
FULL = (
    *QUICK,
    Case("gpt-demo", "dp", 64, _GPT),
    Case("gpt-demo", "tp", 16, _GPT),
    Case("gpt-demo", "sequence", 64, _GPT),
    Case("gpt-demo", "fsdp", 64, {**_GPT, "scan": False}),
    Case("gpt-demo", "fsdp+tp", 64, {**_GPT, "remat": "full"}),
    Case("llama-toy", "fsdp", 64, _LLAMA),
    Case("llama-toy", "tp", 16, {**_LLAMA, "remat": "full"}),
    Case("mlp", "fsdp", 16384, {"hidden": 2048, "layers": 4}),
    Case("vit-toy", "fsdp", 128, _VIT),
    Case("bert", "dp", 64, _BERT),
)


def mesh_of(layout: str, devices: int) -> dict[str, int]:
    """One axis, or two of equal size (as nearly as the devices allow)."""
    if layout in ("dp", "fsdp", "tp"):
        return {"x": devices}
    inner = 4 if devices >= 8 else 2
    return {"x": devices // inner, "y": inner}


def pins(model: zoo.ZooModel, layout: str, mesh: Mapping[str, int], case: Case) -> dict[str, PartitionSpec]:
    """What fixes a layout: the batch over x (dp, fsdp), over x and its positions over y (sequence), not at all (tp);
    parameters whole (dp), cut along their largest free dimension (fsdp over x), along heads or hidden units (tp), or
    experts over y and everything else whole (expert)."""
    out: dict[str, PartitionSpec] = {}
    batch = {"tp": PartitionSpec(), "sequence": PartitionSpec("x", "y")}.get(layout, PartitionSpec("x"))
    for path, _ in _leaves(model.batch_shapes(batch=case.batch)):
        out[f"batch/{path}"] = batch
    tensor = {"tp": "x", "fsdp+tp": "y"}.get(layout)
    for path, leaf in _leaves(model.params_of(model.state_shapes())):
        entries: list[str | None] = [None] * leaf.ndim
        first = 1 if "layers/" in path else 0
        if leaf.ndim - first < 2:
            continue
        if layout == "expert" and "/experts/" in path:
            entries[first] = "y"
        if tensor is not None and (dim := _tensor_dim(path, leaf.ndim, first)) is not None:
            entries[dim] = tensor
        if layout.startswith("fsdp"):
            free = [d for d in range(first, leaf.ndim) if entries[d] is None and leaf.shape[d] % mesh["x"] == 0]
            if free:
                entries[max(free, key=lambda d: leaf.shape[d])] = "x"
        out[f"state/params/{path}"] = PartitionSpec(*entries)
    return out


def _tensor_dim(path: str, rank: int, first: int) -> int | None:
    """Heads of projections and hidden units of the feed-forward products, as Megatron cuts them."""
    if any(f"/{name}/" in f"/{path}" for name in ("query", "key", "value")):
        return first + 1
    if any(f"/{name}/" in f"/{path}" for name in ("up", "gate")):
        return rank - 1
    if any(f"/{name}/" in f"/{path}" for name in ("down", "out")):
        return first
    return (
        (rank - 1 if int(path.split("/")[0].rpartition("_")[2]) % 2 == 0 else first)
        if path.startswith("layers_")
        else None
    )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [("/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path), leaf) for path, leaf in found]


def planned_flop(plan: Plan) -> float:
    """FLOP of products on one device: every contraction divided by what cuts its factors."""
    if plan.live is None:
        raise RuntimeError("the plan was not made in this process")
    grouping, sizes = plan.live.priced.program.grouping, plan.mesh.sizes
    total = 0.0
    for g, strategy in plan.live.realized.chosen.items():
        group = grouping.groups[g]
        for visit, rule in ((group.leader, group.rule),):
            if visit is None or rule is None or rule.kind != "contraction":
                continue
            cut = 1
            for _, axes in strategy.factors:
                for a in axes:
                    cut *= sizes[a]
            total += visit.count * rule.flop / cut
    return total


@dataclass(frozen=True, slots=True)
class Row:
    """One program compiled. Ratios are predicted / compiled; None where the compiler gives no figure that counts."""

    case: str
    topology: str
    mesh: Mapping[str, int]
    bytes_by_kind: Mapping[str, tuple[int, int]]
    bytes_ratio: float
    bytes_ok: bool
    flop_ratio: float
    peak_bytes: tuple[int, int | None]
    memory_ratio: float | None
    compute_s: tuple[float, float | None]
    time_ratio: float | None
    products_share: float | None
    compile_s: float
    notes: str


def measure(case: Case, topology: str) -> Row:
    """Plan, compile, compare. Raises what planning and compiling raise."""
    machine = parse_topology(topology)
    model = zoo.model(case.model, **case.options)
    mesh = mesh_of(case.layout, machine.num_devices)
    plan = pz.plan(
        model.step, model.state_shapes(), model.batch_shapes(batch=case.batch), topology=topology, mesh=mesh,
        pins=pins(model, case.layout, mesh, case), donate_argnums=0, memory_bytes=64e9,
    )  # fmt: skip
    start = time.monotonic()
    compiled = plan.compile()
    compile_s = time.monotonic() - start
    text = compiled.as_text()
    audit = compare(plan, read_collectives(text), read_memory(compiled), machine)
    bytes_ok, why = _judge(audit)
    tpu = machine.platform == "tpu"
    cycles = read_cycles(text) if tpu else None
    peak = audit.compiled_peak_bytes if audit.memory_judged else None
    estimate_s = cycles.total / CLOCK_HZ[machine.chip.name] if cycles is not None and cycles.total else None
    if cycles is not None and estimate_s:
        why = "; ".join(filter(None, (why, *_why_time(plan, cycles, plan.cost.compute_s / estimate_s))))
    return Row(
        str(case), topology, mesh, _by_kind(audit),
        audit.predicted_bytes / audit.compiled_bytes if audit.compiled_bytes else 1.0, bytes_ok,
        planned_flop(plan) / max(1, read_flop(text).flop),
        (plan.cost.peak_bytes, peak), plan.cost.peak_bytes / peak if peak else None,
        (plan.cost.compute_s, estimate_s), plan.cost.compute_s / estimate_s if estimate_s else None,
        cycles.products / cycles.total if cycles is not None and cycles.total else None,
        compile_s, why,
    )  # fmt: skip


def _judge(audit: Audit) -> tuple[bool, str]:
    """Whether the bytes are as planned, and why not."""
    if all(r.ok for r in audit.rows):
        return True, "; ".join(n for n in audit.notes if "reduce-scatters are compiled" in n)
    left = audit.mismatches
    return False, "; ".join(f"{m.what} {m.kind} of {m.array[:60]}: {m.detail[:60]}" for m in left[:2])


def _why_time(plan: Plan, cycles: CompiledCycles, ratio: float) -> Iterator[str]:
    """Where the two times part, for rows beyond the target: what the compiler adds, or what it saves."""
    if cycles.copies > 0.1 * cycles.total:
        yield f"{cycles.copies / cycles.total:.0%} of the cycles are copies into another layout, which are not priced"
    if ratio < 1 - TIME_MEDIAN:
        yield f"{(cycles.others - cycles.copies) / cycles.total:.0%} are fusions without a product"
    if ratio > 1 + TIME_MEDIAN and plan.live is not None:
        priced = plan.live.priced
        chip = priced.mesh.topology.chip.name
        used = tuple(usages_of(priced, plan.live.realized))
        _, slow, fast = spaces(used, priced.program.lives.end, fast_bytes(chip))
        there, rest = (sum(u.size_bytes for u in space) for space in (fast, slow))
        yield f"{there / max(1, there + rest):.0%} of the intermediate bytes fit in fast memory, priced as main memory"


def _by_kind(audit: Audit) -> dict[str, tuple[int, int]]:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for r in audit.rows:
        sums[r.kind][0] += r.predicted_bytes
        sums[r.kind][1] += r.compiled_bytes
    return {kind: (p, c) for kind, (p, c) in sorted(sums.items())}


def text_of(row: Row) -> str:
    kinds = ", ".join(f"{k} {p / 1e6:.1f}/{c / 1e6:.1f}" for k, (p, c) in row.bytes_by_kind.items() if max(p, c) > 1e4)

    def ratio(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.3f}"

    ok = "ok " if row.bytes_ok else "BAD"
    share = "    -" if row.products_share is None else f"{row.products_share:5.0%}"
    return (
        f"{ratio(row.bytes_ratio)} {ok} {ratio(row.flop_ratio)} {ratio(row.memory_ratio)} "
        f"{ratio(row.time_ratio)} {share} {row.compile_s:5.0f}  {row.topology:10} {row.case}: MB {kinds}"
        + (f" [{row.notes}]" if row.notes else "")
    )


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """The targets, and whether they are met."""
    memory = [abs(r.memory_ratio - 1) for r in rows if r.memory_ratio is not None]
    times = [abs(r.time_ratio - 1) for r in rows if r.time_ratio is not None]
    flop = [abs(r.flop_ratio - 1) for r in rows]
    found = {
        "rows": len(rows),
        "bytes_bad": [f"{r.topology} {r.case}" for r in rows if not r.bytes_ok],
        "flop_worst": max(flop, default=0.0),
        "memory_median": statistics.median(memory) if memory else None,
        "memory_worst": max(memory, default=None),
        "time_median": statistics.median(times) if times else None,
        "time_medians": {
            chip: statistics.median(abs(r.time_ratio - 1) for r in rows if r.time_ratio and r.topology.startswith(chip))
            for chip in dict.fromkeys(r.topology.partition(":")[0] for r in rows if r.time_ratio is not None)
        },
    }
    met = not found["bytes_bad"] and max(flop, default=0.0) <= FLOP_WITHIN
    met = met and (not memory or (statistics.median(memory) <= MEMORY_MEDIAN and max(memory) <= MEMORY_WORST))
    return {"ok": bool(rows) and met and (not times or statistics.median(times) <= TIME_MEDIAN), **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 where every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="cases whose text contains this")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--quick", action="store_true", help="four cases instead of all")
    options = parser.parse_args(arguments)
    rows = []
    print(" bytes       FLOP memory   time prod.  comp.")
    for case in QUICK if options.quick else FULL:
        for topology in options.topologies.split(","):
            if options.only in str(case):
                try:
                    rows.append(measure(case, topology))
                except AheadOfTimeError as error:
                    print(f"not compiled for {topology}: {error}")
                    continue
                print(text_of(rows[-1]), flush=True)
    found = verdict(rows)
    print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
    if options.json:
        print(json.dumps({**found, "table": [asdict(r) for r in rows]}))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
