"""Runs one operation in every way its rule allows, and says where it differs from the whole operation.

An operation is taken out of a traced program and becomes a program of its own. For every strategy that the search would
see on a mesh, the layout that the search would write down is lowered as plans are lowered, and run on CPU devices. All
programs of a call are compiled together: compiling is what takes time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parallelizer.compiled import read_collectives
from parallelizer.lower import lower
from parallelizer.moves import named
from parallelizer.prepared import prepared
from parallelizer.tracer import trace
from passes.borders import border_moves
from passes.groups import Group
from passes.ir import Graph, Layout, Literal, Op, OpDecision, Sharding, Visit
from passes.ir.graph import walk
from passes.rules import Rule, rule_for
from passes.strategies import Strategy, enumerate_strategies
from tests.rules.draws import Example

ADDED = ("roll", "within")  # operations that no program has until it is prepared
MESHES: tuple[Mapping[str, int], ...] = ({"x": 2, "y": 2}, {"x": 4})


@dataclass(frozen=True)
class Alone:
    """One operation as a program of its own, with operands to run it on."""

    name: str
    graph: Graph
    operands: tuple[Any, ...]

    @property
    def op(self) -> Op:
        return self.graph.ops[0]

    @property
    def rule(self) -> Rule:
        return rule_for(self.graph, self.op)


@dataclass(frozen=True)
class Case:
    """One operation, one mesh, one assignment of its axes to factors."""

    alone: Alone
    sizes: Mapping[str, int]
    group: Group
    strategy: Strategy

    def __str__(self) -> str:
        shapes = [self.alone.graph.shape_of(o) for o in self.alone.op.inputs]
        return f"{self.alone.name} {shapes} on {dict(self.sizes)}: {self.strategy}"


def operations(primitive: str, example: Example) -> list[Alone]:
    """The operations of this primitive in the program, each with the operands that it has when the program runs."""
    fn, args = example
    graph = trace(fn, args).graph
    if primitive in ADDED:
        graph = prepared(graph)
    found = [v.op for v in walk(graph) if v.op.primitive == primitive and not v.inside]
    made = [tuple(o for o in op.inputs if not isinstance(o, Literal)) for op in found]
    wanted = tuple(o for operands in made for o in operands)
    leaves = [a for a in jax.tree.leaves(args) if hasattr(a, "shape") or isinstance(a, (int, float))]
    if not set(wanted) <= set(graph.inputs):
        before = Graph(graph.values, graph.inputs, wanted, graph.ops, constants=graph.constants)
        values = dict(zip(wanted, jax.jit(lower(before, None, None))(*leaves), strict=True))
    else:
        values = dict(zip(graph.inputs, leaves, strict=True))
    out = []
    for op, operands in zip(found, made, strict=True):
        inputs = tuple(dict.fromkeys(operands))
        own = Graph(graph.values, inputs, op.outputs, (op,))
        out.append(Alone(primitive, own, tuple(values[o] for o in inputs)))
    return out


def cases_of(alone: Alone, sizes: Mapping[str, int]) -> list[Case]:
    """Every strategy that the search would see for this operation, without the uncut one."""
    rule, op = alone.rule, alone.op
    cuttable = set(rule.cuttable())
    factors = tuple(dict.fromkeys(d[0] for dims in rule.results for d in dims if d and d[0] in cuttable))
    limits = [rule.sizes[f] for f in factors]
    group = Group(0, "op", op.outputs[0], limits, leader=Visit(op, 1, ()), rule=rule, factors=factors)
    return [Case(alone, sizes, group, s) for s in enumerate_strategies(group, sizes, False) if s.factors]


def layout_of(case: Case) -> Layout:
    """The layout that the search writes down for this strategy (`passes.realize`)."""
    rule, op, group, strategy = case.alone.rule, case.alone.op, case.group, case.strategy

    def result(dims: Sequence[tuple[str, ...]]) -> Sharding:
        known = [group.factors.index(d[0]) if d and d[0] in group.factors else None for d in dims]
        return Sharding(tuple(() if c is None else strategy.classes[c] for c in known))

    operands = tuple(Sharding(tuple(strategy.axes_of(d[0]) if d else () for d in dims)) for dims in rule.operands)
    reductions = []
    for r in strategy.reductions:
        dims = [d[0] if d else None for d in rule.results[0]]
        reductions.append(type(r)(r.axes, None if r.dim is None else dims.index(group.factors[r.dim]), r.combine))
    results = tuple(result(dims) for dims in rule.results)
    decision = OpDecision(operands, results, tuple(reductions), rule.local)
    return Layout(tuple(case.sizes.items()), {}, {}, {op.id: decision})


def predicted(case: Case) -> dict[str, int]:
    """Elements that the rule says are communicated by one device, per kind of collective."""
    alone, strategy = case.alone, case.strategy
    out: dict[str, int] = {}
    scattered = {a for r in strategy.reductions if r.dim is not None for a in r.axes}
    cut = [a for on in strategy.classes for a in on if a not in scattered]
    size = math.prod(alone.graph.values[alone.op.outputs[0]].shape) // _product(case.sizes, cut)
    for r in strategy.reductions:
        kind = "all_reduce" if r.dim is None else "reduce_scatter"
        out[kind] = out.get(kind, 0) + size
        if r.dim is not None:
            size //= _product(case.sizes, r.axes)
    for move in border_moves(alone.graph, alone.op, alone.rule, strategy, case.sizes):
        out[move.kind] = out.get(move.kind, 0) + move.elements
    return out


def _product(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    return math.prod(sizes[a] for a in axes)


def mesh_of(sizes: Mapping[str, int]) -> Mesh:
    count = math.prod(sizes.values())
    devices = np.array(jax.devices()[:count]).reshape(tuple(sizes.values()))
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def run_whole(alones: Sequence[Alone]) -> list[list[Any]]:
    """The operations without any cut, on one device."""
    programs = [lower(a.graph, None, None) for a in alones]

    def together(*args: Any) -> list[list[Any]]:
        return [p(*a) for p, a in zip(programs, args, strict=True)]

    return jax.jit(together)(*(a.operands for a in alones))


def run_cut(cases: Sequence[Case]) -> tuple[list[list[Any]], list[dict[str, int]]]:
    """The results of all cases, and the elements that each of them communicates per kind of collective."""
    programs, shardings = [], []
    for case in cases:
        mesh, layout = mesh_of(case.sizes), layout_of(case)
        programs.append(lower(case.alone.graph, layout, mesh))
        forms = layout.ops[case.alone.op.id].operands
        first = {o: f for o, f in reversed(list(zip(case.alone.op.inputs, forms, strict=True)))
                 if not isinstance(o, Literal)}  # fmt: skip
        shardings.append(
            tuple(
                named(first[o], mesh) if _movable(a) else NamedSharding(mesh, PartitionSpec())
                for o, a in zip(case.alone.graph.inputs, case.alone.operands, strict=True)
            )
        )

    def together(*args: Any) -> list[list[Any]]:
        out = []
        for k, (program, own) in enumerate(zip(programs, args, strict=True)):
            with jax.named_scope(f"case{k}_"):
                out.append(program(*own))
        return out

    compiled = jax.jit(together, in_shardings=tuple(shardings)).lower(*(c.alone.operands for c in cases)).compile()
    placed = [jax.device_put(c.alone.operands, s) for c, s in zip(cases, shardings, strict=True)]
    return compiled(*placed), communicated(compiled.as_text(), len(cases))


def _movable(array: Any) -> bool:
    return not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)


def communicated(text: str, count: int) -> list[dict[str, int]]:
    """Elements per kind of collective and case, from a compiled program."""
    out: list[dict[str, int]] = [{} for _ in range(count)]
    for c in read_collectives(text):
        names = c.member_op_names if c.members > 1 else (c.op_name,)
        joined = re.findall(r"case(\d+)_", c.op_name)  # of what is combined, in order
        for k, (name, size) in enumerate(zip(names, c.member_bytes if c.members > 1 else (c.size_bytes,), strict=True)):
            where = re.findall(r"case(\d+)_", name) or joined[k if len(joined) == c.members else 0 :]
            if not where:
                raise AssertionError(f"{c.kind} of {size} bytes belongs to no case: {name!r} {c.op_name!r}")
            own = out[int(where[0])]
            own[c.kind] = own.get(c.kind, 0) + size // _width(c.dtypes[0])
    return out


def _width(dtype: str) -> int:
    """Bytes of an element of a compiled type: s32, bf16, pred, c64."""
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else max(1, int(bits[0]) // 8)


def close(got: Any, want: Any, exact: bool) -> bool:
    """Whether two results are the same, but for the order of sums."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if exact or got.dtype.kind in "iub" or "int" in got.dtype.name:
        return bool(np.array_equal(got, want, equal_nan=got.dtype.kind in "fc"))
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    eps = {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(got.dtype.name, 2.0**-20)
    if got.dtype.name.startswith("float8"):
        eps = 0.25
    a, b = got.astype(wide), want.astype(wide)
    finite = np.abs(b[np.isfinite(b)])
    scale = max(float(finite.max(initial=0.0)), 1e-6)
    return bool(np.allclose(a, b, rtol=4 * eps, atol=4 * eps * scale, equal_nan=True))


def failures(cases: Sequence[Case], whole: Mapping[int, list[Any]]) -> Iterator[str]:
    """What is wrong with these cases, in words; `whole` holds the uncut results by the operation's identity."""
    results, moved = run_cut(cases)
    for case, got, found in zip(cases, results, moved, strict=True):
        want = whole[id(case.alone)]
        exact = case.alone.rule.kind in ("movement", "indexing") and not case.strategy.reductions
        for i, (x, y) in enumerate(zip(got, want, strict=True)):
            if not _movable(y):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            if not close(x, y, exact):
                yield f"{case}: result {i} is {np.asarray(x)!r}, whole {np.asarray(y)!r}"
        expected = predicted(case)
        if found != expected:
            yield f"{case}: elements communicated {found}, the rule predicts {expected}"
