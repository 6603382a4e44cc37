"""Predicted beside compiled collectives, over models, meshes and topologies.

    python benchmarks/collectives.py [--json] [--only TEXT] [--topologies cpu:8,v5e:2x4] [--full]

Every case is planned once per topology, compiled for it (TPUs ahead of time, without hardware), and audited: bytes per
kind and axes must agree within 2 %. With `--json` the last line is one JSON object with "ok".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import parallelizer as pz
from parallelizer import zoo
from parallelizer.errors import AheadOfTimeError, DoesNotFitError
from passes.pinning import LayoutError


@dataclass(frozen=True, slots=True)
class Case:
    """One plan: a model of the zoo with options, a mesh ({} searches), the batch, the memory of a device as a share of
    what the unconstrained plan takes (0: unlimited)."""

    model: str
    mesh: Mapping[str, int] = field(default_factory=dict)
    batch: int = 0
    memory_share: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [self.model, "x".join(map(str, self.mesh.values())) or "any mesh"]
        parts += [f"batch {self.batch}"] if self.batch else []
        parts += [f"memory {self.memory_share:.0%}"] if self.memory_share else []
        return ", ".join([*parts, *(f"{k}={v}" for k, v in self.options.items())])


FLAT, TWO, THREE = {"x": 8}, {"x": 2, "y": 4}, {"x": 2, "y": 2, "z": 2}
QUICK = (
    Case("gpt-toy", FLAT),
    Case("gpt-toy", TWO, 64),
    Case("gpt-toy", TWO, options={"scan": False, "dropout": 0.1}),
    Case("gpt-toy", TWO, memory_share=0.6, options={"remat": "full"}),
    Case("llama-toy", TWO),
    Case("bert", TWO, options={"scan": True}),
    Case("mlp", FLAT),
    Case("mlp", TWO, 32, options={"hidden": 1024}),
    Case("gpt-demo"),
)
FULL = (
    Case("gpt-toy", FLAT, options={"scan": False}),
    Case("gpt-toy", TWO, 256),
    Case("gpt-toy", FLAT, memory_share=0.5),
    Case("gpt-toy", TWO, memory_share=0.5, options={"scan": False}),
    Case("gpt-toy", TWO, 2, options={"embed": 512, "sequence": 8}),
    Case("gpt-toy", FLAT, 1, options={"embed": 512, "sequence": 8, "scan": False}),
    Case("gpt-toy", TWO, options={"remat": "full", "scan": False, "dropout": 0.1}),
    Case("gpt-toy-linen", TWO),
    Case("llama-toy", FLAT, options={"scan": False}),
    Case("llama-toy", TWO, 2, options={"embed": 512, "mlp": 1536, "sequence": 8}),
    Case("llama-toy", TWO, memory_share=0.5),
    Case("bert", FLAT),
    Case("bert", TWO, options={"remat": "full"}),
    Case("bert", TWO, 64, options={"loss": "tokens"}),
    Case("mlp", TWO),
    Case("mlp", TWO, 256, memory_share=0.5, options={"hidden": 256}),
    Case("mlp", FLAT, 256, memory_share=0.3, options={"hidden": 256}),
    Case("mlp", FLAT, 16, options={"hidden": 1024}),
    Case("mlp", THREE, 32, options={"hidden": 1024}),
    Case("gpt-toy", THREE),
    Case("gpt-demo", TWO, memory_share=0.6),
    Case("gpt-demo", TWO, options={"scan": False}),
)


def run(case: Case, topology: str) -> dict[str, Any]:
    """Plan, compile and compare one case; JSON-ready."""
    model = zoo.model(case.model, **case.options)
    shapes = model.state_shapes(), model.batch_shapes(batch=case.batch or model.batch)
    wanted: dict[str, Any] = {"topology": topology, "mesh": dict(case.mesh) or None, "donate_argnums": 0}
    start = time.monotonic()
    plan = pz.plan(model.step, *shapes, **wanted)
    if case.memory_share:
        again = partial(pz.plan, model.step, *shapes, **wanted)
        plan = lean(plan.cost.peak_bytes, case.memory_share, lambda m: again(memory_bytes=m))
    planned = time.monotonic()
    audit = plan.audit()
    return {
        "case": str(case), "topology": topology, "mesh": dict(plan.mesh.sizes), "ok": all(r.ok for r in audit.rows),
        "predicted_bytes": audit.predicted_bytes, "compiled_bytes": audit.compiled_bytes,
        "memory_ratio": audit.memory_ratio if audit.memory_judged else None,
        "rows": audit.to_dict()["rows"], "mismatches": [str(m) for m in audit.mismatches],
        "plan_s": planned - start, "audit_s": time.monotonic() - planned,
    }  # fmt: skip


def lean(peak_bytes: int, share: float, planned: Callable[[float], pz.Plan]) -> pz.Plan:
    """The plan within `share` of `peak_bytes`, or within the first larger share (halfway to all of it) that fits."""
    while True:
        try:
            return planned(share * peak_bytes)
        except DoesNotFitError:
            share = (1 + share) / 2


def show(result: Mapping[str, Any]) -> Iterator[str]:
    """The result as text: a line, its rows, what differs."""
    if "skipped" in result:
        yield f"{result['topology']:8} {result['case']}: not compiled ({result['skipped']})"
        return
    if "failed" in result:
        yield f"{result['topology']:8} {result['case']}: FAILED ({result['failed']})"
        return
    verdict = "ok" if result["ok"] else "DIFFERS"
    ratio = result["compiled_bytes"] / result["predicted_bytes"] if result["predicted_bytes"] else 1.0
    mesh = ", ".join(f"{a}={n}" for a, n in result["mesh"].items())
    memory = f", memory {result['memory_ratio']:.2f}" if result["memory_ratio"] else ""
    yield f"{result['topology']:8} {result['case']} [{mesh}]: {verdict}, bytes {ratio:.3f}{memory}"
    for row in result["rows"]:
        pair = f"{row['predicted_bytes'] / 1e3:10.1f} kB planned {row['compiled_bytes'] / 1e3:10.1f} kB compiled"
        runs = f"{row['predicted_count']} arrays planned, {row['compiled_arrays']} in {row['compiled_count']} runs"
        yield f"    {row['kind']:15}{'*'.join(row['axes']):8}{pair}  {runs}{'' if row['ok'] else '  DIFFERS'}"
    yield from (f"      {m}" for m in result["mismatches"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--topologies", default="cpu:8,v5e:2x4", help="comma-separated, of eight devices each")
    parser.add_argument("--full", action="store_true", help="all cases (some minutes), not only the quick ones")
    options = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    for case in (*QUICK, *FULL) if options.full else QUICK:
        if options.only not in str(case):
            continue
        for topology in options.topologies.split(","):
            try:
                results.append(run(case, topology))
            except AheadOfTimeError as error:
                results.append({"case": str(case), "topology": topology, "skipped": str(error).splitlines()[0]})
            except LayoutError as error:  # the search ran out of time: the other cases are still worth their run
                results.append({"case": str(case), "topology": topology, "failed": str(error), "ok": False})
            print("\n".join(show(results[-1])), flush=True)
    ran = [r for r in results if "skipped" not in r]
    ok = bool(ran) and all(r["ok"] for r in ran)
    print(f"{sum(r['ok'] for r in ran)} of {len(ran)} cases agree within 2 %")
    if options.json:
        print(json.dumps({"benchmark": "collectives", "ok": ok, "cases": results}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
