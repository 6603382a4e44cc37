"""Products with weights in eight bits: int8 with straight-through gradients, and fp8 forwards and backwards.

Both take einsum equations whose left array keeps the order of its remaining dimensions in front of the right one's, as
all products with weights here do. Numbers are scaled to the type's range anew in every step ("current scaling").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

Product = Callable[[str, jax.Array, jax.Array], jax.Array]
INT8_MAX = 127.0
SMALLEST = 1e-12  # no array is scaled by more than its inverse: one of zeros stays zeros


def _letters(equation: str) -> tuple[str, str, str]:
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    return left, right, out


def _kept(letters: str, other: str) -> tuple[str, tuple[int, ...]]:
    """The letters of an array that its product with `other` keeps, and the axes that it sums over."""
    return "".join(a for a in letters if a not in other), tuple(i for i, a in enumerate(letters) if a in other)


def _scaled(x: jax.Array, axes: tuple[int, ...] | None, largest: float) -> tuple[jax.Array, jax.Array]:
    """Float32 numbers in +-`largest`, and what to multiply them by; one scale for all of `axes` (None: for all)."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), SMALLEST) / largest
    return x / scale, scale


def _int8_forward(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    left, right, out = _letters(equation)
    (rows, x_axes), (columns, kernel_axes) = _kept(left, right), _kept(right, left)
    small_x, x_scale = _scaled(x, x_axes, INT8_MAX)
    small_kernel, kernel_scale = _scaled(kernel, kernel_axes, INT8_MAX)
    whole = [jnp.round(a).astype(jnp.int8) for a in (small_x, small_kernel)]
    y = jnp.einsum(equation, *whole, preferred_element_type=jnp.int32).astype(jnp.float32)
    for letters, scale in ((rows, x_scale), (columns, kernel_scale)):
        sizes = iter(n for n, a in zip(scale.shape, left if letters is rows else right, strict=True) if a in letters)
        y = y * scale.reshape([next(sizes) if a in letters else 1 for a in out])
    return y.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def int8_product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`einsum(equation, x, kernel)` in int8 with int32 sums: a scale per row of x and per column of the kernel.

    Gradients are those of the exact product, straight through the rounding (Bengio et al., arXiv:1308.3432).
    """
    return _int8_forward(equation, x, kernel)


def _int8_keep(equation: str, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _int8_forward(equation, x, kernel), (x, kernel)


def _backward_equations(equation: str) -> tuple[str, str]:
    left, right, out = _letters(equation)
    return f"{out},{right}->{left}", f"{left},{out}->{right}"


def _int8_back(equation: str, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    to_x, to_kernel = _backward_equations(equation)
    return jnp.einsum(to_x, g, kernel), jnp.einsum(to_kernel, x, g)


int8_product.defvjp(_int8_keep, _int8_back)


def _fp8(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """`x` in an eight-bit float type that it fills, and its one scale, a scalar."""
    small, scale = _scaled(x, None, float(jnp.finfo(dtype).max))
    return small.astype(dtype), scale.reshape(())


def _fp8_einsum(equation: str, a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.einsum(equation, a[0], b[0], preferred_element_type=jnp.float32) * (a[1] * b[1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fp8_product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`einsum(equation, x, kernel)` of e4m3 numbers; backwards the gradient is e5m2 (arXiv:2209.05433)."""
    return _fp8_keep(equation, x, kernel)[0]


def _fp8_keep(equation: str, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    small_x, small_kernel = _fp8(x, jnp.float8_e4m3fn), _fp8(kernel, jnp.float8_e4m3fn)
    # Zeros of the types that came in: the gradients leave in them.
    types = jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype)
    return _fp8_einsum(equation, small_x, small_kernel).astype(x.dtype), (small_x, small_kernel, *types)


def _fp8_back(equation: str, kept: tuple[Any, ...], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel, x_type, kernel_type = kept
    to_x, to_kernel = _backward_equations(equation)
    small = _fp8(g, jnp.float8_e5m2)
    return (
        _fp8_einsum(to_x, small, kernel).astype(x_type.dtype),
        _fp8_einsum(to_kernel, x, small).astype(kernel_type.dtype),
    )


fp8_product.defvjp(_fp8_keep, _fp8_back)

PRODUCTS: Mapping[str, Product] = MappingProxyType({"exact": jnp.einsum, "int8": int8_product, "fp8": fp8_product})
