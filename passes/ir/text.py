"""One way to print a graph, and a hash of what it means.

`graph_text` is for people (sources, paths). `canonical_text` leaves out everything that may differ between two traces
of the same program: ids, addresses, source lines, names of scopes, values of large constants.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from passes.ir.graph import Graph, Literal, Op, Operand, Region

# Parameters that say where or how the program was written, not what it computes.
_INCIDENTAL = frozenset(
    {"name", "debug", "debug_info", "jvp_jaxpr_fun", "jvp", "bwd", "fwd", "ctx_mesh", "context_mesh"}
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SOURCE = re.compile(r"[^\s'\"(]*\.py:\d+(:\d+)?")

Namer = Callable[[int], str]


def graph_text(graph: Graph, annotate: Callable[[int], str] | None = None) -> str:
    """The graph for reading: one line per operation, bodies indented. `annotate` adds a text to a value's type."""
    notes = annotate or (lambda _: "")

    def typed(v: int) -> str:
        value = graph.values[v]
        shape = ", ".join(map(str, value.shape))
        note = notes(v)
        return f"%{v}: {value.dtype}[{shape}]" + (f" {note}" if note else "")

    lines = ["inputs"]
    for i, v in enumerate(graph.inputs):
        path = graph.input_paths[i] if i < len(graph.input_paths) else ""
        lines.append(f"  {typed(v)}  {path}" + (" (donated)" if i in graph.donated else ""))
    for v in graph.constants:
        lines.append(f"  {typed(v)}  (constant)")
    lines.extend(_op_lines(graph.ops, typed, lambda v: f"%{v}", 0, sources=True))
    lines.append("outputs")
    for i, o in enumerate(graph.outputs):
        path = graph.output_paths[i] if i < len(graph.output_paths) else ""
        target = graph.carried.get(i)
        names = graph.input_paths
        next_step = "" if target is None else f" -> {names[target] if target < len(names) else target}"
        lines.append(f"  {_operand(o, lambda v: f'%{v}')}  {path}{next_step}")
    return "\n".join(lines) + "\n"


def canonical_text(graph: Graph) -> str:
    """The same text for the same program, in every process: values renumbered in order of appearance."""
    numbers: dict[int, int] = {}

    def name(v: int) -> str:
        return f"%{numbers.setdefault(v, len(numbers))}"

    def typed(v: int) -> str:
        value = graph.values[v]
        return f"{name(v)}:{value.dtype}{list(value.shape)}"

    lines = ["inputs " + " ".join(typed(v) for v in graph.inputs)]
    lines.append("constants " + " ".join(typed(v) for v in graph.constants))
    lines.extend(_op_lines(graph.ops, typed, name, 0, sources=False))
    lines.append("outputs " + " ".join(_operand(o, name) for o in graph.outputs))
    return "\n".join(lines) + "\n"


def graph_hash(graph: Graph) -> str:
    """sha256 (hexadecimal) of `canonical_text` and of which inputs are donated and carried.

    Two traces of one function on the same shapes agree, across processes and hash seeds; a changed shape, type,
    parameter or structure does not.
    """
    extra = f"donated {sorted(graph.donated)} carried {sorted(graph.carried.items())}\n"
    return hashlib.sha256((canonical_text(graph) + extra).encode()).hexdigest()


def _op_lines(ops: Sequence[Op], typed: Namer, name: Namer, depth: int, sources: bool) -> Iterator[str]:
    pad = "  " * depth
    for op in ops:
        operands = ", ".join(_operand(o, name) for o in op.inputs)
        params = param_text(op.params)
        where = f"  # {op.source}" if sources and op.source else ""
        # Results come after the body: they are defined when it has run.
        regions = [list(_region_lines(r, typed, name, depth + 1, sources)) for r in op.regions]
        results = ", ".join(typed(v) for v in op.outputs)
        number = f"[{op.id}] " if sources else ""
        yield f"{pad}{number}{results} = {op.primitive}({operands})" + (f" {{{params}}}" if params else "") + where
        for lines in regions:
            yield from lines


def _region_lines(region: Region, typed: Namer, name: Namer, depth: int, sources: bool) -> Iterator[str]:
    pad = "  " * depth
    # What a loop is only taken to run is no part of what the program means.
    trips = f"{region.trip_count}" if region.known else f"{region.trip_count}?" if sources else "?"
    yield f"{pad}body x{trips} (" + ", ".join(typed(v) for v in region.inputs) + ")"
    yield from _op_lines(region.ops, typed, name, depth + 1, sources)
    yield f"{pad}yield " + ", ".join(_operand(o, name) for o in region.outputs)


def _operand(operand: Operand, name: Namer) -> str:
    if isinstance(operand, Literal):
        return f"{_number(operand.value)}:{operand.dtype}"
    return name(operand)


def _number(value: Any) -> str:
    """A scalar constant, whatever class holds it."""
    item = value.item() if hasattr(value, "item") else value
    if isinstance(item, bool | int | complex):
        return repr(item)
    return repr(float(item)) if isinstance(item, float) else type(item).__name__


def param_text(params: Mapping[str, Any]) -> str:
    """Parameters in order of their names, without what is incidental or absent."""
    shown = ((k, v) for k, v in sorted(params.items()) if k not in _INCIDENTAL and v is not None)
    return " ".join(f"{k}={value_text(v)}" for k, v in shown)


def value_text(value: Any) -> str:
    """A parameter's value, free of addresses, source lines and set order."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, enum.Enum):
        return value.name
    if hasattr(value, "_fields"):
        return type(value).__name__ + _fields((f, getattr(value, f)) for f in value._fields)
    if isinstance(value, tuple | list):
        return "(" + ",".join(value_text(v) for v in value) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(value_text(v) for v in value)) + "}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{v}" for k, v in sorted((str(k), value_text(v)) for k, v in value.items())) + "}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__ + _fields((f.name, getattr(value, f.name)) for f in fields(value))
    if callable(value) and not hasattr(value, "eqns"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return _SOURCE.sub("", _ADDRESS.sub("", str(value)))


def _fields(items: Iterator[tuple[str, Any]]) -> str:
    return "(" + ",".join(f"{k}={value_text(v)}" for k, v in items) + ")"
