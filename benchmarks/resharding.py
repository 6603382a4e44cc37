"""Moving arrays between meshes: simulated makespans against the volume bound, and real moves against jax.device_put.

    python benchmarks/resharding.py [--json] [--megabytes 8] [--repeats 9]

1. The cases of "On Optimizing the Communication of Model Parallelism" (arXiv:2211.05322) in its units: 1 GiB through
   one host's network card takes 1; links inside a host cost nothing, and there is no latency. Beside the plan stand two
   simple schemes in the same model: every block broadcast by its first holder, and by its least busy holder, in the
   order of blocks. Then all pairs of shardings of the same family.
2. Machines with latencies, ramps and links of their own: the plan against its bound.
3. On 8 virtual CPU devices, for `Transfer.run` and `jax.device_put` in turns in one process: how long the caller is
   blocked while the array is still being computed, and how long a finished array takes to arrive. Rows marked = have
   tiles that exist on the source as they are, which device_put also copies from device to device; all others it takes
   through the host and waits for. Host memory is the devices' memory here, so that some of these "transfers" of a
   finished array copy little or nothing (marked *): the second figure says nothing about devices with a memory of
   their own.

"ok": the model gives the published makespans, every plan is at the bound, and `Transfer.run` equals device_put and
comes back sooner in every row without =.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import parallelizer as pz
from cost_model.hardware import chip
from cost_model.machine import Dim, Topology
from cost_model.topology import parse_topology
from passes.cross_mesh import Move, Placement, boxes, plan_move
from passes.cross_mesh.tiles import atoms
from passes.ir.sharding import Sharding

GIB = 2**30
FAST = 1e14  # bytes/s inside a host: as good as nothing to pay
AXES = {"S0": ("h",), "S1": ("d",), "R": (), "S01": ("h", "d")}
CUBE, THIRDS = (1024, 1024, 512), (3072, 1024, 170)
NEAR = 1.005  # reads 1.00

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Case:
    """A transfer of the reference; `published` are its makespans: naive, balanced by size, best possible."""

    name: str
    shape: tuple[int, ...]
    source: tuple[str, ...]
    destination: tuple[str, ...]
    meshes: tuple[Grid, Grid]
    published: tuple[float, float, float] | None = None


def _cases() -> list[Case]:
    out = []
    for size, elements in (("1 GiB", 2**28), ("1 MB", 250_000), ("16 MB", 4_000_000), ("64 MB", 16_000_000)):
        for grid in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (3, 2), (4, 2)):
            best = elements * 4 / GIB
            out.append(Case(f"1 to {grid}, {size}", (elements,), ("R",), ("R",), ((1, 1), grid), (best,) * 3))
    two = ((2, 4), (2, 4))
    return [
        *out,
        Case("1", CUBE, ("S0", "R", "R"), ("S0", "R", "R"), two, (1, 1, 1)),
        Case("2", CUBE, ("R", "R", "R"), ("S0", "R", "R"), two, (2, 1, 1)),
        Case("6", THIRDS, ("S0", "R", "R"), ("S0", "R", "R"), ((2, 4), (3, 4)), (1.992, 1.992, 0.996)),
        Case("7", CUBE, ("S1", "R", "R"), ("R", "R", "R"), ((1, 4), (2, 4)), (2, 2, 2)),
    ]


def _family() -> list[Case]:
    specs = [
        ("R", "R", "R"), ("S0", "R", "R"), ("R", "S0", "R"), ("S1", "R", "R"), ("R", "S1", "R"), ("S01", "R", "R"),
        ("R", "S01", "R"), ("S0", "S1", "R"), ("S1", "S0", "R"), ("R", "R", "S01"),
    ]  # fmt: skip
    grids = [((2, 4), (2, 4)), ((2, 4), (3, 4)), ((4, 4), (3, 2)), ((1, 4), (2, 4)), ((3, 2), (2, 4))]
    return [Case("", (3072, 1536, 48), a, b, g) for g in grids for a in specs for b in specs]


def hosts(count: int, per_host: int) -> Topology:
    """Hosts whose card carries 1 GiB in one second, without latency."""
    free = replace(chip("a100-80"), launch_overhead_s=0.0, collective_launch_s=0.0)
    dims = (Dim(count, "network", GIB / per_host, 0.0), Dim(per_host, "nvlink", FAST, 0.0))
    return Topology(f"{count} hosts of {per_host}", free, dims)


def _placement(grid: Grid, cut: Sequence[str], first_host: int, per_host: int) -> Placement:
    devices = tuple((first_host + h) * per_host + d for h in range(grid[0]) for d in range(grid[1]))
    return Placement(devices, (("h", grid[0]), ("d", grid[1])), Sharding(tuple(AXES[c] for c in cut)))


def planned(case: Case) -> tuple[Move, float, float]:
    """The plan, and the makespans of the two simple schemes."""
    (a, b), per_host = case.meshes, max(case.meshes[0][1], case.meshes[1][1])
    machine = hosts(a[0] + b[0], per_host)
    source = _placement(a, case.source, 0, per_host)
    destination = _placement(b, case.destination, a[0], per_host)
    move = plan_move(case.shape, 4, source, destination, machine, devices_per_card=per_host)
    simple = [_broadcasts(case.shape, source, destination, per_host, balanced) for balanced in (False, True)]
    return move, simple[0], simple[1]


def _broadcasts(
    shape: tuple[int, ...], source: Placement, destination: Placement, per_host: int, balanced: bool
) -> float:
    """Every block is broadcast whole to all hosts that need it, in the order of blocks."""
    out: dict[int, float] = {}
    into: dict[int, float] = {}
    sent: dict[int, float] = {}
    for atom in atoms(shape, source, destination):
        holders = sorted({d // per_host for d in atom.holders})
        needers = {d // per_host for d in atom.needers}
        sender = min(holders, key=lambda h: (sent.get(h, 0.0), h)) if balanced else holders[0]
        duration = atom.elements * 4 / GIB
        sent[sender] = sent.get(sender, 0.0) + duration
        end = max([out.get(sender, 0.0), *(into.get(h, 0.0) for h in needers)]) + duration
        out[sender] = end
        into.update(dict.fromkeys(needers, end))
    return max([*out.values(), *into.values()])


def reference() -> list[dict[str, Any]]:
    rows = []
    for case in _cases():
        start = time.perf_counter()
        move, naive, balanced = planned(case)
        assert case.published is not None
        rows.append(
            {
                "case": case.name, "naive": naive, "balanced": balanced, "planned": move.makespan_s,
                "bound": move.bound.time_s, "ratio": move.ratio, "published": list(case.published),
                "plan_s": time.perf_counter() - start,
            }
        )  # fmt: skip
    return rows


def family() -> dict[str, Any]:
    """All pairs of shardings on several pairs of meshes, in the reference's model."""
    moves = [(case, *planned(case)) for case in _family()]
    worst = max(moves, key=lambda m: m[1].ratio)
    return {
        "cases": len(moves),
        "at_the_bound": sum(m.ratio <= NEAR for _, m, _, _ in moves),
        "worst_ratio": worst[1].ratio,
        "worst_case": f"{worst[0].meshes} {worst[0].source} -> {worst[0].destination}",
        "faster_than_naive": statistics.geometric_mean(naive / m.makespan_s for _, m, naive, _ in moves),
        "faster_than_balanced": statistics.geometric_mean(even / m.makespan_s for _, m, _, even in moves),
    }


