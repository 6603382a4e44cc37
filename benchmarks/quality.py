"""Our plans against the best of a sweep of hand-written layouts, by two judges.

    python benchmarks/quality.py [--cases TEXT,...] [--judge simulated|compiled|both] [--top N] [--sweep] [--json]

Models of the zoo at published sizes, on topologies without their hardware. The layouts of the sweep are in
`quality_cases.py`; what a layout leaves open is completed by our own search, with its inputs fixed, and of all that fit
the memory the fastest counts. Judge "simulated" is our timeline of the step with overlap. Judge "compiled" (TPU) is
the program that XLA makes: the compiler's own cycles, plus the time that its collectives' bytes take on the links,
and whether it fits; the hand-written layout is compiled as its user would, by `jax.jit` with in and out shardings, and
through our lowering as well: the better of both counts. Ratios are hand / ours, above 1 where ours is faster.
`--sweep` prints every layout, `--top` says how many of the fastest hand-written ones are compiled. A case takes one to
ten minutes of a quiet core. With `--json` the last line is one JSON object; "ok" where no ratio is below 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from quality_cases import CASES, Case, Hand, sweep
from quality_compiled import Compiled, by_hand, plan_of, planned

from cost_model.topology import Topology, parse_topology
from parallelizer import zoo
from parallelizer.api import traced_call
from parallelizer.errors import ParallelizerError
from parallelizer.layouts import hand_layout
from parallelizer.planning import meshes_for
from parallelizer.plans import Plan
from passes.dim_names import Dims, named_dims
from passes.ir import Graph, Sharding
from passes.layout import search_layout
from passes.meshes import candidate_meshes
from passes.normalize import drop_dead

OURS_TIME_S, HAND_TIME_S = 120.0, 30.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One layout: its mesh, seconds of the step by the judge, bytes of one device, whether they fit, and why it has no
    time where it has none."""

    label: str
    mesh: dict[str, int]
    step_s: float
    peak_bytes: int
    fits: bool
    note: str = ""
    parts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One case by one judge. `hands` are all layouts of the sweep, the fastest that fits first."""

    case: str
    topology: str
    judge: str
    ours: Judged
    hands: tuple[Judged, ...]
    took_s: float

    @property
    def best(self) -> Judged | None:
        return next((h for h in self.hands if h.fits), None)

    @property
    def ratio(self) -> float | None:
        """Hand / ours; None where no hand-written layout fits, 0 where ours does not."""
        if not self.ours.fits:
            return 0.0
        return None if self.best is None else self.best.step_s / self.ours.step_s


def traced(case: Case) -> Graph:
    """The graph of a case's training step."""
    model = zoo.model(case.model, **case.options)
    args = (model.state_shapes(), model.batch_shapes(batch=case.batch))
    return drop_dead(traced_call(model.step, args, {}, (), (), 0).graph)


def simulated(case: Case) -> Row:
    """Judge 1: our search and the sweep, by our simulation."""
    start = time.monotonic()
    machine, graph = parse_topology(case.topology), traced(case)
    dims = named_dims(graph)
    hands = [judge_hand(graph, dims, machine, hand) for hand in sweep(machine, dims)]
    ours = judge_ours(graph, machine)
    order = sorted(hands, key=lambda h: (not h.fits, h.step_s))
    return Row(case.name, case.topology, "simulated", ours, tuple(order), time.monotonic() - start)


def judge_ours(graph: Graph, machine: Topology) -> Judged:
    """What our search finds over all candidate meshes."""
    limit = int(machine.chip.memory_bytes)
    try:
        best, _ = search_layout(graph, candidate_meshes(machine), limit, {}, OURS_TIME_S)
    except ValueError as error:
        return Judged("ours", {}, math.inf, 0, False, f"{type(error).__name__}: {error}")
    return _judged("ours", best)


def judge_hand(graph: Graph, dims: Dims, machine: Topology, hand: Hand) -> Judged:
    """A hand-written layout completed by our search."""
    limit = int(machine.chip.memory_bytes)
    try:
        placed = hand_layout(hand.layout, graph, machine, hand.mesh, dims)
        fixed = {v: s for v, (_, s) in placed.pins.items()}
        least = sum(_block_bytes(graph, v, fixed[v], placed.mesh) for v in graph.inputs if v in fixed)
        if least > limit:
            return Judged(hand.label, dict(hand.mesh), math.inf, least, False, f"arguments alone: {least / 1e9:.1f} GB")
        best, _ = search_layout(graph, meshes_for(machine, placed.mesh, ()), limit, fixed, HAND_TIME_S)
    except (ParallelizerError, ValueError) as error:
        text = str(error).splitlines()[0]
        return Judged(hand.label, dict(hand.mesh), math.inf, getattr(error, "needed_bytes", 0), False, text)
    return _judged(hand.label, best)


def _block_bytes(graph: Graph, value: int, sharding: Sharding, sizes: Mapping[str, int]) -> int:
    found = graph.values[value]
    return math.prod(sharding.local_shape(found.shape, sizes)) * found.itemsize


def _judged(label: str, found: Any) -> Judged:
    line = found.timeline
    parts = (
        ("compute_s", line.compute_s),
        ("exposed_s", line.exposed_communication_s),
        ("hidden_s", line.hidden_communication_s),
        ("price_s", found.cost_s),
        ("search_s", found.search_s),
    )
    note = "" if found.status == "optimal" else found.status
    return Judged(label, found.mesh.sizes, line.step_s, found.footprint.peak_bytes, True, note, parts)


