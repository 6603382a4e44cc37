"""Pipeline schedules side by side, and what searching among them gains when stages are unequal.

First table: named schedules with equal stages (F = B = W = 1): makespan, bubble, activations held. Second table: random
stages; the found schedule against the best named one within the same memory, and against the bound.

    python benchmarks/schedules.py [--devices 4] [--microbatches 16] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from typing import Any

from passes.schedules import (
    NAMED,
    Costs,
    MicrobatchCountError,
    ScheduleMemoryError,
    best_schedule,
    equal_costs,
    make_schedule,
    peak_activations,
    simulate,
    stage_costs,
    validate,
    with_transfers,
)


def named_rows(devices: int, microbatches: int) -> list[dict[str, Any]]:
    """Every named schedule on equal stages; times of a whole device's stages are 1 per action."""
    rows: list[dict[str, Any]] = []
    for name in NAMED:
        try:
            schedule = make_schedule(name, devices, microbatches)
        except MicrobatchCountError as error:
            rows.append({"name": name, "refused": str(error)})
            continue
        part = 1 / schedule.chunks
        costs = equal_costs(schedule.stages, part, part, part)
        validate(with_transfers(schedule, costs))
        trace = simulate(schedule, costs)
        rows.append(
            {
                "name": name,
                "makespan": trace.makespan_s,
                "bubble": trace.bubble_s,
                "bubble_ratio": trace.bubble_ratio,
                "skewed_bubble": trace.skewed_bubble_s,
                "activations": max(peak_activations(schedule)),
            }
        )
    return rows


def unequal(draw: random.Random, stages: int) -> Costs:
    times = [[draw.uniform(0.5, 1.5) for _ in range(stages)] for _ in range(3)]
    return stage_costs(*times, transfer_s=0.05)


def search_rows(devices: int, microbatches: int, seeds: int) -> list[dict[str, Any]]:
    """Unequal stages, with as many microbatches held as devices, half as many, and any number."""
    rows: list[dict[str, Any]] = []
    for chunks in (1, 2):
        for held in (devices // 2, devices, microbatches):
            gains: list[float] = []
            gaps: list[float] = []
            seconds: list[float] = []
            alone = 0
            for seed in range(seeds):
                costs = unequal(random.Random(seed), devices * chunks)
                memory = [float(held * chunks)] * devices
                names = [n for n, m in NAMED.items() if m.chunks in ((1,) if chunks == 1 else (None, 2))]
                start = time.perf_counter()
                found = best_schedule(costs, microbatches, devices, memory)
                seconds.append(time.perf_counter() - start)
                gaps.append(found.gap)
                try:
                    named = best_schedule(costs, microbatches, devices, memory, names=names)
                    gains.append(named.trace.makespan_s / found.trace.makespan_s)
                except ScheduleMemoryError:
                    alone += 1  # no named schedule fits
            rows.append(
                {
                    "chunks": chunks,
                    "held": held,
                    "gain": statistics.geometric_mean(gains) if gains else None,
                    "least_gain": min(gains, default=None),
                    "only_the_search_fits": alone,
                    "gap": statistics.mean(gaps),
                    "seconds": statistics.median(seconds),
                }
            )
    return rows


def main() -> int:
    """Print both tables, and return 0 if no named schedule is shorter than the found one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    named = named_rows(args.devices, args.microbatches)
    print(f"{args.devices} devices, {args.microbatches} microbatches, equal stages")
    print(f"{'schedule':18} {'makespan':>9} {'bubble':>8} {'ratio':>7} {'skewed':>8} {'held':>6}")
    for row in named:
        if "refused" in row:
            print(f"{row['name']:18} {row['refused']}")
            continue
        print(
            f"{row['name']:18} {row['makespan']:9.2f} {row['bubble']:8.2f} {row['bubble_ratio']:7.1%} "
            f"{row['skewed_bubble']:8.2f} {row['activations']:6.2f}"
        )
    searched = search_rows(args.devices, args.microbatches, args.seeds)
    print(f"\nunequal stages, {args.seeds} draws: best named / found (more is better), gap to the bound")
    print(f"{'stages each':>11} {'held':>5} {'gain':>7} {'least':>7} {'only search fits':>17} {'gap':>7} {'s':>6}")
    for row in searched:
        gain, least = (f"{row[k]:.3f}" if row[k] else "-" for k in ("gain", "least_gain"))
        print(
            f"{row['chunks']:11} {row['held']:5} {gain:>7} {least:>7} {row['only_the_search_fits']:17} "
            f"{row['gap']:7.1%} {row['seconds']:6.2f}"
        )
    ok = all(row["least_gain"] is None or row["least_gain"] >= 1 for row in searched)
    if args.json:
        print(json.dumps({"named": named, "search": searched, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
