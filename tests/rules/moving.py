"""Examples of operations that move, pick and make elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.rules.draws import Draw, Example

Maker = Callable[[Draw], Example]


def _broadcast(d: Draw) -> Example:
    a, b, c = d.shape(3)
    kind = d.choice(("new", "stretch", "scalar"))
    if kind == "new":
        return (lambda x: lax.broadcast_in_dim(x, (a, b, c), (1,))), (d.floats(b),)
    if kind == "stretch":
        return (lambda x: lax.broadcast_in_dim(x, (a, b, c), (0, 2))), (d.floats(a, 1),)
    return (lambda x: lax.broadcast_in_dim(x, (a, b), ())), (d.floats(),)


def _transpose(d: Draw) -> Example:
    order = d.choice(((2, 0, 1), (1, 0, 2), (0, 2, 1), (2, 1, 0)))
    return (lambda x: lax.transpose(x, order)), (d.floats(*d.shape(3)),)


def _reshape(d: Draw) -> Example:
    a, b, c = d.shape(3)
    operand, result = d.choice((
        ((a, b, c), (a, b * c)), ((a, b * c), (a, b, c)), ((a * b, c), (a, b * c)), ((a, b, c), (a * b * c,)),
        ((a, 1, b), (a, b)), ((2 * a, 3 * b), (3 * b, 2 * a)), ((a, 6, b), (a, 4, 3 * b) if b % 2 else (a, 6 * b)),
    ))  # fmt: skip
    if _product(operand) != _product(result):
        result = (_product(operand),)
    return (lambda x: lax.reshape(x, result)), (d.floats(*operand),)


def _product(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def _squeeze(d: Draw) -> Example:
    a, b = d.shape(2)
    return (lambda x: lax.squeeze(x, (1,))), (d.floats(a, 1, b),)


def _slice(d: Draw) -> Example:
    """Parts of one dimension, every so many elements of another."""
    a, b, stride = d.size(4, 6, 8, 5), d.size(), d.choice((1, 2, 3))
    n, start = b * stride, d.choice(range(stride))
    return (lambda x: lax.slice(x, (1, start), (a - 1, n), (1, stride))), (d.floats(a, n),)


def _shorter(d: Draw) -> Example:
    """A few elements of a dimension are left out, and what is left can be cut too; of another one a small part is
    taken, from anywhere."""
    a, lost, first = d.size(16, 8, 12, 20), d.choice((2, 4)), d.choice((0, 1, 2))
    b, count = d.size(8, 12, 4), d.choice((1, 2))
    count = min(count, b // 4)
    start = d.choice(range(b - count))
    dtype = d.choice(("float32", "int32"))
    return (lambda x: lax.slice(x, (first, start), (first + a - lost, start + count))), (d.floats(a, b).astype(dtype),)


def _longer(d: Draw) -> Example:
    """A few elements are added to a dimension, before or after it; another one becomes a small part of a long one."""
    a, more, first = d.size(8, 12, 16, 6), d.choice((2, 4)), d.choice((0, 1, 2))
    b, low, high = d.choice((1, 2)), d.choice((0, 3, 5)), d.choice((9, 7, 6))
    config = ((first, more - first, 0), (low, high, 0))
    return (lambda x: lax.pad(x, 0.5, config)), (d.floats(a, b),)


def _pad(d: Draw) -> Example:
    a, b = d.shape(2)
    low, high, inner = d.choice(((1, 2, 0), (0, 0, 1), (0, 0, 0), (-1, 1, 0) if b > 1 else (1, 1, 0), (0, 1, 1)))
    return (lambda x: lax.pad(x, 0.5, ((0, 0, 0), (low, high, inner)))), (d.floats(a, b),)


def _dynamic_slice(d: Draw) -> Example:
    a, b, c = d.size(4, 6, 8), d.size(), d.size()
    return (lambda x, i: lax.dynamic_slice(x, (i, 0, 0), (2, b, c))), (d.floats(a, b, c), d.ints(high=4))


def _one_position(d: Draw) -> Example:
    """One position of a dimension is read, or the nearest one that there is."""
    a, b = d.size(4, 6, 8, 12), d.size()
    return (lambda x, i: lax.dynamic_slice(x, (0, i), (b, 1))), (d.floats(b, a), d.ints(low=-1, high=a + 2))


def _dynamic_update(d: Draw) -> Example:
    """A key-value cache: one position of a sequence is written."""
    a, b, c = d.size(), d.size(4, 6, 8), d.size()
    return (
        lambda x, u, i: lax.dynamic_update_slice(x, u, (0, i, 0)),
        (d.floats(a, b, c), d.floats(a, 1, c), d.ints(high=4)),
    )


def _rows(mode: str) -> Maker:
    """An embedding table read, some indices outside."""

    def make(d: Draw) -> Example:
        rows, width = d.size(), d.size()
        high = rows if mode == "promise_in_bounds" else rows + 3
        ids = d.ints(*d.shape(d.choice((1, 2))), low=0 if mode == "promise_in_bounds" else -2, high=high)
        return (
            lambda t, i: t.at[i].get(mode=mode, wrap_negative_indices=False),
            (d.floats(rows, width), ids),
        )

    return make


def _pick(d: Draw) -> Example:
    """One label per row: a batched gather."""
    a, b, c = d.size(), d.size(), d.size()
    return (lambda x, i: jnp.take_along_axis(x, i[..., None], -1)), (d.floats(a, b, c), d.ints(a, b, high=c))


def _vmapped_rows(d: Draw) -> Example:
    a, b, c, n = d.size(), d.size(), d.size(), d.size()
    return jax.vmap(lambda t, i: t[i]), (d.floats(a, b, c), d.ints(a, n, high=b))


def _windows_read(d: Draw) -> Example:
    """Several elements of a dimension are read from each start."""
    a, n = d.size(4, 6, 8), d.size()
    return jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 3)), (None, 0)), (d.floats(a, 3), d.ints(n, high=4))


def _two_indices(d: Draw) -> Example:
    a, b, c, n = d.size(), d.size(), d.size(), d.size()
    return (lambda x, i, j: x[i, j]), (d.floats(a, b, c), d.ints(n, high=a), d.ints(n, high=b))


def _element(d: Draw) -> Example:
    a, b = d.shape(2)
    return (lambda x, i: x[i]), (d.floats(a, b), d.ints(high=a))


def _scatter(how: str, mode: str = "drop") -> Maker:
    def make(d: Draw) -> Example:
        rows, width, n = d.size(), d.size(), d.size()
        unique = how == "set"
        ids = jnp.asarray(d.random.permutation(rows + 3)[:n], "int32") if unique else d.ints(n, low=-1, high=rows + 2)
        n = ids.shape[0]
        return (
            lambda t, i, u: getattr(t.at[i], how)(u, mode=mode, wrap_negative_indices=False),
            (d.floats(rows, width, low=0.5), ids, d.floats(n, width, low=0.5)),
        )

    return make


def _segments(d: Draw) -> Example:
    """Messages summed by node, as graph networks do."""
    n, width, nodes = d.size(), d.size(), d.size()
    return (lambda x, i: jax.ops.segment_sum(x, i, nodes)), (d.floats(n, width), d.ints(n, high=nodes))


def _vmapped_scatter(d: Draw) -> Example:
    a, b, c, n = d.size(), d.size(), d.size(), d.size()
    return jax.vmap(lambda t, i, u: t.at[i].add(u)), (d.floats(a, b, c), d.ints(a, n, high=b), d.floats(a, n, c))


def _windows_written(d: Draw) -> Example:
    a, n = d.size(4, 6, 8), d.size()
    fn = lambda x, i: jax.vmap(lambda j: lax.dynamic_slice(x, (j, 0), (2, 3)))(i).sum()
    return jax.grad(fn), (d.floats(a, 3), d.ints(n, high=4))


def _subtract(d: Draw) -> Example:
    rows, width, n = d.size(), d.size(), d.size()
    fn = lambda t, i, u: t.at[i].subtract(u) if hasattr(t.at[i], "subtract") else t.at[i].add(-u)
    return fn, (d.floats(rows, width), d.ints(n, high=rows), d.floats(n, width))


def _roll(d: Draw) -> Example:
    by, axis = d.choice((1, -1, 3, 2, -5)), d.choice((0, 1))
    return (lambda x: jnp.roll(x, by, axis)), (d.floats(*[d.size(4, 8, 12, 6) for _ in range(2)]),)


def _shift(d: Draw) -> Example:
    """Positions of which each sees the one before it, the first a number or another array's element."""
    a, b = d.size(8, 4, 12, 6), d.size()
    first = d.choice((0.0, 2.5))
    return (lambda x: lax.pad(x, first, ((1, -1, 0), (0, 0, 0)))), (d.floats(a, b),)


