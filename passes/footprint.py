"""Bytes of one device over the program, for a plan as it will be lowered: kept values, copies, moved operands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cost_model.scatters import scatters_by_reducing
from passes.fast_memory import fast_bytes, in_fast_memory
from passes.ir import Graph, Layout, Op, Sharding, Step, Use, Visit
from passes.loops import brought_stacks
from passes.memory import Life, peak_bytes, reused_outputs
from passes.narrow import multiplies_in_bfloat16
from passes.price import Priced
from passes.realize import Realized
from passes.tiling import stored_bytes


@dataclass(frozen=True, slots=True)
class Footprint:
    """peak_bytes of one device, the position where it occurs, and what lives there, by kind of array.

    `by_kind`: "arguments" (split in by_argument: first part of the path), "results", "activations" (kept values of the
    step), "copies" (gathered or moved operands, arguments in fast memory).
    """

    peak_bytes: int
    position: int
    by_kind: tuple[tuple[str, int], ...]
    by_argument: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """`value`, or a copy of it, takes size_bytes of one device at positions [start, end); kinds as in `Footprint`.

    `first_read` and `last_read` are the positions that read an argument. `rewritten`: a part of it is written here,
    which counts twice in fast memory and nowhere else.
    """

    value: int
    start: int
    end: int
    size_bytes: int
    kind: str
    path: str = ""
    rewritten: bool = False
    first_read: int = -1
    last_read: int = -1


def footprint(priced: Priced, realized: Realized) -> Footprint:
    """Evaluate the plan's memory over time; sizes are what one device holds, as its compiler counts them."""
    end = priced.program.lives.end
    fixed, slow, fast = spaces(tuple(usages_of(priced, realized)), end, fast_bytes(priced.mesh.topology.chip.name))
    base = sum(u.size_bytes for u in fixed)
    peak, at, usages = 0.0, 0, slow
    for space in (slow, fast):
        level, position = peak_bytes(((u.start, u.end, u.size_bytes) for u in space), end)
        if level > peak:
            peak, at, usages = level, position, space
    kinds: dict[str, int] = {}
    heads: dict[str, int] = {}
    for u in (*fixed, *(u for u in usages if u.start <= at < u.end)):
        kinds[u.kind] = kinds.get(u.kind, 0) + u.size_bytes
        if u.kind == "arguments":
            head = "/".join(u.path.split("/")[:2])
            heads[head] = heads.get(head, 0) + u.size_bytes
    return Footprint(int(base + peak), at, _ranked(kinds), _ranked(heads))


def spaces(usages: tuple[Usage, ...], end: int, fast_memory_bytes: int) -> tuple[list[Usage], list[Usage], list[Usage]]:
    """(arguments and results, what else lives in main memory, what lives in fast memory)."""
    fixed = [u for u in usages if u.kind in ("arguments", "results") and not u.rewritten]
    others = [u for u in usages if u.kind not in ("arguments", "results") and not u.rewritten]
    # Brought from main memory when they are first read, and then kept where there is room.
    fetched = [replace(u, start=u.first_read, end=u.last_read + 1, kind="copies") for u in fixed if u.last_read >= 0]
    fits = in_fast_memory(
        [(u.start, u.end, u.size_bytes) for u in (*others, *fetched)], end, fast_memory_bytes, len(others)
    )
    slow = [u for u, fit in zip(others, fits, strict=False) if not fit]
    fast = [u for u, fit in zip(others, fits, strict=False) if fit]
    there = {u.value for u in fast}
    fast += [u for u, fit in zip(fetched, fits[len(others) :], strict=True) if fit]
    return fixed, slow, fast + [u for u in usages if u.rewritten and u.value in there]


def _ranked(sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items(), key=lambda item: -item[1]))


def usages_of(priced: Priced, realized: Realized) -> Iterator[Usage]:
    """Everything that one device keeps, and when."""
    graph, program = priced.program.graph, priced.program
    position = {v.op.id: i for i, v in enumerate(program.grouping.visits)}
    inputs = {v: graph.input_paths[i] for i, v in enumerate(graph.inputs)} if graph.input_paths else {}
    tpu = priced.mesh.topology.chip.platform == "tpu"
    reused = reused_outputs(graph)
    outputs = {o for o in graph.outputs if isinstance(o, int)}
    for life in program.lives.kept:
        if life.value in reused:
            continue
        if (life.copy or life.rewritten) and not tpu:
            continue
        size = local_bytes(priced, life.value, realized.layout.values.get(life.value), life.narrow)
        kind = (
            "copies"
            if life.copy
            else "arguments"
            if life.value in inputs
            else "results"
            if life.value in outputs
            else "activations"
        )
        yield Usage(
            life.value,
            life.start,
            life.end,
            size,
            kind,
            inputs.get(life.value, ""),
            life.rewritten,
            life.first_read,
            life.last_read,
        )
        if kind == "arguments" and tpu:
            yield from _turned(priced, realized, life, size)
    yield from _copies(priced, realized, position)
    yield from _before_scatters(priced, realized, position)
    for want, start, stop in brought_stacks(program.grouping):
        use = Use(want.value, Sharding(realized.chosen[want.consumer].form(want.slots)), False, -1)
        steps = moves_of(realized.layout, graph, use)
        if steps:
            size = max(local_bytes(priced, use.source, s.to) for s in steps)
            yield Usage(use.source, start, stop, size, "copies")


