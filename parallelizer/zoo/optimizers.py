"""Optimizers that treat a kernel as a matrix: Muon (Newton-Schulz), Shampoo (eigenvalues), TNT (Cholesky), SOAP (QR).

A kernel of several dimensions is read as [batch..., rows, columns]: what a layer reads are rows, what it writes are
columns, scanned layers and experts are batch. Embeddings, biases and norms are left to Adam, as in these papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Mask = Callable[[Any], Any] | None
MATRIX_OPTIMIZERS = ("muon", "shampoo", "soap", "tnt")
# A side longer than this has no preconditioner, as in distributed Shampoo (Anil et al., arXiv:2002.09018).
LONGEST_SIDE = 8192
DAMPING = 0.1  # of a moment that is inverted, in parts of its mean eigenvalue
STACKED, EXPERTS, FROM_HEADS = "layers", "experts", "out"


def matrix_axes(path: tuple[Any, ...], leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes that are rows and those that are columns of a parameter; None for one that is no matrix."""
    names = [str(getattr(k, "key", "")) for k in path]
    if names[-1] != "kernel":
        return None
    batch = (STACKED in names) + (EXPERTS in names)
    axes = tuple(range(batch, leaf.ndim))
    if len(axes) < 2:
        return None
    cut = len(axes) - 1 if FROM_HEADS in names else 1
    return axes[:cut], axes[cut:]


def _dimension_numbers(params: Any) -> Any:
    def numbers(path: tuple[Any, ...], leaf: Any) -> Any:
        axes = matrix_axes(path, leaf)
        return None if axes is None else optax.contrib.MuonDimensionNumbers(axes[0], axes[1])

    return jax.tree_util.tree_map_with_path(numbers, params)


def muon(rate: Any, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask) -> Any:
    """Optax's Muon (Jordan et al., 2024): momentum made nearly orthogonal by five Newton-Schulz steps, Adam elsewhere.

    Updates are scaled by 0.2 sqrt(longest side), so that they move weights as far as Adam's do (arXiv:2502.16982).
    """
    return optax.contrib.muon(
        rate,
        beta=0.95,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_dimension_numbers,
    )


def shampoo(rate: Any, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask) -> Any:
    """Shampoo (arXiv:1802.09568): gradients between inverse fourth roots of their row and column moments, by `eigh`.

    The update has the length of Adam's ("grafting", arXiv:2002.09018), so the learning rates are Adam's.
    """
    return _by_kind(_scale_by_moments(b2, partial(_rooted, eps=eps)), rate, b1, b2, eps, weight_decay, mask, graft=True)


def tnt(rate: Any, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask) -> Any:
    """Tensor normal training (arXiv:2106.02925): gradients between the inverses of their row and column moments, by
    Cholesky factors; as long as Adam's update."""
    return _by_kind(_scale_by_moments(b2, _solved), rate, b1, b2, eps, weight_decay, mask, graft=True)


def soap(rate: Any, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask) -> Any:
    """SOAP (arXiv:2409.11321): Adam in the eigenbasis of Shampoo's moments, which one QR per step keeps up to date."""
    return _by_kind(_scale_by_soap(b1, b2, eps), rate, b1, b2, eps, weight_decay, mask, graft=False)


def _by_kind(
    rule: Any, rate: Any, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask, graft: bool
) -> Any:
    """`rule` for matrices and Adam for all else, then weight decay and the rate."""
    adam = optax.scale_by_adam(b1, b2, eps)

    def kinds(params: Any) -> Any:
        named = jax.tree_util.tree_map_with_path(
            lambda p, x: "other" if matrix_axes(p, x) is None else "matrix", params
        )
        return named

    parts = {"matrix": _grafted(rule, adam) if graft else rule, "other": adam}
    return optax.chain(
        optax.partition(parts, kinds), optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(rate)
    )


class GraftState(NamedTuple):
    """The states of the rule that gives the direction and of the one that gives the length."""

    direction: Any
    length: Any


def _grafted(direction: Any, length: Any) -> Any:
    """Updates along `direction`'s, each array as long as `length`'s."""

    def init(params: Any) -> GraftState:
        return GraftState(direction.init(params), length.init(params))

    def update(updates: Any, state: GraftState, params: Any = None) -> tuple[Any, GraftState]:
        along, new_direction = direction.update(updates, state.direction, params)
        far, new_length = length.update(updates, state.length, params)

        def scaled(x: jax.Array, y: jax.Array) -> jax.Array:
            norms = [jnp.sqrt(jnp.sum(jnp.square(z))) for z in (x, y)]
            return x * (norms[1] / jnp.maximum(norms[0], 1e-30))

        return jax.tree.map(scaled, along, far), GraftState(new_direction, new_length)

    return optax.GradientTransformation(init, update)