def _put_in_front(d: Draw) -> Example:
    a, b = d.size(8, 4, 12, 6), d.size()
    return (lambda x, y: jnp.concatenate([y, x[:-1]])), (d.floats(a, b), d.floats(1, b))


def _stack(d: Draw) -> Example:
    shape, axis = d.shape(2), d.choice((0, 1, 2))
    return (lambda x, y: jnp.stack([x, y], axis)), (d.floats(*shape), d.floats(*shape))


def _along(fn: Callable[[Any, int], Any]) -> Maker:
    def make(d: Draw) -> Example:
        axis = d.choice((0, 1, 2))
        return (lambda x: fn(x, axis)), (d.floats(*d.shape(3)),)

    return make


def _concatenate(d: Draw) -> Example:
    a, b, c = d.shape(3)
    return (lambda x, y: lax.concatenate([x, y], 1)), (d.floats(a, b), d.floats(a, c))


def _split(d: Draw) -> Example:
    a, b, c = d.shape(3)
    return (lambda x: lax.split(x, (b, c), 1)), (d.floats(a, b + c),)


def _tile(d: Draw) -> Example:
    return (lambda x: jnp.tile(x, (1, 2))), (d.floats(*d.shape(2)),)


def _iota(d: Draw) -> Example:
    shape, dim, dtype = d.shape(2), d.choice((0, 1)), d.choice(("int32", "float32"))
    return (lambda x: lax.broadcasted_iota(dtype, shape, dim) + x), (d.floats().astype(dtype),)