def _turned(priced: Priced, realized: Realized, life: Life, size_bytes: int) -> Iterator[Usage]:
    """The copy of an argument for an update in the order of its gradient.

    Scattered gradients come in the argument's own order; what is read before its gradient is there, is there already.
    """
    turned = priced.program.lives.turned.get(life.value)
    if turned is None or not turned.start <= life.first_read <= life.last_read:
        return
    decision = realized.layout.ops.get(turned.op)
    if decision is None or all(r.dim is None for r in decision.reductions):
        yield Usage(life.value, turned.start, life.last_read + 1, size_bytes, "copies")


def _copies(priced: Priced, realized: Realized, position: Mapping[int, int]) -> Iterator[Usage]:
    """Operands moved to where they are used, and copies that several operations share."""
    graph, visits = priced.program.graph, priced.program.grouping.visits
    readers: dict[int, list[Op]] = {}
    for at, decision in ((position[op], d) for op, d in realized.layout.ops.items()):
        op = visits[at].op
        for use in decision.uses:
            if use is None:
                continue
            if use.shared:
                readers.setdefault(priced.program.origin(use.source), []).append(op)
            steps = moves_of(realized.layout, graph, use)
            if any(s.kind != "slice" for s in steps):
                narrow = _stays_narrow(graph, use.source, [op])
                size = max(local_bytes(priced, use.source, s.to, narrow) for s in steps)
                yield Usage(use.source, at, at + 1, size, "copies")
    for v, form in realized.layout.shared.items():
        if v in readers:
            at_each = [position[op.id] for op in readers[v]]
            size = local_bytes(priced, v, form, _stays_narrow(graph, v, readers[v]))
            yield Usage(v, min(at_each), max(at_each) + 1, size, "copies")


def _stays_narrow(graph: Graph, value: int, readers: Sequence[Op]) -> bool:
    return graph.values[value].dtype == "float32" and all(multiplies_in_bfloat16(op) for op in readers)


def _before_scatters(priced: Priced, realized: Realized, position: Mapping[int, int]) -> Iterator[Usage]:
    """An operation's local result before its partial sums are scattered.

    Where the compiler all-reduces instead (`scatters`), it does so for all results of a loop's body at once: they wait
    for the last. (Seen in compiled programs, as tuples of all gradients.)
    """
    visits = priced.program.grouping.visits
    found: list[tuple[int, int, bool]] = []  # position, bytes, whether it waits
    last: dict[tuple[int, ...], int] = {}
    for op, decision in realized.layout.ops.items():
        scattered = {a for r in decision.reductions if r.dim is not None for a in r.axes}
        form = decision.results[0] if decision.results else None
        if scattered and form is not None:
            whole = Sharding(tuple(tuple(a for a in d if a not in scattered) for d in form.dims))
            at = position[op]
            waits = scatters_by_reducing(priced.mesh, sorted(scattered))
            found.append((at, local_bytes(priced, visits[at].op.outputs[0], whole), waits))
            if waits:
                body = _body(visits[at])
                last[body] = max(at, last.get(body, at))
    for at, size, waits in found:
        end = last[_body(visits[at])] if waits else at
        yield Usage(visits[at].op.outputs[0], at, end + 1, size, "copies")


def _body(visit: Visit) -> tuple[int, ...]:
    """The loops and branches around an operation, by number."""
    return tuple(op.id for op in visit.inside)


def moves_of(layout: Layout, graph: Graph, use: Use) -> tuple[Step, ...]:
    """The steps that bring a use's source to where it is wanted."""
    v = graph.values[use.source]
    start = layout.shared[use.source] if use.shared else layout.values[use.source]
    return layout.moves.get((v.shape, v.itemsize, start.dims, use.target.dims), ())


def local_bytes(priced: Priced, value: int, sharding: Sharding | None, narrow: bool = False) -> int:
    """Bytes of one device's block of a value as its memory holds it."""
    v = priced.program.graph.values[value]
    platform = priced.mesh.topology.chip.platform
    shape = v.shape if sharding is None else sharding.local_shape(v.shape, priced.mesh.sizes)
    itemsize = v.itemsize // 2 if narrow and platform == "tpu" else v.itemsize
    return stored_bytes(shape, itemsize, platform, priced.program.lives.major.get(value, frozenset()))
