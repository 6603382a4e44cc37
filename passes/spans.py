"""Arrays that are most of another array: which one, from where, and the operations that take their part.

`x[:, :-1]` has one element fewer than `x`, and blocks of the one are not blocks of the other: of 1023 positions 8
devices cannot have the same number. As a *span* of `x` it need not exist: what is computed from it is computed on all
of `x`, and what must not count is left out where it would be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from passes.ir.graph import Literal, Op, Operand, Value

LARGE = 4  # a span may lack a quarter of its base: that much is computed for nothing


@dataclass(frozen=True, slots=True)
class Span:
    """Element j along `dim` of a value is element j + `offset` of `base`, for `first` <= j < `last`; others are `fill`.

    `roots` are the operations at which spans began: what is given up where a span does not pay.
    """

    base: int
    dim: int
    offset: int
    first: int
    last: int
    roots: frozenset[int]
    fill: Operand | None = None


class Maker(Protocol):
    """How operations that the program does not have are run: `slice` and `broadcast_in_dim` as JAX has them, `roll`
    (parameters by, dimension) and `within` (its first operand from `first` up to `last` along `dimension`, its second
    elsewhere)."""

    def binding(self, primitive: str, params: Mapping[str, Any], near: Any) -> Any: ...


def twos(n: int) -> int:
    """The largest power of two that divides n: how far a dimension can be cut by most meshes."""
    return n & -n


@dataclass(slots=True)
class Writer:
    """Writes operations in program order, each of those that it adds only once."""

    values: dict[int, Value]
    maker: Maker
    next_value: int
    next_op: int
    ops: list[Op] = field(default_factory=list)
    made: dict[tuple[object, ...], int] = field(default_factory=dict)
    producer: dict[int, Op] = field(default_factory=dict)

    def write(self, op: Op) -> None:
        self.ops.append(op)
        self.producer.update(dict.fromkeys(op.outputs, op))

    def shape(self, operand: Operand) -> tuple[int, ...]:
        return operand.shape if isinstance(operand, Literal) else self.values[operand].shape

    def again(
        self, op: Op, inputs: Sequence[Operand], shapes: Sequence[tuple[int, ...]], **changes: Any
    ) -> tuple[int, ...]:
        """The operation once more, on other operands and with results of other shapes."""
        like = [self.values[r] for r in op.outputs]
        binding = replace(op.binding, params={**op.binding.params, **changes}) if changes else op.binding
        return self._add(replace(op, params={**op.params, **changes}, binding=binding), inputs, shapes, like)

    def new(
        self,
        primitive: str,
        near: Op,
        inputs: Sequence[Operand],
        like: Value,
        params: Mapping[str, Any],
        shape: tuple[int, ...] | None = None,
    ) -> int:
        """An operation that the program does not have, at the place of `near`; the same one if it is there already. Its
        result is like `like`, but for its `shape`."""
        shape = shape or like.shape
        key = (primitive, *(id(o) if isinstance(o, Literal) else o for o in inputs), *sorted(params.items()))
        if key not in self.made:
            binding = self.maker.binding(primitive, params, near.binding)
            op = replace(near, primitive=primitive, params=params, regions=(), binding=binding)
            (self.made[key],) = self._add(op, inputs, (shape,), (like,))
        return self.made[key]

    def _add(
        self, op: Op, inputs: Sequence[Operand], shapes: Sequence[tuple[int, ...]], like: Sequence[Value]
    ) -> tuple[int, ...]:
        outputs = tuple(range(self.next_value, self.next_value + len(shapes)))
        for i, shape, v in zip(outputs, shapes, like, strict=True):
            self.values[i] = Value(i, shape, v.dtype, v.itemsize)
        self.next_value += len(shapes)
        self.write(replace(op, id=self.next_op, inputs=tuple(inputs), outputs=outputs))
        self.next_op += 1
        return outputs

    # ---- parts ----
    def turned(self, base: int, dim: int, by: int, near: Op) -> int:
        """The array with its elements moved `by` places on along `dim`, the last ones coming first."""
        value = self.values[base]
        by %= value.shape[dim]
        return self.new("roll", near, (base,), value, {"by": by, "dimension": dim}) if by else base

    def within(self, x: int, other: Operand, dim: int, first: int, last: int, near: Op) -> int:
        """`x` from `first` up to `last` along `dim`, `other` before and after."""
        value = self.values[x]
        if first <= 0 and last >= value.shape[dim]:
            return x
        return self.new("within", near, (x, other), value, {"first": first, "last": last, "dimension": dim})

    def strided(self, x: int, dim: int, stride: int, start: int, near: Op) -> int:
        """Every `stride`-th element of `x` along `dim`, all of them."""
        value = self.values[x]
        if stride == 1:
            return x
        n = len(value.shape)
        starts = tuple(start if d == dim else 0 for d in range(n))
        strides = tuple(stride if d == dim else 1 for d in range(n))
        shape = tuple(s // stride if d == dim else s for d, s in enumerate(value.shape))
        params = {"start_indices": starts, "limit_indices": value.shape, "strides": strides}
        return self.new("slice", near, (x,), value, params, shape)

    def stretched(self, x: Operand, dim: int, size: int, near: Op) -> int | None:
        """What is equal everywhere along `dim`, in another size; None for what is not."""
        if isinstance(x, Literal):
            return None
        value, op = self.values[x], self.producer.get(x)
        shape = tuple(size if d == dim else n for d, n in enumerate(value.shape))
        if value.shape[dim] == 1:
            params = {"shape": shape, "broadcast_dimensions": tuple(range(len(shape))), "sharding": None}
            return self.new("broadcast_in_dim", near, (x,), value, params, shape)
        if op is None or (op.primitive == "iota" and op.params["dimension"] == dim):
            return None
        if op.primitive == "broadcast_in_dim":
            to = tuple(op.params["broadcast_dimensions"])
            if dim in to and self.shape(op.inputs[0])[to.index(dim)] != 1:
                return None
        elif op.primitive != "iota":
            return None
        key = ("stretched", x, dim, size)
        if key not in self.made:
            (self.made[key],) = self.again(op, op.inputs, (shape,), shape=shape)
        return self.made[key]
