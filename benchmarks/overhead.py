"""What running under a plan costs beyond a hand-written `jax.jit`: step time, and dispatch per call.

    python benchmarks/overhead.py [--json] [--repeats N]

Step time: the planned program against `jax.jit` of the undecorated step with the same in- and out-shardings, called in
turns in one process; the ratio is the median over the turns. Where the plan's own local programs beat what the
compiler's partitioner finds from the shardings alone, the ratio is below 1. Dispatch: a step with some 200 leaves that
computes next to nothing, decorated and under `jax.jit`. `ok`: ratio at most 1.02, dispatch at most 50 us above jit's.
The last line of `--json` is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import parallelizer as pz  # noqa: E402
from parallelizer import zoo  # noqa: E402
from parallelizer.runtime.runner import program_of  # noqa: E402

RATIO_MOST = 1.02
DISPATCH_MOST_S = 50e-6
LEAVES = 200


def main() -> int:
    """Measure, print, and return 0 if both targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--repeats", type=int, default=30, help="turns of the step (default 30)")
    options = parser.parse_args()
    rows = [step_time(name, mesh, options.repeats) for name, mesh in (("mlp", {"x": 8}), ("gpt-toy", {"x": 8}))]
    small = dispatch(options.repeats * 20)
    ok = all(r["ratio"] <= RATIO_MOST for r in rows) and small["extra_s"] <= DISPATCH_MOST_S
    for r in rows:
        print(
            f"{r['name']}: planned {r['planned_s'] * 1e3:.2f} ms, jit with its shardings {r['jit_s'] * 1e3:.2f} ms, "
            f"ratio {r['ratio']:.3f} (at most {RATIO_MOST})"
        )
    print(
        f"dispatch of {small['leaves']} leaves: planned {small['planned_s'] * 1e6:.0f} us, jit "
        f"{small['jit_s'] * 1e6:.0f} us, extra {small['extra_s'] * 1e6:.0f} us (at most {DISPATCH_MOST_S * 1e6:.0f})"
    )
    if options.json:
        print(json.dumps({"ok": ok, "steps": rows, "dispatch": small}))
    return 0 if ok else 1


def step_time(name: str, mesh: dict[str, int], repeats: int) -> dict[str, Any]:
    """Seconds per step of the planned program and of jit with the same shardings, and the median ratio."""
    sizes = {"mlp": {"layers": 4, "hidden": 512, "batch": 512}, "gpt-toy": {"embed": 128, "sequence": 64, "batch": 32}}
    model = zoo.model(name, **sizes[name])
    plan = pz.plan(model.step, model.state_shapes(), model.batch_shapes(), topology="cpu:8", mesh=mesh)
    program = program_of(plan)
    by_hand = jax.jit(model.step, in_shardings=program.in_shardings, out_shardings=program.out_shardings)
    batch = pz.shard(plan, model.example_batch(jax.random.key(1)), 1)
    planned_s, jit_s = in_turns(plan.apply(), by_hand, pz.init(plan, model.init, jax.random.key(0)), batch, repeats)
    ratio = statistics.median(a / b for a, b in zip(planned_s, jit_s, strict=True))
    return {
        "name": name,
        "mesh": mesh,
        "planned_s": statistics.median(planned_s),
        "jit_s": statistics.median(jit_s),
        "ratio": ratio,
    }


def in_turns(
    planned: Callable[..., Any], by_hand: Callable[..., Any], state: Any, batch: Any, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of every call, the two called in turns, each first in half of them."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    functions = (planned, by_hand)
    for f in functions:
        jax.block_until_ready(f(state, batch))
    for turn in range(repeats):
        for k in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            jax.block_until_ready(functions[k](state, batch))
            seconds[k].append(time.perf_counter() - start)
    return seconds[0], seconds[1]


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
