"""`mode="propagate"`: annotations completed without a search, the way of every axis told, and what it costs that two of
them meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cost_model.mesh import LogicalMesh
from parallelizer.annotations import Annotations, Pins
from parallelizer.pin_levels import Levels
from parallelizer.wording import bytes_text
from passes.completed import completing, departures
from passes.ir import Graph, Literal, Op, Sharding, Source
from passes.layout import Found, common_program
from passes.price import Pricer
from passes.propagate import Hop, Propagated, Seed, fits_together, propagate
from passes.realize import PlannedCollective

MODES = ("search", "propagate")
_HOPS = 6
"""How many operations of a way are named; of longer ways the first and the last."""
_MOVES = frozenset(
    {"brought to where it is used", "moved once for several uses", "brought to the loop", "stacked",
     "handed to the next iteration", "result of a branch", "leaves as it came"}
)  # fmt: skip

_READ = frozenset({"brought to where it is used", "moved once for several uses"})


@dataclass(frozen=True, slots=True)
class Forced:
    """A reshard that no annotation asks for: shardings that were propagated from different sides meet there.

    kind and `axes` as in `Collective`, `size_bytes` each time, `count` times per step, `time_s` seconds per step if
    nothing hides it. `array` is what moves, `source` the user's line, `because` how it and its reader came to be cut as
    they are.
    """

    kind: str
    axes: tuple[str, ...]
    size_bytes: int
    count: int
    time_s: float
    array: str
    source: str
    because: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Propagation:
    """What propagation did. `ways` say per array and cut dimension which annotation it comes from, and through which
    operations; `departures` where the plan differs from what propagation alone gives, and why."""

    ways: Mapping[str, tuple[str, ...]]
    forced: tuple[Forced, ...]
    departures: tuple[str, ...]


def complete(
    graph: Graph, mesh: LogicalMesh, pinned: Pins, noted: Annotations, levels: Levels
) -> tuple[Propagated, dict[int, Sharding]]:
    """The propagation of pins and annotations (`pinned`; those of the step itself are in `noted`), and the pins that
    hold a plan to it. `levels` are the priorities of patterns, 0 where they are not listed."""
    seeds = {v: Seed(s, where) for v, (where, s) in noted.types.items()}
    for v, (where, s) in pinned.items():
        seeds[v] = Seed(s, where if v in noted.pins else f"the pin {where!r}", levels.get(where, 0))
    propagated = propagate(graph, mesh.sizes, seeds)
    return propagated, held(graph, mesh, pinned, propagated.values)


def held(graph: Graph, mesh: LogicalMesh, pinned: Pins, wanted: Mapping[int, Sharding]) -> dict[int, Sharding]:
    """Pins, and those that hold every value to what is wanted of it, as far as a plan can have it."""
    pins = {v: s for v, (_, s) in pinned.items()}
    program = common_program(graph, (mesh,), {**wanted, **pins}, apart=True)
    return {**completing(program, mesh.sizes, wanted, pins), **pins}


def told(graph: Graph, found: Found, propagated: Propagated, names: Mapping[int, str]) -> Propagation:
    """What to say about a propagation and the plan that follows it. `names` say what values are called."""
    roots = [g.root for g in found.priced.program.grouping.groups.values() if g.root in propagated.values]
    called = [(names[v], v) for v in roots if v in names]
    called += [(p, v) for p, v in zip(graph.output_paths, graph.outputs, strict=True) if not isinstance(v, Literal)]
    called += zip(graph.input_paths, graph.inputs, strict=True)
    ways = {name: tuple(ways_of(propagated, v, names)) for name, v in called}
    return Propagation(
        {name: way for name, way in ways.items() if way},
        tuple(_forced(found, propagated, names)),
        tuple(_departures(graph, found, propagated, names)),
    )


def ways_of(propagated: Propagated, value: int, names: Mapping[int, str]) -> Iterator[str]:
    """One sentence per axis that cuts a value: where it comes from."""
    sharding = propagated.values.get(value)
    for dim, axes in enumerate(sharding.dims if sharding is not None else ()):
        for axis in axes:
            hops, seed = propagated.way(value, dim, axis)
            said = f"dimension {dim} over {axis}: " + (seed.where if seed is not None else "said by nobody")
            first = hops[-1].value if hops else value
            if hops and first in names:
                said += f" ({names[first]})"
            yield said + _through(hops)


def _through(hops: tuple[Hop, ...]) -> str:
    """The operations of a way, from the annotation on; equal neighbours once."""
    texts: list[str] = []
    for hop in reversed(hops):
        if hop.op.primitive != "sharding_constraint" and (not texts or texts[-1] != _operation(hop.op)):
            texts.append(_operation(hop.op))
    if len(texts) > _HOPS:
        half = _HOPS // 2
        texts = [*texts[:half], f"{len(texts) - _HOPS} more", *texts[-half:]]
    return f", through {', '.join(texts)}" if texts else ""


def _operation(op: Op) -> str:
    return f"{op.primitive} at {short(op.source)}" if op.source is not None else op.primitive


def short(source: Source) -> str:
    """The user's line without the folders above its file."""
    return f"{source.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{source.line}"


