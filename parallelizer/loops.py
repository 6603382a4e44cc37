"""Loops of a cut program: what enters is brought to the form that the body reads, carries leave as they came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from jax import lax

from parallelizer import compat
from parallelizer.moves import reshard
from passes.ir.graph import Graph, Literal, Op, Operand, Region
from passes.ir.sharding import Layout, Sharding, Step


@dataclass(slots=True)
class Scope:
    """The values of the program or of one iteration of a loop, and what is known about each.

    `forms[v]` is how value v is cut, where the layout says so; `pinned` those that a constraint or a local program has
    put there. `copies` are the shared copies made so far, `served` the moved copies by number. `moved` remembers first
    steps already taken from a value, since the compiler would merge equal ones.
    """

    values: dict[int, Any]
    forms: dict[int, Sharding] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    copies: dict[int, Any] = field(default_factory=dict)
    served: dict[int, Any] = field(default_factory=dict)
    moved: dict[tuple[int, bool, Step], tuple[int, Any]] = field(default_factory=dict)

    def read(self, operand: Operand) -> Any:
        return operand.value if isinstance(operand, Literal) else self.values[operand]


class Lowering(Protocol):
    """What a loop needs of the lowering of the program around it."""

    @property
    def graph(self) -> Graph: ...
    @property
    def layout(self) -> Layout | None: ...
    @property
    def mesh(self) -> Any: ...

    def enter(self, scope: Scope, v: int, form: Sharding | None = None) -> None: ...
    def hold(self, scope: Scope, v: int) -> None: ...
    def ops(self, ops: tuple[Op, ...], scope: Scope) -> None: ...
    def whole(self, operand: Operand, scope: Scope, op: Op) -> Any: ...
    def fetch(self, v: int, target: Sharding, scope: Scope) -> Any: ...


def run_scan(lowering: Lowering, op: Op, outer: Scope) -> None:
    """Replay a scan with its body cut; its results are put into `outer`.

    The loop's own decision is not looked at: the forms of the body's inputs say how carries and slices travel, and a
    stacked array is never cut along the loop.
    """
    region = op.regions[0]
    n, m = op.params["num_consts"], op.params["num_carry"]
    with compat.names(op.binding, f"pz{op.id}"):
        args, forms = _operands(lowering, op, region, outer)
        copies = _copies(lowering, op, region, outer)
        y_forms: dict[int, Sharding] = {}

        def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            inner = Scope(dict(zip(region.inputs, [*args[:n], *carry, *x], strict=True)))
            for c in lowering.graph.constants:
                inner.values[c] = outer.values[c]
            inner.copies.update(copies)
            for v in region.inputs:
                lowering.enter(inner, v, forms.get(v))
            lowering.ops(region.ops, inner)
            out = [_output(lowering, op, region, j, inner, forms, y_forms) for j in range(len(region.outputs))]
            return out[:m], out[m:]

        p = op.params
        carry, ys = lax.scan(
            body, args[n : n + m], args[n + m :], length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
        )
        for j, (v, value) in enumerate(zip(op.outputs, [*carry, *ys], strict=True)):
            outer.values[v] = value
            _result(lowering, v, forms.get(region.inputs[n + j]) if j < m else y_forms.get(j), outer)


def _operands(lowering: Lowering, op: Op, region: Region, outer: Scope) -> tuple[list[Any], dict[int, Sharding]]:
    """The loop's operands as they enter, and the forms of the body's inputs."""
    first_slice = op.params["num_consts"] + op.params["num_carry"]
    args: list[Any] = []
    forms: dict[int, Sharding] = {}
    for i, (operand, v) in enumerate(zip(op.inputs, region.inputs, strict=True)):
        sliced = i >= first_slice
        form = lowering.layout.values.get(v) if lowering.layout else None
        if isinstance(operand, Literal):
            args.append(operand.value if form is None else _literal(lowering, operand, form))
        else:
            if form is None and not sliced:
                form = outer.forms.get(operand)
            if form is None:
                args.append(lowering.whole(operand, outer, op))
                continue
            stacked = Sharding(((), *form.dims), form.partial) if sliced else form
            args.append(lowering.fetch(operand, stacked, outer))
        if form is not None and compat.is_plain_dtype(args[-1]):
            forms[v] = form
    return args, forms


def _copies(lowering: Lowering, op: Op, region: Region, outer: Scope) -> dict[int, Any]:
    """Shared copies of what every iteration reads are made once, before the loop."""
    copies: dict[int, Any] = {}
    for operand, v in zip(op.inputs[: op.params["num_consts"]], region.inputs, strict=False):
        shared = lowering.layout.shared.get(v) if lowering.layout else None
        if shared is not None and not isinstance(operand, Literal):
            copies[v] = lowering.fetch(operand, shared, outer)
    return copies


def _output(
    lowering: Lowering,
    op: Op,
    region: Region,
    j: int,
    inner: Scope,
    forms: Mapping[int, Sharding],
    y_forms: dict[int, Sharding],
) -> Any:
    """What an iteration yields: a carry as the next one expects it, a slice as the stacked result is cut."""
    operand = region.outputs[j]
    n, m = op.params["num_consts"], op.params["num_carry"]
    if j < m:
        target = forms.get(region.inputs[n + j])
    else:
        stacked = lowering.layout.values.get(op.outputs[j]) if lowering.layout else None
        target = None
        if stacked is not None and not stacked.dims[0]:
            target = Sharding(stacked.dims[1:], stacked.partial)
        elif not isinstance(operand, Literal):
            target = inner.forms.get(operand)
    if isinstance(operand, Literal):
        return operand.value if target is None or j >= m else _literal(lowering, operand, target)
    if target is None:
        return lowering.whole(operand, inner, op)
    value = lowering.fetch(operand, target, inner)
    if j >= m and compat.is_plain_dtype(value):
        y_forms[j] = target
    return value


def _literal(lowering: Lowering, operand: Literal, form: Sharding) -> Any:
    """A constant in the form of a carry, which may be an unfinished sum."""
    value = jax.numpy.asarray(operand.value, operand.dtype)
    return reshard(value, Sharding(form.dims), form, (), lowering.mesh) if form.partial else value


def _result(lowering: Lowering, v: int, form: Sharding | None, outer: Scope) -> None:
    """A loop's result has the form of its last carry or of its slices; the layout may want another outside."""
    if lowering.layout is None or form is None:
        return
    if len(form.dims) < len(lowering.graph.values[v].shape):
        form = Sharding(((), *form.dims), form.partial)
    outer.forms[v] = form
    lowering.hold(outer, v)
    wanted = lowering.layout.values.get(v)
    if wanted is not None and wanted != form:
        outer.values[v] = lowering.fetch(v, wanted, outer)
        outer.forms[v] = wanted
