"""Loops and branches of a cut program: what enters is brought to the form that the body reads, carries leave as they
came, branches agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from jax import lax

from parallelizer import compat
from parallelizer.moves import reshard
from passes.ir.control import Carry, Control, control_of
from passes.ir.graph import Graph, Literal, Op, Operand, Region
from passes.ir.sharding import Layout, Sharding, Step


@dataclass(slots=True)
class Scope:
    """The values of the program or of one iteration of a loop, and what is known about each.

    `forms[v]` is how value v is cut, where the layout says so; `pinned` those that a constraint or a local program has
    put there. `copies` are the shared copies made so far, `served` the moved copies by number. `moved` remembers first
    steps already taken from a value, since the compiler would merge equal ones. `sent` are members of packs that have
    arrived, by place; `held` the unfinished sums that wait for their pack, and `awaited` all that waits for those.
    """

    values: dict[int, Any]
    forms: dict[int, Sharding] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    copies: dict[int, Any] = field(default_factory=dict)
    served: dict[int, Any] = field(default_factory=dict)
    moved: dict[tuple[int, bool, Step], tuple[int, Any]] = field(default_factory=dict)
    sent: dict[tuple[str, int], Any] = field(default_factory=dict)
    held: dict[tuple[str, int], Any] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)

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


def run_control(lowering: Lowering, op: Op, outer: Scope) -> None:
    """Replay a loop or branch with its regions cut; its results are put into `outer`.

    The operation's own decision is not looked at: the forms of the regions' inputs say how carries and slices travel.
    """
    with compat.names(op.binding, f"pz{op.id}"):
        _RUNS[op.primitive](lowering, op, outer)


def _run_scan(lowering: Lowering, op: Op, outer: Scope) -> None:
    region, control = op.regions[0], control_of(op)
    n, m = op.params["num_consts"], op.params["num_carry"]
    args, forms = _operands(lowering, op, control, outer)
    copies = _copies(lowering, op, control, outer)
    y_forms: dict[int, Sharding] = {}

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        inner = _enter(lowering, region, [*args[:n], *carry, *x], forms, outer, copies)
        handed = [_handed(lowering, op, c, inner, forms) for c in control.carries]
        stacked = [_stacked(lowering, op, out, result, inner, y_forms) for out, result in control.stacks]
        return handed, stacked

    p = op.params
    carry, ys = lax.scan(
        body, args[n : n + m], args[n + m :], length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    for c, value in zip(control.carries, carry, strict=True):
        _result(lowering, c.result, value, forms.get(c.inside[0]), outer)
    for (_, result), value in zip(control.stacks, ys, strict=True):
        form = y_forms.get(result)
        _result(lowering, result, value, form and Sharding(((), *form.dims), form.partial), outer)


def _run_while(lowering: Lowering, op: Op, outer: Scope) -> None:
    """The condition is computed from the carry as it is cut; its answer is one number, the same on every device."""
    (test, body), control = op.regions, control_of(op)
    n, m = op.params["cond_nconsts"], op.params["body_nconsts"]
    args, forms = _operands(lowering, op, control, outer)
    copies = _copies(lowering, op, control, outer)

    def goes_on(carry: list[Any]) -> Any:
        inner = _enter(lowering, test, [*args[:n], *carry], forms, outer, copies)
        return lowering.whole(test.outputs[0], inner, op)

    def iteration(carry: list[Any]) -> list[Any]:
        inner = _enter(lowering, body, [*args[n : n + m], *carry], forms, outer, copies)
        return [_handed(lowering, op, c, inner, forms) for c in control.carries]

    results = lax.while_loop(goes_on, iteration, args[n + m :])
    for c, value in zip(control.carries, results, strict=True):
        _result(lowering, c.result, value, forms.get(c.inside[0]), outer)


def _run_cond(lowering: Lowering, op: Op, outer: Scope) -> None:
    """Every branch yields the results in the form that they have outside."""
    control = control_of(op)
    args, forms = _operands(lowering, op, control, outer)
    copies = _copies(lowering, op, control, outer)
    wanted = {r: lowering.layout.values.get(r) if lowering.layout else None for r in op.outputs}

    def branch(region: Region, outputs: list[Operand]) -> Callable[..., list[Any]]:
        def run(*values: Any) -> list[Any]:
            inner = _enter(lowering, region, list(values), forms, outer, copies)
            pairs = zip(outputs, op.outputs, strict=True)
            return [_yielded(lowering, op, o, lowering.graph.values[r].dtype, inner, wanted[r]) for o, r in pairs]

        return run

    runs = [branch(r, [outs[k] for outs, _ in control.merges]) for k, r in enumerate(op.regions)]
    results = lax.switch(args[0], runs, *args[1:])
    for (_, r), value in zip(control.merges, results, strict=True):
        _result(lowering, r, value, wanted[r], outer)


_RUNS: Mapping[str, Callable[[Lowering, Op, Scope], None]] = {
    "scan": _run_scan,
    "while": _run_while,
    "cond": _run_cond,
}


def _enter(
    lowering: Lowering, region: Region, values: list[Any], forms: Mapping[int, Sharding], outer: Scope,
    copies: Mapping[int, Any],
) -> Scope:  # fmt: skip
    """Run a region's operations on these inputs; the scope in which they ran."""
    inner = Scope(dict(zip(region.inputs, values, strict=True)))
    for c in lowering.graph.constants:
        inner.values[c] = outer.values[c]
    inner.copies.update({v: x for v, x in copies.items() if v in inner.values})
    for v in region.inputs:
        lowering.enter(inner, v, forms.get(v))
    lowering.ops(region.ops, inner)
    return inner


