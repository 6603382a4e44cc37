"""How long planning takes, against what JAX itself takes to trace and lower the same step, in one run.

    python benchmarks/search_time.py [--cases TEXT,...] [--growth] [--json]

Processor seconds of this process: JAX's `trace` and `lower`; `pz.plan` from shapes to plan, over all meshes; and the
same again from the answer kept on disk. `--growth` shows how planning grows with layers, devices and mesh axes. "ok":
no case plans longer than 60 s, and none takes longer than JAX (ratio 1). The last line of `--json` is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

import parallelizer as pz
from parallelizer import zoo
from parallelizer.plan_cache import VARIABLE
from passes.solve import warm_up

SECONDS_MOST = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is planned: a model of the zoo with options, examples per step, a machine, and the mesh if it is fixed."""

    model: str
    topology: str
    batch: int
    options: tuple[tuple[str, Any], ...] = ()
    mesh: tuple[tuple[str, int], ...] = ()

    @property
    def label(self) -> str:
        options = "".join(f" {k}={v}" for k, v in self.options)
        mesh = " on " + "x".join(str(n) for _, n in self.mesh) if self.mesh else ""
        return f"{self.model}{options} {self.topology}{mesh}"


UNROLLED = (("scan", False),)
CASES = (
    Case("gpt3-175b", "v5p:8x8x8", 512),
    Case("gpt3-175b", "v5p:8x8x8", 512, UNROLLED),
    Case("llama3-405b", "v5p:8x8x16", 512, (("remat", "full"),)),
    Case("mixtral-8x7b", "h100:8x8", 64),
    Case("unet-toy", "v5e:8x8", 128),
    Case("unet-sd", "v5e:8x8", 128),
    Case("gpt3-175b", "v5p:16x16x16", 4096),
)
GROWTH = (
    *(Case("gpt2-124m", "v5e:4x4", 64, (("layers", n), *UNROLLED)) for n in (6, 12, 24)),
    *(Case("gpt3-15b", f"v5p:{t}", 1024) for t in ("4x4x4", "8x8x8", "16x16x16")),
    *(
        Case("gpt3-15b", "v5p:4x4x4", 1024, (), mesh)
        for mesh in ((("x", 64),), (("x", 16), ("y", 4)), (("x", 4), ("y", 4), ("z", 4)))
    ),
)


def main() -> int:
    """Plan every case; returns 0 if all meet both targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--cases", default="", help="only cases whose label holds one of these texts")
    parser.add_argument("--growth", action="store_true", help="grow layers, devices and axes instead")
    options = parser.parse_args()
    wanted = [text for text in options.cases.split(",") if text]
    warm_up()
    print(f"{'case':<44} {'jax':>7} {'plan':>7} {'ratio':>6} {'again':>7} {'ratio':>6} {'gap':>7}  mesh")
    rows = []
    for case in GROWTH if options.growth else CASES:
        if not wanted or any(text in case.label for text in wanted):
            rows.append(measured(case))
            print(line(rows[-1]), flush=True)
    ok = all(r["plan_s"] <= SECONDS_MOST and r["plan_s"] <= r["jax_s"] for r in rows)
    if options.json:
        print(json.dumps({"ok": ok, "cases": rows}))
    return 0 if ok else 1


def measured(case: Case) -> dict[str, Any]:
    """Processor seconds of tracing and lowering, of planning, and of planning again."""
    model = zoo.model(case.model, **dict(case.options))
    shapes = model.state_shapes(), model.batch_shapes(batch=case.batch)
    start = time.process_time()
    jax.jit(model.step, donate_argnums=(0,)).trace(*shapes).lower()
    jax_s = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = folder
        seconds = []
        for _ in range(2):
            start = time.process_time()
            plan = pz.plan(
                model.step, *shapes, topology=case.topology, mesh=dict(case.mesh) or None, donate_argnums=(0,)
            )
            seconds.append(time.process_time() - start)
    return {
        "case": case.label,
        "jax_s": jax_s,
        "plan_s": seconds[0],
        "again_s": seconds[1],
        "gap": plan.gap,
        "step_s": plan.cost.step_s,
        "mesh": dict(plan.mesh.sizes),
        "meshes": len(plan.tried),
    }


def line(row: dict[str, Any]) -> str:
    mesh = "x".join(map(str, row["mesh"].values()))
    ratio, again = row["plan_s"] / row["jax_s"], row["again_s"] / row["jax_s"]
    return (
        f"{row['case']:<44} {row['jax_s']:>6.2f}s {row['plan_s']:>6.2f}s {ratio:>6.2f} {row['again_s']:>6.2f}s "
        f"{again:>6.2f} {row['gap']:>7.3%}  {mesh} of {row['meshes']}"
    )


if __name__ == "__main__":
    sys.exit(main())