MACHINES = (
    ("h100:8x4", ({"x": 16}, ("x", None)), ({"y": 16}, ("y", None))),
    ("h100:8x4", ({"x": 2, "t": 8}, ("x", None)), ({"y": 2, "t": 8}, (None, None))),
    ("h100:8x4", ({"x": 8}, ("x", None)), ({"y": 24}, (None, None))),
    ("h100:8x4norails", ({"x": 16}, ("x", None)), ({"y": 16}, (None, "y"))),
    ("h100:8", ({"x": 4}, ("x", None)), ({"y": 4}, (None, "y"))),
    ("v5e:4x4", ({"x": 8}, ("x", None)), ({"y": 8}, ("y", None))),
    ("v5e:4x4", ({"x": 8}, ("x", None)), ({"y": 8}, (None, "y"))),
    ("v5e:4x4x2slices", ({"x": 4, "t": 4}, ("x", None)), ({"y": 4, "t": 4}, ("y", None))),
    ("v5p:2x2x4", ({"x": 8}, ("x", None)), ({"y": 8}, (None, None))),
)


def machines() -> list[dict[str, Any]]:
    rows = []
    for name, source, destination in MACHINES:
        for columns in (128, 16384):
            array = jax.ShapeDtypeStruct((4096 * 3, columns), jax.numpy.bfloat16)
            start = time.perf_counter()
            t = pz.plan_transfer(array, source, destination, parse_topology(name))
            rows.append(
                {
                    "machine": name, "from": f"{source[0]} {source[1]}", "to": f"{destination[0]} {destination[1]}",
                    "size_bytes": t.move.size_bytes, "planned_s": t.makespan_s, "bound_s": t.bound_s, "ratio": t.ratio,
                    "plan_s": time.perf_counter() - start,
                }
            )  # fmt: skip
    return rows