def _operands(lowering: Lowering, op: Op, control: Control, outer: Scope) -> tuple[list[Any], dict[int, Sharding]]:
    """The operands as they enter, and the forms of the regions' inputs."""
    inside: dict[int, tuple[int, ...]] = {c.operand: c.inside for c in control.carries}
    for i, b in (*control.passed, *control.slices):
        inside[i] = (*inside.get(i, ()), b)
    slices = {i for i, _ in control.slices}
    args: list[Any] = []
    forms: dict[int, Sharding] = {}
    for i, operand in enumerate(op.inputs):
        known = [
            lowering.layout.values[b] for b in inside.get(i, ()) if lowering.layout and b in lowering.layout.values
        ]
        form = known[0] if known else None
        if isinstance(operand, Literal):
            args.append(operand.value if form is None else _literal(lowering, operand, form))
        else:
            outside = outer.forms.get(operand)
            if form is None and outside is not None:
                # Nobody decided about slices that are single numbers: they are whole.
                form = outside if i not in slices else Sharding(outside.dims[1:], outside.partial)
            if form is None:
                args.append(lowering.whole(operand, outer, op))
                continue
            stacked = Sharding(((), *form.dims), form.partial) if i in slices else form
            args.append(lowering.fetch(operand, stacked, outer))
        if form is not None and compat.is_plain_dtype(args[-1]):
            forms.update(dict.fromkeys(inside.get(i, ()), form))
    return args, forms


def _copies(lowering: Lowering, op: Op, control: Control, outer: Scope) -> dict[int, Any]:
    """Shared copies of what every iteration reads are made once, before the loop. A branch uses those that there are,
    and makes its own when it runs."""
    copies: dict[int, Any] = {}
    for i, v in control.passed:
        operand = op.inputs[i]
        shared = lowering.layout.shared.get(v) if lowering.layout else None
        if shared is None or isinstance(operand, Literal) or lowering.layout is None:
            continue
        if op.primitive != "cond" or lowering.layout.shared.get(operand) == shared:
            copies[v] = lowering.fetch(operand, shared, outer)
    return copies


def _handed(lowering: Lowering, op: Op, carry: Carry, inner: Scope, forms: Mapping[int, Sharding]) -> Any:
    """What an iteration hands on, as the next one expects it."""
    dtype = lowering.graph.values[carry.result].dtype
    return _yielded(lowering, op, carry.after, dtype, inner, forms.get(carry.inside[0]))


def _yielded(lowering: Lowering, op: Op, operand: Operand, dtype: str, inner: Scope, target: Sharding | None) -> Any:
    if isinstance(operand, Literal):
        return jax.numpy.asarray(operand.value, dtype) if target is None else _literal(lowering, operand, target)
    return lowering.whole(operand, inner, op) if target is None else lowering.fetch(operand, target, inner)


def _stacked(
    lowering: Lowering, op: Op, operand: Operand, result: int, inner: Scope, y_forms: dict[int, Sharding]
) -> Any:
    """One iteration's part of a stacked result, as that is cut."""
    if isinstance(operand, Literal):
        return operand.value
    stacked = lowering.layout.values.get(result) if lowering.layout else None
    target = inner.forms.get(operand)
    if stacked is not None and not stacked.dims[0]:
        target = Sharding(stacked.dims[1:], stacked.partial)
    if target is None:
        return lowering.whole(operand, inner, op)
    value = lowering.fetch(operand, target, inner)
    if compat.is_plain_dtype(value):
        y_forms[result] = target
    return value


def _literal(lowering: Lowering, operand: Literal, form: Sharding) -> Any:
    """A constant in the form of a carry, which may be an unfinished sum."""
    value = jax.numpy.asarray(operand.value, operand.dtype)
    return reshard(value, Sharding(form.dims), form, (), lowering.mesh) if form.partial else value


def _result(lowering: Lowering, v: int, value: Any, form: Sharding | None, outer: Scope) -> None:
    """A result has the form of its last carry, its slices or its branches; the layout may want another outside."""
    outer.values[v] = value
    if lowering.layout is None or form is None or not compat.is_plain_dtype(value):
        return
    outer.forms[v] = form
    lowering.hold(outer, v)
    wanted = lowering.layout.values.get(v)
    if wanted is not None and wanted != form:
        outer.values[v] = lowering.fetch(v, wanted, outer)
        outer.forms[v] = wanted
