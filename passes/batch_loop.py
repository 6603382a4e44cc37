"""Writes one loop over microbatches: operations on the parts of one, and what is accumulated or stacked from all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from passes.batchwise import Batchwise, Cut, MicrobatchError, Part, State
from passes.ir.control import has_control
from passes.ir.graph import Graph, Literal, Op, Operand, Region, Value
from passes.rules import rule_for
from passes.spans import Maker

_WIDER = {"bfloat16": "float32", "float16": "float32"}
_INDEX = -1  # among the names of an iteration: the number of the microbatch
_INDEX_SLICE = (-1, 0)


def _scan_index(op: Op) -> tuple[int, dict[str, int]]:
    n = int(op.params["num_consts"])
    return n, {"num_consts": n + 1}


def _while_index(op: Op) -> tuple[int, dict[str, int]]:
    n, m = int(op.params["cond_nconsts"]), int(op.params["body_nconsts"])
    return n + m, {"body_nconsts": m + 1}


_INDEX_ENTERS: Mapping[str, Callable[[Op], tuple[int, dict[str, int]]]] = {
    "scan": _scan_index,
    "while": _while_index,
    "cond": lambda op: (len(op.inputs), {}),
}
"""Where one more operand that is the same in every iteration enters, and the parameters that count such operands."""


def _index_place(op: Op, region: int) -> int | None:
    """Where it enters a body."""
    if op.primitive == "while":
        return int(op.params["body_nconsts"]) if region else None
    return int(op.params["num_consts"]) if op.primitive == "scan" else len(op.regions[region].inputs)


@dataclass(slots=True)
class Numbers:
    """The table of values, and the numbers that the next value and operation get."""

    values: dict[int, Value]
    next_value: int
    next_op: int

    def value(self, shape: tuple[int, ...], dtype: str, itemsize: int) -> int:
        self.values[self.next_value] = Value(self.next_value, shape, dtype, itemsize)
        self.next_value += 1
        return self.next_value - 1

    def op(self) -> int:
        self.next_op += 1
        return self.next_op - 1


@dataclass(slots=True)
class LoopWriter:
    """One loop. `inside` maps values of the program to those of an iteration, `passed` those that each iteration reads
    whole, `slices` (value, dimension) of which it reads its part, `before` are operations in front of the loop."""

    graph: Graph
    found: Batchwise
    numbers: Numbers
    maker: Maker
    inside: dict[int, int] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)
    slices: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # -> (stacked outside, inside)
    locals: dict[tuple[int, int], int] = field(default_factory=dict)
    before: list[Op] = field(default_factory=list)
    body: list[Op] = field(default_factory=list)
    near: Op | None = None

    # ---- reading ----
    def read(self, operand: Operand, near: Op) -> Operand:
        """An operand as an iteration has it."""
        if isinstance(operand, Literal) or operand in self.graph.constants:
            return operand
        if operand in self.inside:
            return self.inside[operand]
        state = self.found.states.get(operand)
        if isinstance(state, Cut):
            return self.slice(operand, state.dim, near)
        if operand not in self.passed:
            self.passed[operand] = self._like(operand, self.graph.values[operand].shape)
        return self.passed[operand]

    def slice(self, value: int, dim: int, near: Op) -> int:
        """The part of a value that an iteration has, stacked in front of the loop."""
        if (value, dim) not in self.slices:
            like = self.graph.values[value]
            parts, axis = self.found.parts(like.shape, dim)
            stacked = self.new(self.before, "reshape", near, (value,), parts, like, _reshaped(parts))
            shape = (parts[axis], *parts[:axis], *parts[axis + 1 :])
            if axis:
                order = (axis, *(d for d in range(len(parts)) if d != axis))
                stacked = self.new(self.before, "transpose", near, (stacked,), shape, like, {"permutation": order})
            part = self._part(like.shape, Cut(dim))
            if shape[1:] != part:
                merged = (shape[0], *part)
                stacked = self.new(self.before, "reshape", near, (stacked,), merged, like, _reshaped(merged))
            self.slices[value, dim] = (stacked, self._like(value, part))
        return self.slices[value, dim][1]

    def local(self, operand: Operand, dim: int, near: Op) -> Operand:
        """The part of a whole operand that an iteration reads. What is spread or computed element by element is made
        for this part alone; other arrays are sliced."""
        if isinstance(operand, Literal):
            return operand
        if (operand, dim) in self.locals:
            return self.locals[operand, dim]
        op = self.found.producer.get(operand)
        if op is not None and op.primitive == "optimization_barrier":
            # It orders what is computed again; an array that is only spread needs no order.
            return self.local(op.inputs[op.outputs.index(operand)], dim, near)
        per_microbatch = operand in self.found.states
        if op is None or not self._spreads(op, operand, dim):
            if per_microbatch:
                raise MicrobatchError("what is computed with a microbatch is read for the whole batch", op or near)
            return self.slice(operand, dim, near)
        rule = rule_for(self.graph, op)
        factor = rule.results[op.outputs.index(operand)][dim][0]
        inputs: list[Operand] = []
        for o, dims in zip(op.inputs, rule.operands, strict=True):
            places = [d for d, f in enumerate(dims) if f and f[0] == factor]
            inputs.append(self.local(o, places[0], op) if places else self.read(o, op))
        shape = self._part(self.graph.values[operand].shape, Cut(dim))
        (made,) = self._again(self.body, op, inputs, [shape])
        self.locals[operand, dim] = made
        return made

    def _spreads(self, op: Op, value: int, dim: int) -> bool:
        rule = rule_for(self.graph, op)
        dims = rule.results[0]
        return (
            len(op.outputs) == 1
            and not has_control(op)
            and rule.kind in ("elementwise", "movement")
            and bool(dims[dim])
            and dims[dim][0] in rule.cuttable()
            and rule.fits(dims[dim][0], self.found.count)
            and not rule.exchanges({dims[dim][0]})
        )

    # ---- writing ----
    def write(self, op: Op) -> None:
        """An operation of the program, on the parts of one microbatch."""
        self.near = self.near or op
        inputs = [
            self.local(o, self.found.demands[op.id, i], op) if (op.id, i) in self.found.demands else self.read(o, op)
            for i, o in enumerate(op.inputs)
        ]
        self._put(self.body, op, inputs, self.inside)

    def _put(self, to: list[Op], op: Op, inputs: Sequence[Operand], names: dict[int, int]) -> None:
        shapes = [self._part(self.graph.values[r].shape, self.found.states.get(r)) for r in op.outputs]
        if op.id in self.found.made_whole:
            whole = self._again(to, op, inputs, [self.graph.values[r].shape for r in op.outputs])
            names.update(zip(op.outputs, whole, strict=True))
            state = self.found.states[op.outputs[0]]
            assert isinstance(state, Cut)
            names[op.outputs[0]] = self._picked(to, op, whole[0], state.dim, names[_INDEX])
            return
        regions: tuple[Region, ...] = ()
        indexed = has_control(op) and self._slices_inside(op)
        if has_control(op):
            regions = tuple(self._region(r, _index_place(op, k) if indexed else None) for k, r in enumerate(op.regions))
        if indexed:
            place, counted = _INDEX_ENTERS[op.primitive](op)
            inputs = [*inputs[:place], names.get(_INDEX) or self._index(op), *inputs[place:]]
            op = replace(op, params={**op.params, **counted})
        names.update(zip(op.outputs, self._again(to, op, inputs, shapes, regions), strict=True))

    def _slices_inside(self, op: Op) -> bool:
        """Whether a loop or branch has to know which microbatch it is in."""
        return any(
            inner.id in self.found.made_whole or self._slices_inside(inner) for r in op.regions for inner in r.ops
        )

    def _index(self, near: Op) -> int:
        """The number of the microbatch."""
        if _INDEX_SLICE not in self.slices:
            like = Value(-1, (), "int32", 4)
            params = {"dtype": "int32", "shape": (self.found.count,), "dimension": 0, "sharding": None}
            numbers = self.new(self.before, "iota", near, (), (self.found.count,), like, params)
            self.slices[_INDEX_SLICE] = (numbers, self.numbers.value((), "int32", 4))
        return self.slices[_INDEX_SLICE][1]

    def _picked(self, to: list[Op], op: Op, whole: int, dim: int, index: int) -> int:
        """This microbatch's part of an array that was made for the whole batch."""
        like = self.numbers.values[whole]
        parts, axis = self.found.parts(like.shape, dim)
        split = self.new(to, "reshape", op, (whole,), parts, like, _reshaped(parts))
        one = (*parts[:axis], 1, *parts[axis + 1 :])
        zero = Literal(np.int32(0), (), "int32", 4)
        starts = [index if d == axis else zero for d in range(len(parts))]
        part = self.new(to, "dynamic_slice", op, (split, *starts), one, like, {"slice_sizes": one})
        shape = self._part(like.shape, Cut(dim))
        return self.new(to, "reshape", op, (part,), shape, like, _reshaped(shape))

    def _region(self, region: Region, place: int | None) -> Region:
        """A body on the parts of one microbatch; its number enters at `place`."""
        names: dict[int, int] = {}
        for v in region.inputs:
            names[v] = self._like(v, self._part(self.graph.values[v].shape, self.found.states.get(v)))
        inputs = [names[v] for v in region.inputs]
        if place is not None:
            names[_INDEX] = self.numbers.value((), "int32", 4)
            inputs.insert(place, names[_INDEX])
        ops: list[Op] = []

        def named(o: Operand) -> Operand:
            return o if isinstance(o, Literal) else names.get(o, o)

        for op in region.ops:
            self._put(ops, op, [named(o) for o in op.inputs], names)
        return replace(region, inputs=tuple(inputs), outputs=tuple(named(o) for o in region.outputs), ops=tuple(ops))

    def _again(
        self, to: list[Op], op: Op, inputs: Sequence[Operand], shapes: Sequence[tuple[int, ...]],
        regions: tuple[Region, ...] = (),
    ) -> list[int]:  # fmt: skip
        """The operation on other operands, with results of other shapes."""
        results = [self._like(r, s) for r, s in zip(op.outputs, shapes, strict=True)]
        local = [o.shape if isinstance(o, Literal) else self.numbers.values[o].shape for o in inputs]
        changes = _local_params(op, [self.graph.shape_of(o) for o in op.inputs], local, shapes)
        binding = replace(op.binding, params={**op.binding.params, **changes}) if changes else op.binding
        params = {**op.params, **changes} if changes else op.params
        made = replace(
            op, id=self.numbers.op(), inputs=tuple(inputs), outputs=tuple(results), params=params, regions=regions,
            binding=binding,
        )  # fmt: skip
        to.append(made)
        return results

    def new(
        self, to: list[Op], primitive: str, near: Op, inputs: Sequence[Operand], shape: tuple[int, ...], like: Value,
        params: Mapping[str, Any], result: int | None = None,
    ) -> int:  # fmt: skip
        """An operation that the program does not have; its result has the element type of `like`."""
        out = self.numbers.value(shape, like.dtype, like.itemsize) if result is None else result
        binding = self.maker.binding(primitive, params, near.binding)
        number = self.numbers.op()
        to.append(Op(number, primitive, tuple(inputs), (out,), params, near.source, near.scope, (), binding))
        return out

    def _like(self, value: int, shape: tuple[int, ...]) -> int:
        known = self.graph.values[value]
        return self.numbers.value(shape, known.dtype, known.itemsize)

    def _part(self, shape: tuple[int, ...], state: State | None) -> tuple[int, ...]:
        if not isinstance(state, Cut):
            return shape
        d = state.dim
        return (*shape[:d], shape[d] // self.found.count, *shape[d + 1 :])

    # ---- what leaves ----
    def close(self, handed: Sequence[int]) -> list[Op]:
        """The operations before the loop, the loop, and those after it that bring what it hands out into its form."""
        near = self.near
        assert near is not None  # a loop hands something out
        carried = [v for v in handed if not isinstance(self.found.states[v], Cut)]
        stacked = [v for v in handed if isinstance(self.found.states[v], Cut)]
        after: list[Op] = []
        carries = [self._carry(v, after) for v in carried]
        stacks = [self._stack(v, after) for v in stacked]
        inputs = (*self.passed, *(c[0] for c in carries), *(s for s, _ in self.slices.values()))
        inner = (*self.passed.values(), *(c[1] for c in carries), *(p for _, p in self.slices.values()))
        outputs = (*(c[2] for c in carries), *(self.inside[v] for v in stacked))
        region = Region(inner, outputs, tuple(self.body), self.found.count)
        params = {
            "num_consts": len(self.passed), "num_carry": len(carries), "length": self.found.count, "reverse": False,
            "unroll": 1,
        }  # fmt: skip
        results = (*(c[3] for c in carries), *stacks)
        binding = self.maker.binding("scan", params, near.binding)
        number = self.numbers.op()
        loop = Op(number, "scan", inputs, results, params, near.source, near.scope, (region,), binding)
        return [*self.before, loop, *after]

    def _carry(self, v: int, after: list[Op]) -> tuple[int, int, int, int]:
        """(start, at the beginning of an iteration, at its end, at the end of the loop) of what is accumulated."""
        value, state, near = self.graph.values[v], self.found.states[v], self.found.producer[v]
        combine = state.combine if isinstance(state, Part) else "last"
        dtype = _WIDER.get(value.dtype, value.dtype) if combine == "sum" else value.dtype
        wide = value if dtype == value.dtype else Value(-1, value.shape, dtype, np.dtype(dtype).itemsize)
        start = self._start(wide, combine, near)
        enters = self.numbers.value(wide.shape, wide.dtype, wide.itemsize)
        term = self.inside[v]
        if wide is not value:
            term = self.new(self.body, "convert_element_type", near, (term,), value.shape, wide, _converted(dtype))
        leaves = term
        if combine != "last":
            name = {"sum": "add", "max": "max", "min": "min"}[combine]
            leaves = self.new(self.body, name, near, (enters, term), value.shape, wide, {})
        if wide is value:
            return start, enters, leaves, v
        total = self.numbers.value(wide.shape, wide.dtype, wide.itemsize)
        self.new(after, "convert_element_type", near, (total,), value.shape, value, _converted(value.dtype), result=v)
        return start, enters, leaves, total

    def _start(self, value: Value, combine: str, near: Op) -> int:
        try:
            number, plain = _neutral(combine, value.dtype), value
        except TypeError:
            if value.dtype.startswith("key"):
                raise MicrobatchError("keys that are made with a microbatch are read outside", near) from None
            number, plain = _neutral(combine, "float32"), Value(-1, value.shape, "float32", 4)
        literal = Literal(number, (), plain.dtype, plain.itemsize)
        params = {"shape": value.shape, "broadcast_dimensions": (), "sharding": None}
        start = self.new(self.before, "broadcast_in_dim", near, (literal,), value.shape, plain, params)
        if plain is value:
            return start
        return self.new(
            self.before, "convert_element_type", near, (start,), value.shape, value, _converted(value.dtype)
        )

    def _stack(self, v: int, after: list[Op]) -> int:
        """What every microbatch yields a part of, put together along its dimension."""
        value, state, near = self.graph.values[v], self.found.states[v], self.found.producer[v]
        assert isinstance(state, Cut)
        part, m = self._part(value.shape, state), self.found.count
        made = stacked = self.numbers.value((m, *part), value.dtype, value.itemsize)
        parts, axis = self.found.parts(value.shape, state.dim)
        shape = (m, *parts[:axis], *parts[axis + 1 :])
        if shape[1:] != part:
            made = self.new(after, "reshape", near, (made,), shape, value, _reshaped(shape))
        if axis:
            order = (*range(1, axis + 1), 0, *range(axis + 1, len(parts)))
            made = self.new(after, "transpose", near, (made,), parts, value, {"permutation": order})
        self.new(after, "reshape", near, (made,), value.shape, value, _reshaped(value.shape), result=v)
        return stacked


def _reshaped(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"new_sizes": shape, "dimensions": None, "sharding": None}


def _converted(dtype: str) -> dict[str, Any]:
    return {"new_dtype": dtype, "weak_type": False, "sharding": None}


def _neutral(combine: str, dtype: str) -> Any:
    """What an accumulation starts from. TypeError for element types that numpy does not have."""
    kind = np.dtype(dtype)
    if combine in ("sum", "last"):
        return kind.type(0)
    if kind.kind == "f":
        return kind.type(-np.inf if combine == "max" else np.inf)
    if kind.kind == "b":
        return kind.type(combine == "min")
    return kind.type(np.iinfo(kind).min if combine == "max" else np.iinfo(kind).max)


def _local_params(
    op: Op, whole: Sequence[tuple[int, ...]], local: Sequence[tuple[int, ...]], results: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """The parameters that hold sizes, for parts of the arrays."""
    params = op.params
    if op.primitive in ("broadcast_in_dim", "iota") and tuple(params["shape"]) != results[0]:
        return {"shape": results[0]}
    if op.primitive == "reshape" and tuple(params["new_sizes"]) != results[0]:
        return {"new_sizes": results[0]}
    if not local or whole[0] == local[0]:
        return {}
    if op.primitive == "slice":
        ends = zip(params["limit_indices"], whole[0], local[0], strict=True)
        return {"limit_indices": tuple(end - (n - k) for end, n, k in ends)}
    if op.primitive in ("dynamic_slice", "gather"):
        sizes = zip(params["slice_sizes"], whole[0], local[0], strict=True)
        return {"slice_sizes": tuple(k if size == n != k else size for size, n, k in sizes)}
    return {}
