"""Examples of products, reductions, windows, and operations on whole lines and matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import linalg

from tests.rules.draws import FLOATS, Draw, Example

Maker = Callable[[Draw], Example]


def _product(d: Draw) -> Example:
    b, m, k, n = d.shape(4)
    dtype = d.choice(FLOATS)
    return (lambda x, y: jnp.einsum("bmk,bkn->bmn", x, y)), (d.floats(b, m, k, dtype=dtype),
                                                            d.floats(b, k, n, dtype=dtype))  # fmt: skip


def _gradient_product(d: Draw) -> Example:
    b, s, m, n = d.shape(4)
    return (lambda x, y: jnp.einsum("bsm,bsn->mn", x, y)), (d.floats(b, s, m), d.floats(b, s, n))


def _mixed_product(d: Draw) -> Example:
    """Operands of few bits with a wide result: bfloat16, int8, fp8."""
    m, k, n = d.shape(3)
    dtype, wide = d.choice((("bfloat16", "float32"), ("int8", "int32"), ("float8_e4m3fn", "float32")))
    fn = lambda x, y: lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=wide)
    make = (lambda *s: d.ints(*s, low=-8, dtype="int8")) if dtype == "int8" else (lambda *s: d.floats(*s, dtype=dtype))
    return fn, (make(m, k), make(k, n))


def _complex_product(d: Draw) -> Example:
    m, k, n = d.shape(3)
    return jnp.matmul, (d.complexes(m, k), d.complexes(k, n))


def _image(d: Draw, channels: int, ndim: int = 2) -> Any:
    return d.floats(d.size(2, 1, 4), *(d.size(8, 4, 6, 12, 5) for _ in range(ndim)), channels)


_NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def _convolution(gradient: str = "") -> Maker:
    """Kernels, strides, dilations and paddings of one, two and three dimensions; `gradient` of which operand."""

    def make(d: Draw) -> Example:
        ndim = d.choice((2, 1, 2, 3))
        ins, outs = d.size(4, 2, 3, 1), d.size(2, 4, 3, 1)
        kernel = tuple(d.choice((3, 1, 2, 5)) for _ in range(ndim))
        strides = (d.choice((1, 2)),) * ndim
        dilation = d.choice((1, 1, 2))
        # Paddings as wide as the kernel are left out: XLA for CPU aborts on gradients of such convolutions.
        padding = d.choice(("SAME", "VALID", "SAME", [((k - 1) // 2,) * 2 for k in kernel]))
        fn = lambda x, w: lax.conv_general_dilated(
            x, w, strides, padding, rhs_dilation=(dilation,) * ndim, dimension_numbers=_NUMBERS[ndim]
        )
        lengths = {1: (16, 12, 24, 13), 2: (12, 8, 16, 9), 3: (8, 4, 6, 5)}[ndim]
        image = d.floats(d.size(2, 1, 4, 3), *(d.size(*lengths) for _ in range(ndim)), ins)
        args = (image, d.floats(*kernel, ins, outs))
        if not gradient:
            return fn, args
        which = 0 if gradient == "image" else 1
        cotangent = d.floats(*jax.eval_shape(fn, *args).shape)
        return (lambda x, w, g: jax.vjp(fn, x, w)[1](g)[which]), (*args, cotangent)

    return make


def _grouped(gradient: str = "") -> Maker:
    def make(d: Draw) -> Example:
        groups, per, outs = d.size(4, 2, 6), d.size(1, 2), d.size(1, 2)
        fn = lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=_NUMBERS[2], feature_group_count=groups
        )
        args = (_image(d, groups * per), d.floats(3, 3, per, groups * outs))
        if not gradient:
            return fn, args
        which = 0 if gradient == "image" else 1
        cotangent = d.floats(*jax.eval_shape(fn, *args).shape)
        return (lambda x, w, g: jax.vjp(fn, x, w)[1](g)[which]), (*args, cotangent)

    return make


def _valid(gradient: str = "") -> Maker:
    """Without padding a result is a few lines shorter than its operand, and both can be cut."""

    def make(d: Draw) -> Example:
        size, kernel, stride = d.choice(((20, 5, 1), (24, 3, 1), (28, 5, 1), (24, 9, 1), (42, 4, 2), (40, 10, 2)))
        ins, outs = d.size(4, 2, 3, 1), d.size(2, 4, 3, 1)
        fn = lambda x, w: lax.conv_general_dilated(x, w, (stride,), "VALID", dimension_numbers=_NUMBERS[1])
        args = (d.floats(d.size(2, 1, 3), size, ins), d.floats(kernel, ins, outs))
        if not gradient:
            return fn, args
        which = 0 if gradient == "image" else 1
        cotangent = d.floats(*jax.eval_shape(fn, *args).shape)
        return (lambda x, w, g: jax.vjp(fn, x, w)[1](g)[which]), (*args, cotangent)

    return make


def _transposed(d: Draw) -> Example:
    """The upsampling of a U-Net."""
    ins, outs = d.size(4, 2), d.size(4, 2)
    fn = lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=_NUMBERS[2])
    return fn, (_image(d, ins), d.floats(*d.choice(((2, 2), (3, 3), (4, 4))), ins, outs))


def _pool(fn: Callable[..., Any], gradient: bool = False) -> Maker:
    def make(d: Draw) -> Example:
        window, stride = d.choice(((2, 2), (3, 2), (3, 1), (2, 1)))
        padding = d.choice(("SAME", "VALID"))
        pool = lambda x: fn(x, (1, window, window, 1), (1, stride, stride, 1), padding)
        x = d.apart(d.size(), d.size(8, 4, 12, 7, 18), d.size(8, 4, 6, 16), d.size(4, 2, 3))
        if not gradient:
            return pool, (x,)
        return (lambda x, g: jax.vjp(pool, x)[1](g)[0]), (x, d.floats(*jax.eval_shape(pool, x).shape))

    return make


def _window(init: float, combine: Any) -> Callable[..., Any]:
    return lambda x, window, strides, padding: lax.reduce_window(x, init, combine, window, strides, padding)


def _max_pool(x: Any, window: Any, strides: Any, padding: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def _second_derivative(d: Draw) -> Example:
    """The forward derivative of max pooling."""
    pool = lambda x: _max_pool(x, (1, 2), (1, 2), "VALID")
    x = d.apart(d.size(), d.size(4, 8, 6))
    return (lambda x, t: jax.jvp(pool, (x,), (t,))[1]), (x, d.floats(*x.shape))


def _reduce(fn: Callable[..., Any], values: str = "floats") -> Maker:
    def make(d: Draw) -> Example:
        axes = d.choice(((1,), (0,), (0, 2), (0, 1, 2)))
        shape = d.shape(3)
        if values == "bools":
            return (lambda x: fn(x, axes)), (d.bools(*shape),)
        if values == "ints":
            return (lambda x: fn(x, axes)), (d.ints(*shape),)
        return (lambda x: fn(x, axes)), (d.floats(*shape, dtype=d.choice(("float32", "bfloat16"))),)

    return make


def _general_reduce(d: Draw) -> Example:
    combine = lambda x, y: (x[0] + y[0], jnp.maximum(x[1], y[1]))
    shape = d.shape(3)
    return (lambda x, y: lax.reduce((x, y), (0.0, -9.0), combine, (1,))), (d.floats(*shape), d.floats(*shape))


def _arg(fn: Callable[..., Any]) -> Maker:
    def make(d: Draw) -> Example:
        axis = d.choice((0, 1, 2))
        return (lambda x: fn(x, axis, "int32")), (d.apart(*d.shape(3)),)

    return make


def _cumulative(fn: Callable[..., Any]) -> Maker:
    def make(d: Draw) -> Example:
        axis, reverse = d.choice((0, 1, 2)), d.choice((False, True))
        return (lambda x: fn(x, axis, reverse)), (d.floats(*d.shape(3)),)

    return make


def _sort(d: Draw) -> Example:
    shape, axis = d.shape(3), d.choice((0, 1, 2))
    return (lambda x, y: lax.sort((x, y), dimension=axis, num_keys=1)), (d.apart(*shape), d.floats(*shape))


def _top_k(d: Draw) -> Example:
    return (lambda x: lax.top_k(x, 2)), (d.apart(*d.shape(2), d.size(4, 6, 8)),)


def _approx_top_k(d: Draw) -> Example:
    return (lambda x: lax.approx_max_k(x, 2)), (d.apart(*d.shape(2), d.size(4, 6, 8)),)


def _matrices(fn: Callable[[Any], Any], spd: bool = False) -> Maker:
    def make(d: Draw) -> Example:
        batch, n = d.shape(d.choice((1, 2))), d.size(3, 4, 2)
        return fn, (d.positive_definite(*batch, n=n) if spd else d.floats(*batch, n, n),)

    return make


def _rectangular(fn: Callable[[Any], Any]) -> Maker:
    return lambda d: (fn, (d.floats(d.size(), *d.choice(((4, 2), (3, 3), (2, 4)))),))


def _triangular(d: Draw) -> Example:
    b, n, m = d.size(), d.size(3, 4), d.size()
    left, lower = d.choice((True, False)), d.choice((True, False))
    a = d.positive_definite(b, n=n)
    right_side = d.floats(b, n, m) if left else d.floats(b, m, n)
    return (lambda a, y: linalg.triangular_solve(a, y, left_side=left, lower=lower)), (a, right_side)


def _tridiagonal_solve(d: Draw) -> Example:
    b, n, m = d.size(), d.size(3, 4), d.size()
    lines = d.floats(b, n), d.floats(b, n, low=3, high=4), d.floats(b, n)
    return linalg.tridiagonal_solve, (*lines, d.floats(b, n, m))


def _householder(d: Draw) -> Example:
    b = d.size()
    return linalg.householder_product, (d.floats(b, 4, 3), d.floats(b, 3))


def _fft(d: Draw) -> Example:
    kind = d.choice(("fft", "rfft", "irfft", "fft2"))
    shape = (*d.shape(2), d.size(4, 8, 6))
    if kind == "irfft":
        return (lambda x: jnp.fft.irfft(x)), (d.complexes(*shape),)
    return (lambda x: getattr(jnp.fft, kind)(x)), (d.floats(*shape),)


def _ragged(d: Draw) -> Example:
    groups, k, n = d.size(4, 2, 3), d.size(), d.size()
    counts = d.ints(groups, high=4)
    rows = 4 * groups
    return lax.ragged_dot, (d.floats(rows, k), d.floats(groups, k, n), counts)


def _ragged_gradient(which: int) -> Maker:
    def make(d: Draw) -> Example:
        groups, k, n = d.size(4, 2, 3), d.size(), d.size()
        counts = d.ints(groups, high=4)
        args = (d.floats(4 * groups, k), d.floats(groups, k, n), d.floats(4 * groups, n))
        return (
            lambda x, w, g: jax.vjp(lambda x, w: lax.ragged_dot(x, w, counts), x, w)[1](g)[which],
            args,
        )

    return make


def _scaled(d: Draw) -> Example:
    """Eight bits per element and one scale for 32 of them."""
    b, m, n = d.size(2, 1, 4), d.size(), d.size()
    fn = lambda x, y, s, t: lax.scaled_dot(
        x, y, lhs_scale=s, rhs_scale=t, dimension_numbers=(((2,), (2,)), ((0,), (0,))),
        preferred_element_type="float32",
    )  # fmt: skip
    few = "float8_e4m3fn"
    scales = [jnp.ones((b, k, 2), "float8_e8m0fnu") * 2 for k in (m, n)]
    return fn, (d.floats(b, m, 64, dtype=few), d.floats(b, n, 64, dtype=few), *scales)


def _symmetric_product(d: Draw) -> Example:
    b, n = d.size(), d.size(3, 4)
    return (lambda a, c: linalg.symmetric_product(a, c, alpha=1.0)), (d.floats(b, n, 4), d.positive_definite(b, n=n))


EXAMPLES: Mapping[str, tuple[Maker, ...]] = {
    "dot_general": (_product, _gradient_product, _mixed_product, _complex_product),
    "conv_general_dilated": (
        _convolution(), _convolution("image"), _convolution("kernel"), _grouped(), _grouped("image"),
        _grouped("kernel"), _transposed, _valid(), _valid("image"), _valid("kernel"),
    ),
    "ragged_dot_general": (_ragged, _ragged_gradient(0), _ragged_gradient(1)),
    "reduce_window_sum": (_pool(_window(0.0, lax.add)),),
    "reduce_window_max": (_pool(_max_pool),),
    "reduce_window_min": (_pool(_window(float("inf"), lax.min)),),
    "reduce_window": (_pool(_window(1.0, lax.mul)),),
    "select_and_scatter_add": (_pool(_max_pool, gradient=True),),
    "select_and_gather_add": (_second_derivative,),
    "reduce_sum": (_reduce(lambda x, axes: jnp.sum(x, axes)),),
    "reduce_max": (_reduce(jnp.max),),
    "reduce_min": (_reduce(jnp.min),),
    "reduce_prod": (_reduce(jnp.prod),),
    "reduce_and": (_reduce(jnp.all, "bools"),),
    "reduce_or": (_reduce(jnp.any, "bools"),),
    "reduce_xor": (_reduce(lambda x, axes: lax.reduce_xor(x, axes), "ints"),),
    "reduce": (_general_reduce,),
    "argmax": (_arg(lax.argmax),),
    "argmin": (_arg(lax.argmin),),
    "cumsum": (_cumulative(lax.cumsum),),
    "cumprod": (_cumulative(lax.cumprod),),
    "cummax": (_cumulative(lax.cummax),),
    "cummin": (_cumulative(lax.cummin),),
    "cumlogsumexp": (_cumulative(lax.cumlogsumexp),),
    "sort": (_sort,),
    "top_k": (_top_k,),
    "approx_top_k": (_approx_top_k,),
    "cholesky": (_matrices(linalg.cholesky, spd=True),),
    "eigh": (_matrices(lambda a: linalg.eigh(a), spd=True),),
    "eig": (_matrices(lambda a: linalg.eig(a, compute_left_eigenvectors=False)),),
    "qr": (_rectangular(lambda a: linalg.qr(a, full_matrices=False)),),
    "svd": (_rectangular(lambda a: linalg.svd(a, full_matrices=False)),),
    "lu": (_matrices(lambda a: linalg.lu(a)),),
    "schur": (_matrices(lambda a: linalg.schur(a)),),
    "householder_product": (_householder,),
    "triangular_solve": (_triangular,),
    "tridiagonal_solve": (_tridiagonal_solve,),
    "fft": (_fft,),
    "scaled_dot": (_scaled,),
    "ormqr": (lambda d: (linalg.ormqr, (d.floats(b := d.size(), 4, 4), d.floats(b, 4), d.floats(b, 4, 3))),),
    "hessenberg": (_matrices(linalg.hessenberg),),
    "tridiagonal": (_matrices(lambda a: linalg.tridiagonal(a), spd=True),),
    "symmetric_product": (_symmetric_product,),
    "cholesky_update": (lambda d: (linalg.cholesky_update, (d.positive_definite(n=4), d.floats(4))),),
    "lu_pivots_to_permutation": (
        lambda d: ((lambda p: linalg.lu_pivots_to_permutation(p, 4)), (d.ints(d.size(), 4, high=4),)),
    ),
}  # fmt: skip
