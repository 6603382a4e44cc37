"""Predicted beside compiled peak memory of one device, over models, sizes and layouts, compiled for TPUs ahead of time.

    python benchmarks/memory.py [--json] [--only TEXT] [--topology TEXT] [--full]

`ratio` is predicted / compiled; it must be within 15 % in every row. With `--json` the last line is one JSON object
with the rows, the median error and "ok". The full set compiles for tens of minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import parallelizer as pz
from parallelizer import zoo
from parallelizer.compiled.memory import read_memory

ALLOWED = 0.15


@dataclass(frozen=True, slots=True)
class Case:
    """One plan: a model of the zoo with options, its batch, a mesh, and a device's memory where it is to be tight."""

    model: str
    mesh: Mapping[str, int]
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)
    sequence: int | None = None
    memory_bytes: int | None = None
    topology: str = "v5e:2x4"

    def __str__(self) -> str:
        parts = [self.model, f"batch {self.batch}", *(f"{k} {v}" for k, v in self.options.items())]
        parts += [f"sequence {self.sequence}"] if self.sequence else []
        parts += [f"memory {self.memory_bytes / 1e6:.0f} MB"] if self.memory_bytes else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes of one device. `split` says what the plan thinks lives at the peak."""

    case: str
    topology: str
    mesh: str
    predicted_bytes: int
    compiled_bytes: int
    ratio: float
    compile_s: float
    split: Mapping[str, int]


FLAT, TWO = {"x": 8}, {"x": 2, "y": 4}
_MID = {"embed": 256, "sequence": 256, "vocab": 4096}
QUICK = (
    Case("gpt-toy", TWO, 16),
    Case("gpt-demo", FLAT, 32),
    Case("gpt-demo", TWO, 32, {"remat": "full"}),
    Case("gpt-demo", FLAT, 32, {"scan": False}),
    Case("mlp", FLAT, 256),
    Case("llama-toy", FLAT, 16),
    Case("bert", TWO, 8, {"scan": True}),
    Case("bert", TWO, 64, {"loss": "tokens"}),
)
FULL = (
    *QUICK,
    Case("mlp", FLAT, 8192, {"hidden": 2048, "layers": 3}),
    Case("gpt-demo", TWO, 128, {**_MID, "dtype": "bfloat16"}),
    Case("gpt-demo", FLAT, 128, {**_MID, "remat": "full"}),
    Case("gpt-demo", FLAT, 128, {**_MID, "layers": 2, "dtype": "bfloat16", "scan": False}),
    Case("gpt-demo", FLAT, 128, {**_MID, "layers": 2, "remat": "full", "scan": False}),
    Case("gpt-demo", FLAT, 32, {"embed": 512, "remat": "full", "dtype": "bfloat16"}, memory_bytes=60_000_000),
    Case("llama-toy", FLAT, 128, {"embed": 256, "mlp": 768, "layers": 3, "sequence": 256}),
    Case("gpt2-124m", FLAT, 16, {"layers": 4, "dtype": "float32"}, 512),
    Case("gpt2-124m", FLAT, 32),
    Case("bert", FLAT, 8),
    Case("bert", TWO, 8, {"remat": "full"}),
    Case("bert", TWO, 64, {"scan": True, "layers": 4, "embed": 256}, 64),
    Case("gpt-toy", TWO, 16, {"scan": False, "dropout": 0.1}),
    Case("gpt-toy", TWO, 16, {"scan": False, "dropout": 0.1, "remat": "full"}),
    Case("gpt-toy", FLAT, 1, {"embed": 512, "sequence": 8, "scan": False}),
    Case("gpt-toy-linen", TWO, 16),
    Case("gpt-toy-linen", FLAT, 16),
    Case("llama-toy", TWO, 16, {"scan": False}),
    Case("llama-toy", TWO, 2, {"embed": 512, "mlp": 1536, "sequence": 8}),
    Case("llama-toy", TWO, 64, {"embed": 256, "mlp": 768, "layers": 3, "sequence": 256, "remat": "full"}),
    Case("mlp", TWO, 32, {"hidden": 1024}),
    Case("gpt-demo", FLAT, 64, {**_MID, "remat": "full"}, topology="v5p:2x2x2"),
    Case("llama-toy", TWO, 64, {"embed": 256, "mlp": 768, "layers": 3, "sequence": 256}, topology="v5p:2x2x2"),
)


def measure(case: Case) -> Row:
    """Plan, compile, compare. Raises what planning and compiling raise."""
    model = zoo.model(case.model, **case.options)
    plan = pz.plan(
        model.step,
        model.state_shapes(),
        model.batch_shapes(batch=case.batch, sequence=case.sequence),
        topology=case.topology,
        mesh=case.mesh,
        memory_bytes=case.memory_bytes,
        donate_argnums=0,
    )
    start = time.monotonic()
    memory = read_memory(plan.compile())
    if memory is None:
        raise RuntimeError(f"the compiler for {case.topology} reports no memory")
    predicted = plan.cost.peak_bytes
    return Row(
        str(case),
        case.topology,
        "x".join(map(str, case.mesh.values())),
        predicted,
        memory.peak_bytes,
        predicted / memory.peak_bytes,
        time.monotonic() - start,
        dict(plan.memory.by_kind),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 where every row is within the allowed error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="cases whose text contains this")
    parser.add_argument("--topology", default="", help="only cases for topologies whose name contains this")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args(arguments)
    rows = []
    print(f"{'predicted MB':>12} {'compiled MB':>12} {'ratio':>6} {'s':>5}  case")
    for case in FULL if options.full else QUICK:
        if options.only in str(case) and options.topology in case.topology:
            row = measure(case)
            rows.append(row)
            sizes = f"{row.predicted_bytes / 1e6:12.2f} {row.compiled_bytes / 1e6:12.2f}"
            print(
                f"{sizes} {row.ratio:6.3f} {row.compile_s:5.0f}  {row.case} on {row.topology} as {row.mesh}", flush=True
            )
    errors = [abs(r.ratio - 1) for r in rows]
    ok = bool(rows) and max(errors) <= ALLOWED
    if rows:
        print(f"median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    if options.json:
        found = {"median_error": statistics.median(errors), "worst_error": max(errors)} if rows else {}
        print(json.dumps({"ok": ok, **found, "rows": [asdict(r) for r in rows]}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
