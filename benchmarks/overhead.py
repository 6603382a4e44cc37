"""What running under a plan costs beyond a hand-written `jax.jit`: step time, and dispatch per call.

    python benchmarks/overhead.py [--json] [--repeats N]

Step time, against two programs in plain JAX that are called in turns with it, in one process and on the same arrays:

- same shardings: `jax.jit` of the undecorated step with the plan's in- and out-shardings, the rest left to the
  compiler. Where the plan's own local programs beat what the partitioner finds, the ratio is below 1.
- same constraints: the module that `plan.to_code` writes, which needs jax alone: every constraint and collective of the
  plan by hand. What is left of the ratio is what this package costs while a step runs.

A ratio is the median over the turns of the ratio within a turn, so that what else the machine does cancels; its
uncertainty is the median's standard error from the turns. It is taken of the seconds on the clock and of the
processor's seconds that the process spends, and judged by the more certain of the two: on a busy machine the clock says
little about a few percent. Dispatch: a step with some 200 leaves that computes next to nothing, decorated and under
`jax.jit`. `ok`: every ratio at most 1.02, dispatch at most 50 us above jit's. The last line of `--json` is one JSON
object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

import parallelizer as pz
from parallelizer import zoo
from parallelizer.runtime.runner import program_of

RATIO_MOST = 1.02
DISPATCH_MOST_S = 50e-6
LEAVES = 200


CASES: tuple[tuple[str, dict[str, int], dict[str, Any]], ...] = (
    ("mlp", {"x": 8}, {"layers": 4, "hidden": 512, "batch": 512}),
    ("gpt-toy", {"x": 8}, {"embed": 128, "sequence": 64, "batch": 32}),
    ("gpt-toy", {"x": 2, "y": 4}, {"embed": 128, "sequence": 64, "batch": 32, "scan": False}),
)


def main() -> int:
    """Measure, print, and return 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--repeats", type=int, default=60, help="turns of every step (default 60)")
    options = parser.parse_args()
    rows = []
    for name, mesh, sizes in CASES:
        for row in step_times(name, mesh, sizes, options.repeats):
            rows.append(row)
            ratios = (
                f"ratio {row['wall_ratio']:.3f} +- {row['wall_error']:.3f}, "
                f"of processor time {row['cpu_ratio']:.3f} +- {row['cpu_error']:.3f} (at most {RATIO_MOST})"
            )
            times = f"planned {row['planned_s'] * 1e3:.2f} ms, by hand {row['jit_s'] * 1e3:.2f} ms"
            print(f"{name} on {'x'.join(map(str, mesh.values()))}, {row['against']}: {times}; {ratios}", flush=True)
    small = dispatch(options.repeats * 10)
    ok = all(r["ratio"] <= RATIO_MOST for r in rows) and small["extra_s"] <= DISPATCH_MOST_S
    print(
        f"dispatch of {small['leaves']} leaves: planned {small['planned_s'] * 1e6:.0f} us, jit "
        f"{small['jit_s'] * 1e6:.0f} us, extra {small['extra_s'] * 1e6:.0f} us (at most {DISPATCH_MOST_S * 1e6:.0f})"
    )
    if options.json:
        print(json.dumps({"ok": ok, "steps": rows, "dispatch": small}))
    return 0 if ok else 1


def step_times(name: str, mesh: dict[str, int], sizes: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Seconds per step of the planned program and of the two by hand, each with its median ratio: two rows."""
    model = zoo.model(name, **sizes)
    shapes = model.state_shapes(), model.batch_shapes()
    plan = pz.plan(model.step, *shapes, topology="cpu:8", mesh=mesh)
    program = program_of(plan)
    module = exported(plan)
    by_hand = {
        "same shardings": jax.jit(model.step, in_shardings=program.in_shardings, out_shardings=program.out_shardings),
        "same constraints": module.planned_step(module.make_mesh(), *shapes),
    }
    batch = pz.shard(plan, model.example_batch(jax.random.key(1)), 1)
    state = pz.init(plan, model.init, jax.random.key(0))
    wall, cpu = in_turns((plan.apply(), *by_hand.values()), state, batch, repeats)
    rows = []
    for k, against in enumerate(by_hand, start=1):
        wall_ratio, wall_error = median_ratio(wall[0], wall[k])
        cpu_ratio, cpu_error = median_ratio(cpu[0], cpu[k])
        rows.append(
            {
                "name": name,
                "mesh": mesh,
                "against": against,
                "planned_s": statistics.median(wall[0]),
                "jit_s": statistics.median(wall[k]),
                "wall_ratio": wall_ratio,
                "wall_error": wall_error,
                "cpu_ratio": cpu_ratio,
                "cpu_error": cpu_error,
                "ratio": cpu_ratio if cpu_error < wall_error else wall_ratio,
            }
        )
    return rows


def exported(plan: pz.Plan) -> ModuleType:
    """The plan as the plain JAX module that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "by_hand.py"
        plan.to_code(str(path))
        spec = importlib.util.spec_from_file_location("by_hand", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def median_ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """Median of the ratios turn by turn, and its standard error: half the width between the order statistics
    sqrt(n) / 2 to either side of the middle."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    middle, away = (len(ratios) - 1) / 2, math.sqrt(len(ratios)) / 2
    low, high = max(0, math.floor(middle - away)), min(len(ratios) - 1, math.ceil(middle + away))
    return statistics.median(ratios), (ratios[high] - ratios[low]) / 2


def in_turns(
    functions: Sequence[Callable[..., Any]], state: Any, batch: Any, repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds on the clock and of the processor of every call of each function; every turn another one goes first."""
    wall: list[list[float]] = [[] for _ in functions]
    cpu: list[list[float]] = [[] for _ in functions]
    for f in functions:
        jax.block_until_ready(f(state, batch))
    for turn in range(repeats):
        order = range(len(functions)) if turn % 2 else range(len(functions) - 1, -1, -1)
        for position in order:
            k = (position + turn // 2) % len(functions)
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(functions[k](state, batch))
            wall[k].append(time.perf_counter() - start)
            cpu[k].append(time.process_time() - start_cpu)
    return wall, cpu


def dispatch(repeats: int) -> dict[str, Any]:
    """Seconds until a call returns, without waiting for its result: a tree of small arrays that all change a little."""

    def step(state: dict[str, jax.Array], rate: jax.Array) -> dict[str, jax.Array]:
        return {k: v * rate for k, v in state.items()}

    device = jax.devices()[:1]
    decorated = pz.parallelize(step, devices=device)
    by_hand = jax.jit(step)
    state = {f"leaf_{i:03}": jnp.ones((8,)) for i in range(LEAVES)}
    decorated(state, jnp.float32(1.0))
    # Placed as in training: each gets what it returned itself.
    rates = (pz.shard(decorated.plan, jnp.float32(1.0), 1), jax.device_put(jnp.float32(1.0), device[0]))
    functions = (decorated, by_hand)
    states = [jax.block_until_ready(f(state, rate)) for f, rate in zip(functions, rates, strict=True)]
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(repeats):
        for k in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            result = functions[k](states[k], rates[k])
            seconds[k].append(time.perf_counter() - start)
            states[k] = jax.block_until_ready(result)
    planned_s, jit_s = statistics.median(seconds[0]), statistics.median(seconds[1])
    return {"leaves": LEAVES + 1, "planned_s": planned_s, "jit_s": jit_s, "extra_s": planned_s - jit_s}


if __name__ == "__main__":
    sys.exit(main())
