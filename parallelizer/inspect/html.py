"""A plan as HTML: one self-contained page, or a fragment for notebooks. No scripts, nothing fetched, text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from parallelizer.dims import KINDS, DimCut
from parallelizer.inspect.facts import ArgumentRow, Traffic, argument_rows, roles, traffic
from parallelizer.inspect.pictures import colour, picture
from parallelizer.inspect.report import RULES, TRIPS, noticed, reason_of, shown_arguments, shown_dims, why
from parallelizer.inspect.words import (
    change_text,
    kind_text,
    mesh_text,
    percent,
    short_source,
    time_text,
)
from parallelizer.plans import Array, Plan
from parallelizer.wording import bytes_text
from passes.ir import Sharding

_COLLECTIVES = 12
_FREE = "var(--pz-soft)"


def page(plan: Plan) -> str:
    """The plan as a page that reads offline, light or dark as the reader's system is."""
    title = escape(f"{plan.function} on {plan.topology}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>:root{{color-scheme:light dark}}"
        "body{margin:28px auto;padding:0 24px;max-width:1180px;background:Canvas;color:CanvasText}</style></head>\n"
        f"<body>\n{fragment(plan)}\n</body></html>\n"
    )


def fragment(plan: Plan) -> str:
    """The plan for the output of a notebook's cell: it takes the colours of where it stands."""
    style = files("parallelizer.inspect").joinpath("plan.css").read_text(encoding="utf-8")
    parts = [_head(plan), _time(plan), _memory(plan), _mesh(plan), _communication(plan), _arrays(plan)]
    parts += [_dimensions(plan), _tried(plan), _unknown(plan), _foot(plan)]
    body = "\n".join(p for p in parts if p)
    return f'<div class="pz-plan"><style>{style}</style>\n{body}\n</div>'


def _head(plan: Plan) -> str:
    total = sum(c.total_bytes for c in plan.collectives)
    limit = plan.memory.limit_bytes
    chip, devices = plan.mesh.topology.chip.name, plan.mesh.num_devices
    bound = "proven best on this mesh" if plan.gap == 0 else f"lower bound {time_text(plan.bound)}"
    tiles = (
        (time_text(plan.cost.step_s), f"per step, {percent(plan.cost.compute_s, plan.cost.step_s)} computing"),
        (bytes_text(plan.cost.peak_bytes), f"per device of {bytes_text(limit)}"),
        (bytes_text(total), "moved per device and step"),
        (f"gap {percent(plan.gap, 1)}", bound),
    )
    shown = "".join(f'<div class="pz-tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    where = (
        f"{plan.topology} ({devices:,} x {chip}), mesh {mesh_text(plan.mesh.sizes)}; all times and bytes are predicted"
    )
    return (
        f"<h2><code>{escape(plan.function)}</code></h2>"
        f'<p class="pz-muted">{escape(where)}</p><div class="pz-tiles">{shown}</div>'
    )


def _bar(parts: Iterable[tuple[str, float, str]], whole: float) -> str:
    """A stacked bar of (name, size, colour); the rest of the whole stays empty."""
    pieces = "".join(
        f'<i style="width:{100 * size / whole:.2f}%;background:{ink}" title="{escape(name)}"></i>'
        for name, size, ink in parts
        if size > 0 and whole > 0
    )
    return f'<div class="pz-bar">{pieces}</div>'


def _legend(parts: Iterable[tuple[str, str, str]]) -> str:
    """(name, size in words, colour)."""
    return (
        '<div class="pz-legend">'
        + "".join(
            f'<span><i style="background:{ink}"></i>{escape(name)} <b>{escape(size)}</b></span>'
            for name, size, ink in parts
        )
        + "</div>"
    )


def _time(plan: Plan) -> str:
    cost = plan.cost
    compute, exposed, hidden = "var(--pz-0)", "var(--pz-1)", "var(--pz-3)"
    devices = _bar(
        (("computing", cost.compute_s, compute), ("waiting", cost.exposed_communication_s, exposed)), cost.step_s
    )
    empty = max(0.0, cost.compute_s - cost.hidden_communication_s)
    links = _bar(
        (
            ("hidden communication", cost.hidden_communication_s, hidden),
            ("no communication", empty, "transparent"),
            ("communication that computing waits for", cost.exposed_communication_s, exposed),
        ),
        max(cost.step_s, cost.hidden_communication_s + cost.exposed_communication_s),
    )
    legend = _legend(
        (
            ("computing", _share(cost.compute_s, cost.step_s), compute),
            ("waiting for communication", _share(cost.exposed_communication_s, cost.step_s), exposed),
            ("communication hidden behind computing", time_text(cost.hidden_communication_s), hidden),
        )
    )
    return (
        f"<h3>One step <small>{escape(time_text(cost.step_s))}</small></h3>"
        f'<div class="pz-bars"><span>devices</span>{devices}<span>links</span>{links}</div>{legend}'
    )