def compiled(case: Case, row: Row, most: int) -> Row:
    """Judge 2: the programs of our plan and of the `most` fastest hand-written layouts that judge 1 found to fit."""
    start = time.monotonic()
    model = zoo.model(case.model, **case.options)
    args = (model.state_shapes(), model.batch_shapes(batch=case.batch))
    sought = {h.label: h for h in sweep(parse_topology(case.topology), named_dims(traced(case)))}
    mine = plan_of(model, args, case.topology)
    ours = _as_judged("ours", {}, mine) if isinstance(mine, str) else _of_compiled("ours", mine, planned(mine))
    hands = []
    for judged in [h for h in row.hands if h.fits][:most]:
        hand = sought[judged.label]
        plan = plan_of(model, args, case.topology, hand.layout, hand.mesh)
        if isinstance(plan, str):
            hands.append(_as_judged(hand.label, hand.mesh, plan))
            continue
        hands.append(_of_compiled(f"{hand.label} by jit", plan, by_hand(plan, model, args)))
        hands.append(_of_compiled(f"{hand.label} by our lowering", plan, planned(plan)))
    order = sorted(hands, key=lambda h: (not h.fits, h.step_s))
    return Row(case.name, case.topology, "compiled", ours, tuple(order), time.monotonic() - start)


def _as_judged(label: str, mesh: Mapping[str, int], why: str) -> Judged:
    return Judged(label, dict(mesh), math.inf, 0, False, why)


def _of_compiled(label: str, plan: Plan, found: Compiled) -> Judged:
    parts = (
        ("compute_s", found.compute_s),
        ("links_s", found.links_s),
        ("predicted_s", plan.cost.step_s),
        ("compile_s", found.compile_s),
    )
    return Judged(label, plan.mesh.sizes, found.step_s, found.peak_bytes, found.fits, found.why, parts)


# ---- the table ----
HEAD = (
    f"{'case':20} {'topology':10} {'judge':9} {'ours':>10} {'GB':>6} {'best hand':>10} {'GB':>6} {'ratio':>6}  layouts"
)


def text_of(row: Row) -> str:
    """One line of the table."""
    ours, best = row.ours, row.best

    def mesh(j: Judged) -> str:
        return ",".join(f"{a}={n}" for a, n in j.mesh.items())

    ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
    hand = ("-", "-") if best is None else (f"{best.step_s * 1e3:.1f} ms", f"{best.peak_bytes / 1e9:.1f}")
    said = f"{mesh(ours)} | " + ("no hand-written layout fits" if best is None else f"{best.label}")
    said += f" [{ours.note}]" if ours.note else ""
    return (
        f"{row.case:20} {row.topology:10} {row.judge:9} {ours.step_s * 1e3:7.1f} ms {ours.peak_bytes / 1e9:6.1f} "
        f"{hand[0]:>10} {hand[1]:>6} {ratio:>6}  {said} ({row.took_s:.0f} s)"
    )


def why_lost(row: Row) -> str:
    """Where the seconds lie that a hand-written layout has less of; empty where it has not."""
    if row.ratio is None or row.ratio >= 1 - 1e-6 or row.best is None:
        return ""
    if not row.ours.fits:
        return f"    ours: {row.ours.note}"
    mine, hand = dict(row.ours.parts), dict(row.best.parts)
    counted = ("compute_s", "exposed_s", "hidden_s", "links_s")
    parts = [f"{k[:-2]} {mine[k] * 1e3:.1f} against {hand[k] * 1e3:.1f} ms" for k in counted if k in mine]
    return f"    lost to {row.best.label}: {', '.join(parts)}"


def sweep_text(row: Row) -> str:
    """Every layout of a case, the fastest first."""
    lines = []
    for j in (row.ours, *row.hands):
        parts = ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in j.parts if k != "search_s")
        said = parts if j.fits else f"no: {j.note}"
        lines.append(f"    {j.label:22} {j.step_s * 1e3:9.1f} ms {j.peak_bytes / 1e9:7.2f} GB  {said}")
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """Geometric means by judge, and the cases in which a hand-written layout wins."""
    out: dict[str, Any] = {"rows": len(rows)}
    for judge in dict.fromkeys(r.judge for r in rows):
        ratios = [r.ratio for r in rows if r.judge == judge and r.ratio]
        out[f"{judge}_mean"] = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
        out[f"{judge}_lost"] = [r.case for r in rows if r.judge == judge and r.ratio is not None and r.ratio < 1 - 1e-6]
    out["ok"] = bool(rows) and not any(v for k, v in out.items() if k.endswith("_lost"))
    return out


def chosen(text: str) -> list[Case]:
    """The cases named, exactly or by a part of their names; all of them for an empty text."""
    names = {c.name for c in CASES}
    return [c for c in CASES if any(w == c.name or (w not in names and w in c.name) for w in text.split(","))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 where nothing hand-written is faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="names of cases or parts of them, joined by commas")
    parser.add_argument("--judge", choices=("simulated", "compiled", "both"), default="simulated")
    parser.add_argument("--sweep", action="store_true", help="print every layout")
    parser.add_argument("--top", type=int, default=3, help="how many hand-written layouts are compiled per case")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    print(HEAD)
    for case in chosen(options.cases):
        row = simulated(case)
        found_rows = [row] if options.judge != "compiled" else []
        if options.judge != "simulated" and parse_topology(case.topology).platform == "tpu":
            found_rows.append(compiled(case, row, options.top))
        for row in found_rows:
            print("\n".join(filter(None, (text_of(row), why_lost(row)))), flush=True)
            if options.sweep:
                print(sweep_text(row), flush=True)
        rows += found_rows
    found = verdict(rows)
    print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
    if options.json:
        print(json.dumps({**found, "table": [{**asdict(r), "ratio": r.ratio} for r in rows]}))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
