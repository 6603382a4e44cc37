"""A layer of experts: a router gives each token to its best experts, in one of two ways.

"onehot" (GShard, arXiv:2006.16668): tokens lie in groups, each expert takes at most `capacity` tokens of a group, and
products with one-hot arrays carry tokens to their experts' places and back. What does not fit is left out.
"sorted" (MegaBlocks, arXiv:2211.15841): tokens of a group are sorted by expert, and the experts' products are ragged;
nothing is left out.

Shapes: g groups, t tokens of a group, e embed, k choices per token, x experts, c places of an expert, f hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn

Params = dict[str, Any]
DISPATCH = ("onehot", "sorted")


def init_experts(keys: jax.Array, experts: int, embed: int, hidden: int, gated: bool, std: float) -> Params:
    """{gate, up, down} kernels [x, e, f], [x, e, f], [x, f, e], from three keys; no gate where not `gated`."""
    params = {
        "up": nn.init_dense(keys[0], (experts, embed, hidden)),
        "down": nn.init_dense(keys[1], (experts, hidden, embed), std=std),
    }
    return params | {"gate": nn.init_dense(keys[2], (experts, embed, hidden))} if gated else params


def route(router: Params, x: jax.Array, top_k: int, normalize: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights and numbers of the `top_k` experts of every token, [g, t, k], and their balance loss.

    Probabilities are a float32 softmax over all experts; `normalize` makes the chosen ones sum to one. The balance loss
    is x times the sum over experts of (share of choices) * (mean probability): 1 where all are used alike (Switch,
    arXiv:2101.03961, equation 4).
    """
    logits = jnp.einsum("gte,ex->gtx", x.astype(jnp.float32), router["kernel"])
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, top_k)
    if normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    experts = logits.shape[-1]
    share = jnp.mean(jax.nn.one_hot(chosen, experts), axis=(0, 1, 2))
    balance = experts * jnp.sum(share * jnp.mean(probabilities, axis=(0, 1)))
    return weights, chosen, balance


def places(weights: jax.Array, chosen: jax.Array, experts: int, capacity: int) -> jax.Array:
    """[g, t, x, c]: the weight of every token at its place in each of its experts, zero elsewhere.

    First choices of all tokens of a group take their places before second choices, and earlier tokens before later
    ones; who comes when `capacity` places are taken gets none.
    """
    taken = jnp.zeros((chosen.shape[0], 1, experts), jnp.int32)
    combine = jnp.zeros((*chosen.shape[:2], experts, capacity), weights.dtype)
    for i in range(chosen.shape[-1]):
        mask = jax.nn.one_hot(chosen[..., i], experts, dtype=jnp.int32)
        place = jnp.cumsum(mask, axis=1) - mask + taken
        taken = taken + jnp.sum(mask, axis=1, keepdims=True)
        kept = mask * (place < capacity)
        own = jnp.sum(place * kept, axis=-1)
        spread = weights[..., i, None] * kept.astype(weights.dtype)
        combine = combine + spread[..., None] * jax.nn.one_hot(own, capacity, dtype=weights.dtype)[:, :, None, :]
    return combine


def onehot_experts(params: Params, x: jax.Array, weights: jax.Array, chosen: jax.Array, capacity: int) -> jax.Array:
    """The experts' weighted results for tokens [g, t, e], dispatched by products with one-hot arrays."""
    combine = places(weights, chosen, params["up"]["kernel"].shape[0], capacity).astype(x.dtype)
    dispatch = (combine > 0).astype(x.dtype)
    rows = jnp.einsum("gtxc,gte->xgce", dispatch, x)
    hidden = _hidden(params, lambda kernel: nn.dense(kernel, rows, "xgce,xef->xgcf"))
    return jnp.einsum("gtxc,xgce->gte", combine, nn.dense(params["down"], hidden, "xgcf,xfe->xgce"))


def sorted_experts(params: Params, x: jax.Array, weights: jax.Array, chosen: jax.Array) -> jax.Array:
    """The experts' weighted results for tokens [g, t, e], sorted by expert within each group."""
    groups, tokens, choices = chosen.shape
    flat = chosen.reshape(groups, tokens * choices)
    order = jnp.argsort(flat, axis=-1)
    experts = params["up"]["kernel"].shape[0]
    sizes = jnp.sum(jax.nn.one_hot(flat, experts, dtype=jnp.int32), axis=1)
    rows = jnp.take_along_axis(x, (order // choices)[..., None], axis=1)
    y = _ragged(_hidden(params, partial(_ragged, rows, sizes=sizes)), params["down"], sizes)
    back = jnp.take_along_axis(y, jnp.argsort(order, axis=-1)[..., None], axis=1)
    return jnp.einsum("gtke,gtk->gte", back.reshape(groups, tokens, choices, -1), weights.astype(x.dtype))


def _hidden(params: Params, product: Callable[[Params], jax.Array]) -> jax.Array:
    """silu(gate) * up, or gelu(up) where there is no gate; `product` multiplies the rows by a kernel."""
    up = product(params["up"])
    return jax.nn.silu(product(params["gate"])) * up if "gate" in params else jax.nn.gelu(up)


def _ragged(x: jax.Array, params: Params, sizes: jax.Array) -> jax.Array:
    """[g, r, i] -> [g, r, o]: the first sizes[g, 0] rows by the first expert's kernel, the next by the second's, ..."""
    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((2,), (1,)), ((), ())), lhs_ragged_dimensions=[1], rhs_group_dimensions=[0]
    )
    return jax.lax.ragged_dot_general(x, params["kernel"].astype(x.dtype), sizes, dimensions)