def _share(part_s: float, step_s: float) -> str:
    return f"{time_text(part_s)} ({percent(part_s, step_s)})"


def _memory(plan: Plan) -> str:
    limit, peak = plan.memory.limit_bytes, plan.cost.peak_bytes
    parts: list[tuple[str, int]] = []
    for kind, size in plan.memory.by_kind:
        split = shown_arguments(plan) if kind == "arguments" else []
        inside = [(name, part) for name, part in split if part * 50 >= size]
        rest = size - sum(part for _, part in inside)
        parts += [*inside, *([("other arguments", rest)] if inside and rest else [])] if inside else [(kind, size)]
    inks = [f"var(--pz-{min(i, 5)})" for i in range(len(parts))]
    listed = [(name, size, ink) for (name, size), ink in zip(parts, inks, strict=True)]
    legend = _legend(
        [*((name, bytes_text(size), ink) for name, size, ink in listed), ("free", bytes_text(limit - peak), _FREE)]
    )
    title = f"{bytes_text(peak)} of {bytes_text(limit)}, {percent(peak, limit)}"
    return f"<h3>Memory of one device at the peak <small>{escape(title)}</small></h3>{_bar(listed, limit)}{legend}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """`rows` are HTML cells; a row of one cell is a section's heading; columns in `numbers` stand right."""
    kind = ["pz-number" if c in numbers else "" for c in columns]
    head = "".join(f'<th class="{k}">{escape(c)}</th>' for c, k in zip(columns, kind, strict=True))
    body = []
    for row in rows:
        if len(row) == 1:
            body.append(f'<tr><td class="pz-section" colspan="{len(columns)}">{row[0]}</td></tr>')
        else:
            cells = "".join(f'<td class="{k}">{cell}</td>' for cell, k in zip(row, kind, strict=True))
            body.append(f"<tr>{cells}</tr>")
    return (
        '<div class="pz-scroll"><table class="pz-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _axes(axes: Sequence[str], sizes: Mapping[str, int]) -> str:
    """Axis names in their colours, major to minor."""
    return "&middot;".join(f'<span class="pz-axis" style="color:{colour(a, sizes)}">{escape(a)}</span>' for a in axes)


def _path(text: str) -> str:
    """A path that may break after its slashes and commas."""
    return f"<code>{escape(text).replace('/', '/<wbr>').replace(',', ',<wbr>')}</code>"


def _mesh(plan: Plan) -> str:
    used, sizes = roles(plan), plan.mesh.sizes
    rows = [(_axes((a,), sizes), str(n), escape(plan.mesh.rides_on(a)), escape(used[a])) for a, n in sizes.items()]
    return "<h3>Mesh</h3>" + _table(("axis", "devices", "rides on", "used for"), rows, ("devices",))


def _communication(plan: Plan) -> str:
    listed = traffic(plan)
    if not listed:
        return '<h3>Communication</h3><p class="pz-muted">none</p>'
    total = sum(t.total_bytes for t in listed)
    columns = ("total", "", "kind", "axes", "times", "array", "your line", "why")
    numbers = ("total", "times")
    rows = [_collective(t, listed[0].total_bytes, plan.mesh.sizes) for t in listed]
    count = sum(t.count for t in listed)
    title = f"{count:,} collectives per step, {bytes_text(total)} per device"
    out = f"<h3>Communication <small>{escape(title)}</small></h3>" + _table(columns, rows[:_COLLECTIVES], numbers)
    if rest := listed[_COLLECTIVES:]:
        said = f"{len(rest)} smaller ones, {bytes_text(sum(t.total_bytes for t in rest))} together"
        out += f"<details><summary>{escape(said)}</summary>{_table(columns, rows[_COLLECTIVES:], numbers)}</details>"
    return out


def _collective(t: Traffic, largest: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    c = t.collective
    meter = f'<div class="pz-meter"><i style="width:{100 * t.total_bytes / max(largest, 1):.1f}%"></i></div>'
    source = short_source(c.source)
    line = f'<code title="{escape(source)}">{escape(source.partition(" (")[0])}</code>'
    return (
        escape(bytes_text(t.total_bytes)),
        meter,
        f'<span class="pz-keep">{escape(kind_text(c.kind))}</span>',
        _axes(c.axes, sizes),
        escape(f"{t.count:,} x {bytes_text(c.size_bytes)}"),
        _path(t.array),
        line if c.source else "",
        escape(c.why),
    )


def _shape(array: Array, sharding: Sharding | None, sizes: Mapping[str, int]) -> str:
    """Type and shape with the axes that cut each dimension: "f32 [96, 12288 / x·y, 128]"."""
    dims = []
    for d, n in enumerate(array.shape):
        axes = () if sharding is None else sharding.dims[d]
        if axes:
            over = _axes(axes, sizes)
            dims.append(
                f'<span class="pz-cut" style="border-color:{colour(axes[0], sizes)}">{n}&thinsp;/&thinsp;{over}</span>'
            )
        else:
            dims.append(str(n))
    return f"<code>{escape(array.dtype)} [{', '.join(dims)}]</code>"


def _arrays(plan: Plan) -> str:
    sizes = plan.mesh.sizes
    rows: list[tuple[str, ...]] = []
    heading = None
    for r in argument_rows(plan):
        if r.section != heading:
            heading = r.section
            where = f" <code>{escape(heading)}</code>" if heading.rstrip("/") != r.kind else ""
            rows.append((escape(r.kind) + where,))
        rows.append(_array(r, plan, sizes))
    columns = ("array", "shape / axes that cut it", "", "optimizer's", "per device", "why")
    note = "the filled block is what one device holds; bytes with the optimizer's arrays"
    return f"<h3>Arguments <small>{note}</small></h3>" + _table(columns, rows, ("per device",))


def _array(r: ArgumentRow, plan: Plan, sizes: Mapping[str, int]) -> tuple[str, ...]:
    long = reason_of(r, plan)
    short = escape(why(r))
    reason = f'<details title="{escape(long)}"><summary>{short}</summary><p>{escape(long)}</p></details>'
    names = "\n".join(r.paths)
    return (
        f'<span title="{escape(names)}">{_path(r.label)}</span>',
        _shape(r.array, r.array.sharding, sizes),
        picture(r.array.shape, r.array.sharding, sizes),
        f"<code>{escape(r.state)}</code>" if r.state else "",
        escape(bytes_text(r.device_bytes)),
        reason if r.choices else "",
    )


def _dimensions(plan: Plan) -> str:
    sizes, (shown, rest) = plan.mesh.sizes, shown_dims(plan)
    if not shown:
        return ""

    def cell(cuts: Sequence[DimCut]) -> str:
        share = len(cuts) > 1
        return ", ".join((_axes(c.axes, sizes) or "whole") + (f" {c.share:.0%}" if share else "") for c in cuts)

    rows = [(escape(d.name), f"{d.size:,}", *(cell(noticed(d.of(kind))) for kind in KINDS)) for d in shown]
    note = "one axis of the problem each, and the mesh axes that cut it, by bytes"
    note += f"; {rest} that nothing cuts, or smaller, are left out" if rest else ""
    return f"<h3>Dimensions <small>{note}</small></h3>" + _table(("dimension", "size", *KINDS), rows, ("size",))


def _tried(plan: Plan) -> str:
    rows = []
    for t in sorted(plan.tried, key=lambda t: t.cost_s):
        chosen = dict(t.mesh) == plan.mesh.sizes
        extra = "chosen" if chosen else change_text(plan.cost.step_s, t.cost_s)
        note = "" if t.status == "optimal" else "not searched to the end"
        if chosen:
            note = "; ".join(n for n in (f"bound {time_text(plan.bound)}, gap {percent(plan.gap, 1)}", note) if n)
        rows.append(
            (escape(mesh_text(t.mesh)), time_text(t.cost_s), escape(extra), time_text(t.search_s), escape(note))
        )
    title = f"searched in {time_text(plan.search_s)}; steps are simulated, or (not the best) priced with all hidden"
    columns = ("mesh", "step", "against it", "search", "")
    return f"<h3>Meshes tried <small>{escape(title)}</small></h3>" + _table(columns, rows, columns[1:4])


def _unknown(plan: Plan) -> str:
    out = ""
    if plan.pins:
        rows = [(_path(pattern), f"<code>{escape(spec)}</code>") for pattern, spec in plan.pins.items()]
        out += "<h3>Pinned by the user</h3>" + _table(("array", "cut"), rows)
    if plan.unknown:
        found = [(f"<code>{escape(n)}</code>", str(k), escape(short_source(w))) for n, k, w in plan.unknown]
        out += (
            '<div class="pz-warning"><h3>Operations without a rule <small>not cut, their cost is not known; '
            f"{escape(RULES)}</small></h3>"
        )
        out += _table(("operation", "times", "first at"), found, ("times",)) + "</div>"
    if plan.loops:
        counted = [(escape(short_source(k.source)), f"{k.trips} x", escape(TRIPS[k.why])) for k in plan.loops]
        out += "<h3>Loops whose length the program does not say</h3>"
        out += _table(("loop", "priced as", "because"), counted, ("priced as",))
    return out


def _foot(plan: Plan) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items())
    return f'<p class="pz-foot">{escape(versions)}; program <code>{escape(plan.graph_hash[:16])}</code></p>'