REAL = (
    ((2, 2), ("S0", "R"), (2, 2), ("S0", "R")),
    ((2, 2), ("R", "R"), (2, 2), ("R", "R")),
    ((2, 2), ("R", "R"), (2, 2), ("S0", "R")),
    ((2, 2), ("S0", "R"), (2, 2), ("R", "R")),
    ((2, 2), ("S0", "R"), (2, 2), ("S1", "R")),
    ((2, 2), ("S0", "R"), (2, 2), ("R", "S0")),
    ((2, 2), ("S01", "R"), (2, 2), ("R", "S01")),
    ((2, 2), ("S01", "R"), (2, 2), ("S0", "R")),
    ((2, 2), ("S0", "R"), (2, 2), ("S01", "R")),
    ((2, 2), ("S0", "S1"), (2, 2), ("R", "S0")),
    ((1, 2), ("S1", "R"), (2, 3), ("S0", "R")),
    ((1, 2), ("S1", "R"), (2, 3), ("R", "R")),
    ((2, 3), ("S01", "R"), (1, 2), ("R", "S1")),
    ((2, 3), ("S0", "S1"), (1, 2), ("S1", "R")),
    ((1, 1), ("R", "R"), (1, 7), ("R", "R")),
)


def real(megabytes: float, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for source_grid, source_cut, grid, cut in REAL:
        columns = 768
        lines = max(1, round(megabytes * 1e6 / 4 / columns / 12)) * 12
        devices = jax.devices()
        source = _named(source_grid, source_cut, devices, 0)
        destination = _named(grid, cut, devices, source.mesh.size)
        shape = (lines, columns)
        x = jax.device_put(np.arange(lines * columns, dtype=np.int32).reshape(shape), source)
        t = pz.plan_transfer(x, source, destination)
        rows.append(_timed(t, x, repeats))
        rows[-1]["case"] = f"{source_grid} {source_cut} -> {grid} {cut}"
    return rows


def _named(grid: Grid, cut: Sequence[str], devices: Sequence[Any], first: int) -> NamedSharding:
    mesh = Mesh(np.array(devices[first : first + grid[0] * grid[1]]).reshape(grid), ("h", "d"))
    return NamedSharding(mesh, PartitionSpec(*(AXES[c] or None for c in cut)))


def _timed(t: pz.Transfer, x: jax.Array, repeats: int) -> dict[str, Any]:
    """Both ways in turns: the caller's time while x is being computed, and the time until a finished x has arrived."""
    assert t.destination is not None

    def put(a: jax.Array) -> jax.Array:
        return jax.device_put(a, t.destination)

    ways: dict[str, Callable[[jax.Array], jax.Array]] = {"run": t.run, "put": put}
    rounds = max(1, round(2e9 / t.move.size_bytes))  # some hundred milliseconds
    soon = jax.jit(lambda a: a + 1, out_shardings=t.source)
    slow = jax.jit(
        lambda a: jax.lax.fori_loop(0, rounds, lambda _, b: (b * 3 + 1) ^ (b >> 3), a), out_shardings=t.source
    )  # fmt: skip
    expected = np.asarray(soon(x))
    times: dict[str, list[float]] = {f"{what}_{name}_s": [] for what in ("blocked", "ready") for name in ways}
    equal, alias = True, False
    for turn in range(repeats + 1):
        for name in ways if turn % 2 else list(ways)[::-1]:
            a = slow(x)
            start = time.perf_counter()
            y = ways[name](a)
            blocked = time.perf_counter() - start
            jax.block_until_ready(y)
            a = jax.block_until_ready(soon(x))
            start = time.perf_counter()
            y = jax.block_until_ready(ways[name](a))
            ready = time.perf_counter() - start
            alias |= name == "put" and _shares_memory(a, y)
            if turn == 0:  # compiles, warms up, and is looked at
                equal &= bool((np.asarray(y) == expected).all()) and y.sharding == t.destination
                continue
            times[f"blocked_{name}_s"].append(blocked)
            times[f"ready_{name}_s"].append(ready)
    out: dict[str, Any] = {k: statistics.median(v) for k, v in times.items()}
    out["blocked_ratio"] = out["blocked_run_s"] / out["blocked_put_s"]
    out["ready_ratio"] = out["ready_run_s"] / out["ready_put_s"]
    held = set(boxes(t.move.source, t.shape))
    return {
        **out, "equal": equal, "put_shares_memory": alias, "tasks": len(t.tasks), "size_bytes": t.move.size_bytes,
        "same_tiles": set(boxes(t.move.destination, t.shape)) <= held,
    }  # fmt: skip


def _shares_memory(a: jax.Array, b: jax.Array) -> bool:
    """Whether some block of b is part of a's memory, or is the memory of another block of b."""
    spans = [(s.data.unsafe_buffer_pointer(), s.data.nbytes) for s in a.addressable_shards]
    there = [s.data.unsafe_buffer_pointer() for s in b.addressable_shards]
    return len(set(there)) < len(there) or any(p <= q < p + n for q in there for p, n in spans)


def show(result: dict[str, Any]) -> None:
    print("1. Simulated, in units of 1 GiB through one host's card")
    print(f"{'case':<22}{'naive':>9}{'balanced':>10}{'planned':>10}{'bound':>10}{'ratio':>8}")
    for r in result["reference"]:
        print(
            f"{r['case']:<22}{r['naive']:>9.4f}{r['balanced']:>10.4f}{r['planned']:>10.4f}{r['bound']:>10.4f}"
            f"{r['ratio']:>8.3f}"
        )
    f = result["family"]
    print(
        f"{f['cases']} more pairs of shardings on unequal meshes: {f['at_the_bound']} at the bound, worst "
        f"{f['worst_ratio']:.3f} ({f['worst_case']}); {f['faster_than_naive']:.2f} x faster than naive, "
        f"{f['faster_than_balanced']:.2f} x than balanced (geometric means)"
    )
    print("\n2. Simulated on machines with latencies")
    for r in result["machines"]:
        print(
            f"{r['machine']:<16} {r['size_bytes'] / 1e6:>7.1f} MB  {r['from']} -> {r['to']}: "
            f"{r['planned_s'] * 1e6:.0f} us, bound {r['bound_s'] * 1e6:.0f} us, ratio {r['ratio']:.2f}, "
            f"planned in {r['plan_s']:.2f} s"
        )
    print("\n3. Real, 8 virtual CPU devices (ms; ratios run / device_put; = same tiles, * device_put shares memory)")
    print(f"{'case':<46}{'MB':>5}{'blocked run':>13}{'put':>8}{'ratio':>8}{'ready run':>12}{'put':>8}{'ratio':>8}")
    for r in result["real"]:
        mark = " =" if r["same_tiles"] else " *" if r["put_shares_memory"] else ""
        print(
            f"{r['case'].replace(chr(39), ''):<46}{r['size_bytes'] / 1e6:>5.0f}{r['blocked_run_s'] * 1e3:>13.2f}"
            f"{r['blocked_put_s'] * 1e3:>8.2f}{r['blocked_ratio']:>8.2f}{r['ready_run_s'] * 1e3:>12.2f}"
            f"{r['ready_put_s'] * 1e3:>8.2f}{r['ready_ratio']:>8.2f}{mark}"
        )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--megabytes", type=float, default=8.0, help="size of the arrays that are really moved")
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args(args)
    result: dict[str, Any] = {
        "reference": reference(), "family": family(), "machines": machines(),
        "real": real(asked.megabytes, asked.repeats),
    }  # fmt: skip
    known = all(
        abs(r["naive"] - r["published"][0]) < 1e-3
        and abs(r["balanced"] - r["published"][1]) < 1e-3
        and abs(r["bound"] - r["published"][2]) < 1e-3
        for r in result["reference"]
    )
    result["model_agrees_with_published"] = known
    result["ok"] = (
        known
        and all(r["ratio"] <= NEAR for r in result["reference"])
        and result["family"]["worst_ratio"] <= NEAR
        and all(r["equal"] and (r["same_tiles"] or r["blocked_ratio"] < 1) for r in result["real"])
    )
    show(result)
    print("\nall at the bound, equal, and sooner back than device_put:", result["ok"])
    if asked.json:
        print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