def _forced(found: Found, propagated: Propagated, names: Mapping[int, str]) -> Iterator[Forced]:
    """Reshards that no annotation asks for, dearest first; equal ones together."""
    ops = {v.op.id: v.op for v in found.priced.program.grouping.visits}
    pricer = Pricer(found.priced.program, found.mesh)
    merged: dict[tuple[object, ...], Forced] = {}
    for c in found.realized.collectives:
        op = ops.get(c.op)
        if c.why not in _MOVES or (op is not None and op.primitive == "sharding_constraint"):
            continue
        if c.why in _READ and op is not None and fits_together(propagated, op):
            continue  # the operation could take everything as it is: moving it is cheaper
        time_s = c.count * c.share * pricer.collective(c.kind, c.axes, float(c.size_bytes))
        source = str(op.source) if op is not None and op.source is not None else ""
        new = Forced(
            c.kind, c.axes, c.size_bytes, c.count, time_s, names.get(c.value, ""), source,
            tuple(_because(c, op, found.priced.program.graph, propagated, names)),
        )  # fmt: skip
        key = (c.kind, c.axes, c.size_bytes, c.value, c.op)
        merged[key] = new
    yield from sorted(merged.values(), key=lambda f: -f.time_s)


def _because(
    c: PlannedCollective, op: Op | None, graph: Graph, propagated: Propagated, names: Mapping[int, str]
) -> Iterator[str]:
    """How the array that moves is cut, and how what its reader makes is cut."""
    yield from _sided(c.value, names.get(c.value, "the array"), propagated, names)
    back = [s for i, s in graph.carried.items() if graph.outputs[i] == c.value] if c.why == "leaves as it came" else []
    for s in back:
        yield f"it is the next step's {graph.input_paths[s]}, and leaves this one as that came"
    for r in op.outputs[:1] if op is not None and not back else ():
        yield from _sided(r, f"the result of {_operation(op)}" if op is not None else "", propagated, names)


def _sided(value: int, name: str, propagated: Propagated, names: Mapping[int, str]) -> Iterator[str]:
    if value in propagated.values:
        ways = list(ways_of(propagated, value, names)) or ["nothing cuts it"]
        yield f"{name} is {propagated.values[value]}: {'; '.join(ways)}"


def _departures(graph: Graph, found: Found, propagated: Propagated, names: Mapping[int, str]) -> Iterator[str]:
    seen: set[str] = set()
    for d in departures(graph, found.realized.layout.values, propagated.values):
        text = (
            f"{names.get(d.value, f'value {d.value}')} {graph.values[d.value].shape}: propagation says {d.propagated}, "
        )
        text += f"the plan has {d.planned}: no plan can cut all that is cut with it so"
        if text not in seen:
            seen.add(text)
            yield text


def warning_text(forced: tuple[Forced, ...], shown: int = 5) -> str:
    """The reshards in words, dearest first: what moves, where, how much, the price, and why."""
    total = sum(f.time_s for f in forced)
    reshards = f"{len(forced)} reshards" if len(forced) > 1 else "a reshard"
    lines = [f"propagation forces {reshards} that no annotation asks for, {total * 1e6:,.0f} us per step:"]
    for f in forced[:shown]:
        where = f" at {f.source}" if f.source else ""
        lines.append(
            f"  {f.kind.replace('_', '-')} of {f.array or 'an array'} over {'*'.join(f.axes)}{where}: "
            f"{f.count} x {bytes_text(f.size_bytes)}, {f.time_s * 1e6:,.1f} us"
        )
        lines += [f"    {text}" for text in f.because]
    if len(forced) > shown:
        lines.append(f"  ... and {len(forced) - shown} more")
    return "\n".join([*lines, '  annotate one of the two sides, or let mode="search" decide'])