def as_matrix(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
    """[batch..., rows, columns]; of a parameter that is a matrix."""
    axes = matrix_axes(path, x)
    assert axes is not None
    rows, columns = axes
    batch = x.shape[: rows[0]]
    return x.reshape(*batch, math.prod(x.shape[a] for a in rows), math.prod(x.shape[a] for a in columns))


def _moments(g: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
    """G G' and G' G over the batch; None for a side that is too long."""
    rows, columns = g.shape[-2:]
    left = jnp.einsum("...ij,...kj->...ik", g, g) if rows <= LONGEST_SIDE else None
    right = jnp.einsum("...ji,...jk->...ik", g, g) if columns <= LONGEST_SIDE else None
    return left, right


def _both(f: Callable[..., Any], *sides: tuple[Any, Any]) -> tuple[Any, Any]:
    """`f` on each side that has a preconditioner."""
    first, second = (None if s[0] is None else f(*s) for s in zip(*sides, strict=True))
    return first, second


def _between(left: jax.Array | None, g: jax.Array, right: jax.Array | None) -> jax.Array:
    """left g right, without what is None."""
    if left is not None:
        g = jnp.einsum("...ij,...jk->...ik", left, g)
    return g if right is None else jnp.einsum("...ij,...jk->...ik", g, right)


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def inverse_root(moment: jax.Array, power: int, eps: float) -> jax.Array:
    """(moment + eps I)^(-1/power) of symmetric matrices [..., n, n]."""
    values, vectors = jnp.linalg.eigh(moment)
    roots = jnp.maximum(values, 0.0) + eps
    return jnp.einsum("...ij,...j,...kj->...ik", vectors, roots ** (-1.0 / power), vectors)


def solve_damped(moment: jax.Array, x: jax.Array) -> jax.Array:
    """(moment + d I)^-1 x of symmetric matrices [..., n, n] and x [..., n, m]; d is DAMPING times their mean
    eigenvalue."""
    n = moment.shape[-1]
    damping = DAMPING * jnp.trace(moment, axis1=-2, axis2=-1) / n + 1e-30
    factor = jax.lax.linalg.cholesky(moment + damping[..., None, None] * jnp.eye(n, dtype=moment.dtype))
    half = jax.lax.linalg.triangular_solve(factor, x, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)


def _rooted(moments: tuple[Any, Any], g: jax.Array, eps: float) -> jax.Array:
    left, right = _both(lambda m: inverse_root(m, 4, eps), moments)
    return _between(left, g, right)


def _solved(moments: tuple[Any, Any], g: jax.Array) -> jax.Array:
    left, right = moments
    if left is not None:
        g = solve_damped(left, g)
    return g if right is None else _transposed(solve_damped(right, _transposed(g)))


class MomentState(NamedTuple):
    """Per parameter, the moments of rows and columns."""

    moments: Any


def _each(f: Callable[..., Any], updates: Any, *rest: Any) -> list[tuple[Any, ...]]:
    """`f(matrix, *of the rest)` for every parameter, in tree order."""
    flat = jax.tree_util.tree_leaves_with_path(updates)
    return [f(as_matrix(path, x), *others) for (path, x), *others in zip(flat, *rest, strict=True)]


def _like(updates: Any, matrices: list[jax.Array]) -> Any:
    leaves, structure = jax.tree.flatten(updates)
    return structure.unflatten(m.reshape(x.shape) for m, x in zip(matrices, leaves, strict=True))


def _scale_by_moments(decay: float, between: Callable[[tuple[Any, Any], jax.Array], jax.Array]) -> Any:
    """Updates are what `between` makes of the moments and a gradient."""

    def init(params: Any) -> MomentState:
        return MomentState(_each(lambda m: _moments(jnp.zeros_like(m)), params))

    def one(g: jax.Array, moments: tuple[Any, Any]) -> tuple[jax.Array, tuple[Any, Any]]:
        new = _both(lambda old, now: decay * old + (1 - decay) * now, moments, _moments(g))
        return between(new, g), new

    def update(updates: Any, state: MomentState, params: Any = None) -> tuple[Any, MomentState]:
        del params
        results = _each(one, updates, state.moments)
        return _like(updates, [r[0] for r in results]), MomentState([r[1] for r in results])

    return optax.GradientTransformation(init, update)


class SoapState(NamedTuple):
    """Per parameter, as matrices: moments and bases of rows and columns, and Adam's moments, the second one rotated."""

    steps: jax.Array
    moments: Any
    bases: Any
    mu: Any
    nu: Any


def _scale_by_soap(b1: float, b2: float, eps: float) -> Any:
    def zeros(params: Any) -> list[Any]:
        return _each(jnp.zeros_like, params)

    def identity(m: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)

    def init(params: Any) -> SoapState:
        moments = [_moments(m) for m in zeros(params)]
        bases = [_both(identity, m) for m in moments]
        return SoapState(jnp.zeros((), jnp.int32), moments, bases, zeros(params), zeros(params))

    def one(g: jax.Array, moments: Any, bases: Any, mu: Any, nu: Any, steps: jax.Array) -> tuple[Any, ...]:
        left, right = bases
        back = _both(_transposed, bases)
        mu = b1 * mu + (1 - b1) * g
        turned, mean = _between(back[0], g, right), _between(back[0], mu, right)
        nu = b2 * nu + (1 - b2) * jnp.square(turned)
        step = (mean / (1 - b1**steps)) / (jnp.sqrt(nu / (1 - b2**steps)) + eps)
        moments = _both(lambda old, now: b2 * old + (1 - b2) * now, moments, _moments(g))
        new = _both(lambda m, q: jnp.linalg.qr(m @ q + eps * q)[0], moments, bases)
        return _between(left, step, back[1]), moments, new, mu, nu

    def update(updates: Any, state: SoapState, params: Any = None) -> tuple[Any, SoapState]:
        del params
        steps = state.steps + 1
        rest = (state.moments, state.bases, state.mu, state.nu, [steps] * len(state.mu))
        changes, *new = (list(column) for column in zip(*_each(one, updates, *rest), strict=True))
        return _like(updates, changes), SoapState(steps, *new)

    return optax.GradientTransformation(init, update)
