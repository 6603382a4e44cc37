"""What the compiler made of a plan: its collectives and its memory beside the predicted ones.

Every planned collective has the number of its operation, and lowering writes that number into the compiled program
(`pzN`), so that each byte that differs is named with the user's line.
"""

from __future__ import annotations

import html
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from cost_model.scatters import scatters_by_reducing
from cost_model.topology import Topology, parse_topology
from parallelizer.compiled import CompiledCollective, CompiledMemory, read_collectives, read_memory
from parallelizer.matching import Key, Matching, Part, agree, match, total, unpacked
from parallelizer.plans import Plan
from parallelizer.wording import bytes_text
from passes.ir import Graph, Op, walk

MEMORY_WITHIN = 0.15
TINY_BYTES = 64
"""A collective of at most this many bytes (a loss, a norm, a flag) is latency alone and left out of the comparison."""
FLOOR_BYTES = 4096
"""Differences of a row up to this many bytes per step are latency too, and do not make an audit fail."""

_TAG = re.compile(r"\bpz(\d+)\b")
_PACK_TAG = re.compile(r"\bpzpack(\d+)\b")
_OUTPUT_TAG = re.compile(r"\bpzout\d+\b")
_UNTAGGED = -2  # planned collectives of leaving values have operation -1
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One kind of collective over one set of axes. Bytes of one device and step (larger of operand and result).

    Counts are runs per step: planned ones one per array, `compiled_count` as the compiler combined them and
    `compiled_arrays` the arrays in them. `respelled_bytes` of the compiled ones are small arrays that
    the compiler moves by an all-reduce instead. `ratio` is compiled / predicted bytes, infinite where nothing was
    planned.
    """

    kind: str
    axes: tuple[str, ...]
    predicted_bytes: int
    compiled_bytes: int
    predicted_count: int
    compiled_count: int
    compiled_arrays: int
    respelled_bytes: int
    ratio: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference of more than 2 % at one operation. `what`: "missing" (planned, not compiled), "unplanned"
    (compiled, not planned) or "differs". `op` is the operation's number in the graph, -1 where the program is left, -2
    where the compiled program does not say. `source` is the user's line, `array` what was to move, `detail` what
    is known of the compiled side."""

    what: str
    kind: str
    axes: tuple[str, ...]
    predicted_bytes: int
    compiled_bytes: int
    op: int
    primitive: str
    source: str
    array: str
    detail: str

    def __str__(self) -> str:
        at = f" at {self.source}" if self.source else ""
        what = f" of {self.array}" if self.array else ""
        by = f" ({self.primitive}, op {self.op})" if self.primitive else ""
        return (
            f"{self.what}: {self.kind} over {'*'.join(self.axes)}{what}{at}{by}: planned "
            f"{bytes_text(self.predicted_bytes)}, compiled {bytes_text(self.compiled_bytes)}"
            + (f"; {self.detail}" if self.detail else "")
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """A plan beside its compiled program. `str()` is a table.

    `ok`: every row's bytes agree within 2 %, and the peak within 15 % where the compiler's figure means something
    (`memory_judged`; CPU's does not). `memory_ratio` is compiled / predicted.
    """

    ok: bool
    topology: str
    rows: tuple[AuditRow, ...]
    predicted_bytes: int
    compiled_bytes: int
    predicted_peak_bytes: int
    compiled_peak_bytes: int | None
    memory_ratio: float | None
    memory_judged: bool
    mismatches: tuple[Mismatch, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return _text(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; an infinite ratio is None."""
        data = asdict(self)
        for row in data["rows"]:
            row["ratio"] = None if row["ratio"] == float("inf") else row["ratio"]
        return data

    def _repr_html_(self) -> str:
        return _html(self)


def audit(plan: Plan, topology: str | Topology | None = None) -> Audit:
    """Compile the plan's program and compare. `topology` compiles it for another one with as many devices.

    Raises what compiling raises: CompilationError, AheadOfTimeError where no compiler for the topology is installed,
    ParallelizerError for a plan read from a file that has not met its function.
    """
    from parallelizer.api import compiled

    machine = parse_topology(topology) if isinstance(topology, str) else topology
    program = compiled(plan, None, (), {}, topology=machine)
    where = machine or plan.mesh.topology
    return compare(plan, read_collectives(program.as_text()), read_memory(program), where)


def compare(
    plan: Plan, found: Sequence[CompiledCollective], memory: CompiledMemory | None, topology: Topology
) -> Audit:
    """The audit of a program that has been compiled for `topology` already."""
    notes: list[str] = []
    predicted = list(_planned(plan, topology, notes))
    real = list(_compiled(plan, found, notes))
    large, small = _split(predicted), _split(real)
    if small[1] or large[1]:
        notes.append(
            f"{sum(p.count for p in large[1])} planned and {sum(p.count for p in small[1])} compiled collectives of at "
            f"most {TINY_BYTES} bytes are not compared"
        )
    matching = match(large[0], small[0])
    notes += _matching_notes(matching)
    rows = _rows(large[0], small[0], matching, _runs(found, plan))
    judged = memory is not None and topology.platform != "cpu"
    peak = memory.peak_bytes if memory is not None else None
    ratio = peak / plan.cost.peak_bytes if peak is not None and plan.cost.peak_bytes else None
    if not judged:
        notes.append(f"peak memory is not judged: the {topology.platform} compiler does not schedule for memory")
    fits = not judged or ratio is None or abs(ratio - 1) <= MEMORY_WITHIN
    return Audit(
        ok=fits and all(r.ok for r in rows),
        topology=topology.name,
        rows=rows,
        predicted_bytes=sum(r.predicted_bytes for r in rows),
        compiled_bytes=sum(r.compiled_bytes for r in rows),
        predicted_peak_bytes=plan.cost.peak_bytes,
        compiled_peak_bytes=peak,
        memory_ratio=ratio,
        memory_judged=judged,
        mismatches=tuple(_mismatches(matching.left, plan)),
        notes=tuple(notes),
    )


# ---- both sides in one form ----
def _planned(plan: Plan, topology: Topology, notes: list[str]) -> Iterator[Part]:
    """The plan's collectives, with the element sizes that the compiler will use."""
    order = plan.mesh.axis_names
    ops = _ops(plan.graph)
    widened = 0
    for c in plan.collectives:
        half = c.op in ops and _is_half(ops[c.op], plan.graph)
        factor = 1
        if topology.platform == "cpu" and half:
            factor, half, widened = 2, False, widened + c.total_bytes
        axes = tuple(a for a in order if a in c.axes and plan.mesh.sizes[a] > 1)
        yield Part(c.kind, axes, c.op, factor * c.total_bytes, factor * c.size_bytes, c.count, narrow=half, planned=c)
    if widened:
        notes.append(
            f"the CPU compiler communicates 16-bit numbers as float32: {bytes_text(widened)} of the plan count twice"
        )


def _compiled(plan: Plan, found: Iterable[CompiledCollective], notes: list[str]) -> Iterator[Part]:
    partly = unknown = repairs = reduced = 0
    lengths = _lengths(plan.graph)
    for c in found:
        if c.part_of == "reduce_scatter":
            repairs += c.size_bytes * c.count
            continue
        unknown += not c.count_known
        partly += c.axes(plan.mesh.axis_names, plan.mesh.axis_sizes) is None
        axes = _axes(c, plan)
        for i, size in enumerate(c.member_bytes):
            name = c.member_op_names[i] or c.op_name if c.members > 1 else c.op_name or c.member_op_names[i]
            detail = c.dtype
            sliced = i < len(c.member_sliced) and c.member_sliced[i]
            if sliced:
                detail += ", of which each device keeps a slice"
            if c.part_of:
                detail += f", part of {c.part_of.lower()}"
            if name:
                detail += f", {_short(name)}"
            narrow = c.dtypes in (("bf16",), ("f16",))
            count = c.count * (1 if c.count_known else lengths.get(_op_of(name), 1))
            kind = c.kind
            if sliced and scatters_by_reducing(plan.mesh, axes):
                kind, reduced = "reduce_scatter", reduced + size * count
            part = Part(kind, axes, _op_of(name), size * count, size, count, detail, sliced, narrow)
            pack = _PACK_TAG.findall(name)
            yield from unpacked(part, plan.layout.packs[int(pack[-1])]) if pack else (part,)
    if partly:
        notes.append(f"{partly} compiled collectives join only a part of the axes that they are listed under")
    if unknown:
        notes.append(f"{unknown} compiled collectives run in loops of unknown length, counted as the plan counts them")
    if reduced:
        notes.append(f"{bytes_text(reduced)} of reduce-scatters are compiled as all-reduce and slice, as priced")
    if repairs:
        notes.append(f"{bytes_text(repairs)} of permutes repair padded reduce-scatters and are not compared")


def _lengths(graph: Graph | None) -> Mapping[int, int]:
    """How often operations run within the `while` loops around them, as the plan counts these loops.

    Compilers count loops that JAX made of a known length, so where one is not counted it is one of these.
    """
    out: dict[int, int] = {}
    for visit in walk(graph) if graph is not None else ():
        loops = [*visit.inside, visit.op] if visit.op.regions else visit.inside
        out[visit.op.id] = prod(op.regions[-1].trip_count for op in loops if op.primitive == "while")
    return out


def _op_of(name: str) -> int:
    tags = _TAG.findall(name)
    if tags:
        return int(tags[-1])
    return -1 if _OUTPUT_TAG.search(name) else _UNTAGGED


def _short(name: str) -> str:
    return "/".join(name.split("/")[-3:])


def _ops(graph: Graph | None) -> Mapping[int, Op]:
    return {v.op.id: v.op for v in walk(graph)} if graph is not None else {}


def _is_half(op: Op, graph: Graph | None) -> bool:
    """Whether the operation works on 16-bit numbers: what it moves is taken to be of the type of its result."""
    assert graph is not None
    values = [graph.values[r] for r in op.outputs]
    return any(v.dtype in _HALF for v in values)


def _split(parts: Iterable[Part]) -> tuple[list[Part], list[Part]]:
    large: list[Part] = []
    tiny: list[Part] = []
    for p in parts:
        (tiny if p.each_bytes <= TINY_BYTES or not p.axes else large).append(p)
    return large, tiny


# ---- comparison ----
def _rows(
    predicted: Sequence[Part], real: Sequence[Part], matching: Matching, runs: Mapping[Key, int]
) -> tuple[AuditRow, ...]:
    planned: dict[Key, list[Part]] = defaultdict(list)
    compiled: dict[Key, list[Part]] = defaultdict(list)
    respelled: dict[Key, int] = defaultdict(int)
    half = {id(part): twin for part, twin in matching.narrowed}
    for p in predicted:
        planned[p.kind, p.axes].append(half.get(id(p), p))
    others = {id(twin) for _, twin in matching.respelled}
    for p in real:
        if id(p) not in others:
            compiled[p.kind, p.axes].append(p)
    for part, twin in matching.respelled:
        compiled[part.kind, part.axes].append(twin)
        respelled[part.kind, part.axes] += twin.total_bytes
    rows = []
    for key in sorted({*planned, *compiled}):
        want, have = total(planned[key]), total(compiled[key])
        if not want and not have:
            continue
        ok = agree(want, have) or abs(want - have) <= FLOOR_BYTES
        rows.append(
            AuditRow(
                key[0], key[1], want, have, sum(p.count for p in planned[key]), runs.get(key, 0),
                sum(p.count for p in compiled[key]), respelled[key], have / want if want else float("inf"), ok,
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda r: -max(r.predicted_bytes, r.compiled_bytes)))


def _runs(found: Sequence[CompiledCollective], plan: Plan) -> dict[Key, int]:
    """How often the compiled program communicates, by kind and axes, arrays combined."""
    runs: dict[Key, int] = defaultdict(int)
    for c in found:
        if max(c.member_bytes, default=0) > TINY_BYTES and c.part_of != "reduce_scatter":
            runs[c.kind, _axes(c, plan)] += c.count
    return runs


def _axes(c: CompiledCollective, plan: Plan) -> tuple[str, ...]:
    names, sizes = plan.mesh.axis_names, plan.mesh.axis_sizes
    axes = c.axes(names, sizes)
    return c.spanned_axes(names, sizes) if axes is None else axes


def _mismatches(left: Sequence[tuple[Key, int, list[Part], list[Part]]], plan: Plan) -> Iterator[Mismatch]:
    ops = _ops(plan.graph)
    for (kind, axes), op, wanted, had in sorted(left, key=lambda r: -max(total(r[2]), total(r[3]))):
        node = ops.get(op)
        mine = [p.planned for p in wanted if p.planned is not None]
        source = mine[0].source if mine else str(node.source) if node is not None and node.source is not None else ""
        what = "differs" if wanted and had else "missing" if wanted else "unplanned"
        yield Mismatch(
            what, kind, axes, total(wanted), total(had), op, node.primitive if node is not None else "", source,
            ", ".join(dict.fromkeys(c.array for c in mine if c.array)),
            "; ".join(dict.fromkeys([*(c.why for c in mine), *(p.detail for p in had)][:4])),
        )  # fmt: skip


def _matching_notes(matching: Matching) -> Iterator[str]:
    by: dict[str, int] = defaultdict(int)
    for part, twin in matching.respelled:
        by[part.kind] += twin.total_bytes
    if matching.narrowed:
        size = sum(part.total_bytes for part, _ in matching.narrowed)
        yield f"{bytes_text(size)} of the plan are moved as 16-bit numbers by this compiler, and are counted so"
    for kind, size in by.items():
        yield (
            f"{bytes_text(size)} of {kind} are compiled as all_reduce (what compilers do with small arrays); they are "
            f"counted as {kind}"
        )


# ---- showing ----
_HEADERS = ("collective", "axes", "planned", "compiled", "ratio", "planned runs", "compiled runs", "")


def _cells(row: AuditRow) -> tuple[str, ...]:
    ratio = "-" if row.ratio == float("inf") else f"{row.ratio:.3f}"
    return (
        row.kind, "*".join(row.axes), bytes_text(row.predicted_bytes), bytes_text(row.compiled_bytes), ratio,
        str(row.predicted_count), f"{row.compiled_count} ({row.compiled_arrays} arrays)", "ok" if row.ok else "DIFFERS",
    )  # fmt: skip


def _memory(found: Audit) -> str:
    real = "not reported" if found.compiled_peak_bytes is None else bytes_text(found.compiled_peak_bytes)
    ratio = f", ratio {found.memory_ratio:.3f}" if found.memory_ratio is not None else ""
    judged = "" if found.memory_judged else " (not judged)"
    return (
        f"peak memory of one device: planned {bytes_text(found.predicted_peak_bytes)}, compiled {real}{ratio}{judged}"
    )


def _text(found: Audit) -> str:
    from rich.console import Console
    from rich.table import Table

    verdict = "as planned" if found.ok else "differs from the plan"
    table = Table(title=f"compiled for {found.topology}: {verdict}", title_justify="left")
    for i, header in enumerate(_HEADERS):
        table.add_column(header, justify="right" if 2 <= i <= 6 else "left")
    for row in found.rows:
        table.add_row(*_cells(row))
    out = io.StringIO()
    # Without force_jupyter=False, rich shows its text in a notebook by itself and writes nothing into the file.
    console = Console(file=out, width=110, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(table)
    shown = out.getvalue().rstrip() if found.rows else f"compiled for {found.topology}: {verdict}; no collectives"
    lines = [shown, _memory(found), *map(str, found.mismatches)]
    return "\n".join([*lines, *(f"note: {n}" for n in found.notes)])


def _html(found: Audit) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    verdict = "as planned" if found.ok else "differs from the plan"
    rows = "".join(row(_cells(r), "td") for r in found.rows)
    items = [*map(str, found.mismatches), *(f"note: {n}" for n in found.notes)]
    listed = "".join(f"<li>{html.escape(i)}</li>" for i in items)
    return (
        f"<div><p><b>Compiled for {html.escape(found.topology)}: {verdict}</b></p>"
        f"<table>{row(_HEADERS, 'th')}{rows}</table><p>{html.escape(_memory(found))}</p><ul>{listed}</ul></div>"
    )
