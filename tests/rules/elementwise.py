"""Examples of operations that act on each element on its own, and of values made in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry2x32_p

from tests.rules.draws import FLOATS, INTS, Draw, Example

Maker = Callable[[Draw], Example]


def _of(fn: Callable[..., Any], *ranges: tuple[float, float], dtypes: tuple[str, ...] = FLOATS) -> Maker:
    """An operation of as many floats as there are ranges."""

    def make(d: Draw) -> Example:
        shape, dtype = d.shape(d.choice((2, 1, 3))), d.choice(dtypes)
        return fn, tuple(d.floats(*shape, dtype=dtype, low=a, high=b) for a, b in ranges)

    return make


def _whole_numbers(fn: Callable[..., Any], operands: int, low: int = 0, dtypes: tuple[str, ...] = INTS) -> Maker:
    def make(d: Draw) -> Example:
        shape, dtype = d.shape(d.choice((2, 1, 3))), d.choice(dtypes)
        return fn, tuple(d.ints(*shape, low=low, high=7, dtype=dtype) for _ in range(operands))

    return make


def _scalars(d: Draw) -> Example:
    """One operand is repeated along a dimension of size 1, one is a scalar."""
    a, b = d.size(), d.size()
    return (lambda x, y: x * y + 2.0), (d.floats(a, b), d.floats(a, 1))


def _complex(fn: Callable[..., Any]) -> Maker:
    return lambda d: (fn, (d.complexes(*d.shape(2)),))


def _clamp(d: Draw) -> Example:
    shape = d.shape(2)
    return (lambda a, x: lax.clamp(-1.0, x, 1.0) + lax.clamp(a, x, a + 1)), (d.floats(*shape), d.floats(*shape))


def _select(d: Draw) -> Example:
    shape = d.shape(2)
    which = d.ints(*shape, high=3)
    return lax.select_n, (which, *(d.floats(*shape) for _ in range(3)))


def _select_by_scalar(d: Draw) -> Example:
    shape = d.shape(2)
    return lax.select_n, (d.bools(), d.floats(*shape), d.floats(*shape))


def _comparator(name: str) -> Maker:
    """Total orders of floats, as sorting uses them."""

    def make(d: Draw) -> Example:
        shape = d.shape(2)
        primitive = getattr(lax, f"{name}_p")
        return (lambda a, b: primitive.bind(a, b)), (d.floats(*shape), d.floats(*shape))

    return make


def _bitcast(to: str) -> Maker:
    def make(d: Draw) -> Example:
        last = 2 if to == "float32 from bfloat16" else d.size()
        x = d.floats(d.size(), last, dtype="bfloat16" if last == 2 and "from" in to else "float32")
        return (lambda x: lax.bitcast_convert_type(x, to.split()[0])), (x,)

    return make


def _convert(d: Draw) -> Example:
    to = d.choice(("int8", "bfloat16", "float8_e4m3fn", "int32", "bool"))
    return (lambda x: lax.convert_element_type(x, to)), (d.floats(*d.shape(2)),)


def _constrained(d: Draw) -> Example:
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(jax.devices()[:1], ("one",))
    whole = NamedSharding(mesh, PartitionSpec())
    return (lambda x: lax.with_sharding_constraint(x, whole)), (d.floats(*d.shape(2)),)


def _threefry(d: Draw) -> Example:
    n = d.size()
    ints = partial(d.ints, high=2**31, dtype="uint32")
    return (lambda k, x, y: threefry2x32_p.bind(k[0], k[1], x, y)), (ints(2), ints(n), ints(n))


_UNARY = {
    "abs": (-2, 2), "acos": (-1, 1), "acosh": (1, 3), "asin": (-1, 1), "asinh": (-2, 2), "atan": (-2, 2),
    "atanh": (-0.9, 0.9), "bessel_i0e": (-2, 2), "bessel_i1e": (-2, 2), "cbrt": (-2, 2), "ceil": (-2, 2),
    "cos": (-2, 2), "cosh": (-2, 2), "digamma": (0.5, 3), "erf": (-2, 2), "erf_inv": (-0.9, 0.9), "erfc": (-2, 2),
    "exp": (-2, 2), "exp2": (-2, 2), "expm1": (-2, 2), "floor": (-2, 2), "is_finite": (-2, 2), "lgamma": (0.5, 3),
    "log": (0.1, 3), "log1p": (-0.5, 3), "log2": (0.1, 3), "logistic": (-2, 2), "neg": (-2, 2), "round": (-2, 2),
    "rsqrt": (0.1, 3), "sign": (-2, 2), "sin": (-2, 2), "sinh": (-2, 2), "sqrt": (0.1, 3), "square": (-2, 2),
    "tan": (-1, 1), "tanh": (-2, 2),
}  # fmt: skip
_BINARY = {
    "add": (-2, 2), "atan2": (-2, 2), "div": (0.5, 2), "eq": (-2, 2), "ge": (-2, 2), "gt": (-2, 2), "le": (-2, 2),
    "lt": (-2, 2), "max": (-2, 2), "min": (-2, 2), "mul": (-2, 2), "ne": (-2, 2), "pow": (0.5, 2), "rem": (0.5, 2),
    "sub": (-2, 2),
}  # fmt: skip
_F32 = ("float32",)

EXAMPLES: Mapping[str, tuple[Maker, ...]] = {
    **{n: (_of(getattr(lax, n), r),) for n, r in _UNARY.items() if hasattr(lax, n)},
    **{n: (_of(getattr(lax, n), r, r),) for n, r in _BINARY.items()},
    **({"one_minus_square": (_of(lax.one_minus_square, (-2, 2)),)} if hasattr(lax, "one_minus_square") else {}),
    "mul": (_of(lax.mul, (-2, 2), (-2, 2)), _scalars),
    "add_any": (_of(lambda x: jax.grad(lambda y: jnp.sum(y * y + jnp.sin(y)))(x), (-2, 2)),),
    "and": (_whole_numbers(lax.bitwise_and, 2),),
    "or": (_whole_numbers(lax.bitwise_or, 2),),
    "xor": (_whole_numbers(lax.bitwise_xor, 2),),
    "not": (_whole_numbers(lax.bitwise_not, 1),),
    "clz": (_whole_numbers(lax.clz, 1),),
    "population_count": (_whole_numbers(lax.population_count, 1),),
    "shift_left": (_whole_numbers(lax.shift_left, 2),),
    "shift_right_arithmetic": (_whole_numbers(lax.shift_right_arithmetic, 2),),
    "shift_right_logical": (_whole_numbers(lax.shift_right_logical, 2),),
    "clamp": (_clamp,),
    "complex": (_of(lax.complex, (-2, 2), (-2, 2), dtypes=_F32),),
    "conj": (_complex(jnp.conj),),
    "real": (_complex(jnp.real),),
    "imag": (_complex(jnp.imag),),
    "convert_element_type": (_convert,),
    "copy": (_of(jnp.copy, (-2, 2)),),
    "select_n": (_select, _select_by_scalar),
    "stop_gradient": (_of(lax.stop_gradient, (-2, 2)),),
    "nextafter": (_of(lax.nextafter, (-2, 2), (-2, 2), dtypes=_F32),),
    "reduce_precision": (_of(lambda x: lax.reduce_precision(x, 5, 4), (-2, 2), dtypes=_F32),),
    "integer_pow": (_of(lambda x: lax.integer_pow(x, 3), (-2, 2)),),
    "igamma": (_of(lax.igamma, (0.5, 2), (0.5, 2), dtypes=_F32),),
    "igammac": (_of(lax.igammac, (0.5, 2), (0.5, 2), dtypes=_F32),),
    "igamma_grad_a": (_of(lax.igamma_grad_a, (0.5, 2), (0.5, 2), dtypes=_F32),),
    "polygamma": (_of(lambda x: lax.polygamma(jnp.ones_like(x), x), (0.5, 2), dtypes=_F32),),
    "zeta": (_of(lambda x: lax.zeta(x + 1, x), (0.5, 2), dtypes=_F32),),
    "regularized_incomplete_beta": (_of(lax.betainc, (0.5, 2), (0.5, 2), (0.1, 0.9), dtypes=_F32),),
    "eq_to": (_comparator("eq_to"),),
    "le_to": (_comparator("le_to"),),
    "lt_to": (_comparator("lt_to"),),
    "bitcast_convert_type": (_bitcast("int32"), _bitcast("uint16"), _bitcast("float32 from bfloat16")),
    "sharding_constraint": (_constrained,),
    "device_put": (_of(lambda x: jax.device_put(x, jax.memory.Space.Device), (-2, 2)),),
    "name": (_of(lambda x: checkpoint_name(x, "here"), (-2, 2)),),
    "threefry2x32": (_threefry,),
}