def _barrier(d: Draw) -> Example:
    return (lambda x, y: lax.optimization_barrier((x, y))), (d.floats(*d.shape(2)), d.ints(*d.shape(1)))


def _key(d: Draw) -> Any:
    return jax.random.key(int(d.ints(high=99)))


def _bits(d: Draw) -> Example:
    shape, width = d.shape(2), d.choice(("uint8", "uint16", "uint32"))
    return (lambda k: jax.random.bits(k, shape, width)), (_key(d),)


def _rng_bits(d: Draw) -> Example:
    shape = d.shape(2)
    return (lambda s: lax.rng_bit_generator(s, shape)), (d.ints(4, high=2**31, dtype="uint32"),)


EXAMPLES: Mapping[str, tuple[Maker, ...]] = {
    "broadcast_in_dim": (_broadcast,),
    "transpose": (_transpose,),
    "reshape": (_reshape, _reshape),
    "squeeze": (_squeeze,),
    "slice": (_slice, _shorter),
    "pad": (_pad, _longer),
    "roll": (_roll,),
    "within": (_shift, _put_in_front),
    "rev": (_along(lambda x, axis: lax.rev(x, (axis,))),),
    "concatenate": (_concatenate,),
    "split": (_split,),
    "stack": (_stack,),
    "unstack": (_along(lambda x, axis: jnp.unstack(x, axis=axis)),),
    "tile": (_tile,),
    "dynamic_slice": (_dynamic_slice, _element, _one_position),
    "dynamic_update_slice": (_dynamic_update,),
    "gather": (
        _rows("fill"), _rows("clip"), _rows("promise_in_bounds"), _pick, _vmapped_rows, _windows_read, _two_indices,
    ),
    "scatter-add": (_scatter("add"), _scatter("add", "clip"), _segments, _vmapped_scatter, _windows_written),
    "scatter": (_scatter("set"),),
    "scatter-mul": (_scatter("multiply"),),
    "scatter-min": (_scatter("min"),),
    "scatter-max": (_scatter("max"),),
    "scatter-sub": (_subtract,),
    "iota": (_iota,),
    "empty": (lambda d: ((lambda x: lax.empty((4, 4), "float32") + x), (d.floats(),)),),
    "optimization_barrier": (_barrier,),
    "platform_index": (
        lambda d: ((lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)), (d.floats(*d.shape(2)),)),
    ),
    "random_bits": (_bits,),
    "random_seed": (lambda d: (jax.random.key, (d.ints(),)),),
    "random_split": (lambda d: ((lambda k: jax.random.split(k, 4)), (_key(d),)),),
    "random_fold_in": (lambda d: (jax.random.fold_in, (_key(d), d.ints())),),
    "random_wrap": (lambda d: (jax.random.wrap_key_data, (d.ints(2, dtype="uint32"),)),),
    "random_unwrap": (lambda d: (jax.random.key_data, (_key(d),)),),
    "random_clone": (lambda d: (jax.random.clone, (_key(d),)),),
    "random_gamma": (lambda d: (jax.random.gamma, (_key(d), d.floats(*d.shape(2), low=0.5))),),
    "rng_bit_generator": (_rng_bits,),
}  # fmt: skip
