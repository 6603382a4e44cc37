"""The pieces that the plain-pytree models share: dense layers, norms, attention, losses, stacks of layers.

Parameters are nested dicts of float32 arrays; a layer casts them to the type of the activations where it uses them, so
that the master copy stays float32 and a scanned layer casts only its own slice. Shapes: b batch, s sequence, e embed,
h heads, d head_dim, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]
Product = Callable[..., jax.Array]
Block = Callable[[Params, Any, jax.Array | None], Any]

REMAT = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16")
PROJECTIONS = ("heads", "flat")


def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Float32 numbers of the given standard deviation."""
    return std * jax.random.normal(key, shape, jnp.float32)


def init_dense(
    key: jax.Array, shape: tuple[int, ...], bias: tuple[int, ...] | None = None, std: float = 0.02
) -> Params:
    """A kernel of `shape` and, where `bias` gives its shape, a bias of zeros."""
    params = {"kernel": normal(key, shape, std)}
    return params if bias is None else params | {"bias": jnp.zeros(bias, jnp.float32)}


def dense(params: Params, x: jax.Array, equation: str, product: Product = jnp.einsum) -> jax.Array:
    """`einsum(equation, x, kernel) + bias` in the type of `x`; `product` takes the einsum's place."""
    y = product(equation, x, params["kernel"].astype(x.dtype))
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def layer_norm(params: Params, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Layer normalisation over the last dimension, computed in float32 (Ba et al., arXiv:1607.06450)."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + eps) * params["scale"] + params["bias"]
    return y.astype(x.dtype)


def init_layer_norm(embed: int) -> Params:
    """Scale one, bias zero, both [e]."""
    return {"scale": jnp.ones(embed, jnp.float32), "bias": jnp.zeros(embed, jnp.float32)}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest up; does nothing without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def init_projection(key: jax.Array, embed: int, heads: int, head_dim: int, layout: str, bias: bool = True) -> Params:
    """To heads: kernel [e, h, d] ("heads") or [e, h*d] ("flat")."""
    out = (heads, head_dim) if layout == "heads" else (heads * head_dim,)
    return init_dense(key, (embed, *out), out if bias else None)


def project(params: Params, x: jax.Array, heads: int, product: Product = jnp.einsum) -> jax.Array:
    """[b, s, e] -> [b, s, h, d], whichever way the kernel is laid out."""
    if params["kernel"].ndim == 3:
        return dense(params, x, "bse,ehd->bshd", product)
    y = dense(params, x, "bse,ef->bsf", product)
    return y.reshape(*y.shape[:2], heads, -1)


def init_merge(
    key: jax.Array, embed: int, heads: int, head_dim: int, layout: str, std: float, bias: bool = True
) -> Params:
    """From heads: kernel [h, d, e] ("heads") or [h*d, e] ("flat")."""
    into = (heads, head_dim) if layout == "heads" else (heads * head_dim,)
    return init_dense(key, (*into, embed), (embed,) if bias else None, std)


def merge(params: Params, x: jax.Array, product: Product = jnp.einsum) -> jax.Array:
    """[b, s, h, d] -> [b, s, e]."""
    if params["kernel"].ndim == 3:
        return dense(params, x, "bshd,hde->bse", product)
    return dense(params, x.reshape(*x.shape[:2], -1), "bsf,fe->bse", product)


def causal_mask(sequence: int) -> jax.Array:
    """[s, s] booleans: a position (row) sees itself and what came before."""
    position = jnp.arange(sequence)
    return position[:, None] >= position[None, :]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention on [b, s, h, d]; `mask` broadcasts to [b, h, query, key], the softmax is in float32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", dropout(weights, rate, dropout_key), value)


def init_attention(key: jax.Array, embed: int, heads: int, context: int | None = None, bias: bool = True) -> Params:
    """Query, key, value and out with kernels [e, h, d]; keys and values come from an array `context` wide."""
    query, key_, value, out = jax.random.split(key, 4)
    source = embed if context is None else context
    sizes = (heads, embed // heads, "heads")
    return {
        "query": init_projection(query, embed, *sizes, bias),
        "key": init_projection(key_, source, *sizes, bias),
        "value": init_projection(value, source, *sizes, bias),
        "out": init_merge(out, embed, *sizes, std=0.02),
    }


def attend(params: Params, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    """Attention of [b, s, e] to all of itself or of `context` [b, t, c]."""
    heads = params["query"]["kernel"].shape[1]
    source = x if context is None else context
    query = project(params["query"], x, heads)
    key, value = (project(params[name], source, heads) for name in ("key", "value"))
    return merge(params["out"], attention(query, key, value, None))


def init_mlp(key: jax.Array, embed: int, hidden: int, bias: bool = True) -> Params:
    """Up [e, hidden] and down [hidden, e]."""
    up, down = jax.random.split(key)
    return {
        "up": init_dense(up, (embed, hidden), (hidden,) if bias else None),
        "down": init_dense(down, (hidden, embed), (embed,) if bias else None),
    }


def mlp(params: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu) -> jax.Array:
    """Dense, activation, dense on [b, s, e]."""
    return dense(params["down"], activation(dense(params["up"], x, "bse,ef->bsf")), "bsf,fe->bse")


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over [b, s] of -log softmax(logits)[target], from float32 logits [b, s, v] without a one-hot array."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def init_layers(init_one: Callable[[jax.Array], Params], key: jax.Array, layers: int, scan: bool) -> Params:
    """`layers` layers: stacked under "layers" for a scan, otherwise "layers_0", "layers_1", ... with equal numbers."""
    keys = jax.random.split(key, layers)
    if scan:
        return {"layers": jax.vmap(init_one)(keys)}
    return {f"layers_{i}": init_one(keys[i]) for i in range(layers)}


def apply_layers(
    block: Block, params: Params, x: Any, key: jax.Array | None, *, layers: int, scan: bool, remat: str
) -> Any:
    """`block(layer_params, x, layer_key) -> x` for every layer, with what the backward pass recomputes set by `remat`.

    "none" keeps everything, "full" only the layer's input, "dots" that and the results of products with weights.
    """
    if remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        # A scan's body is compiled once, so nothing can merge the recomputation with the first computation.
        block = jax.checkpoint(block, policy=policy, prevent_cse=not scan)
    keys = None if key is None else jax.random.split(key, layers)
    if not scan:
        for i in range(layers):
            x = block(params[f"layers_{i}"], x, None if keys is None else keys[i])
        return x

    def body(carry: Any, layer: tuple[Params, jax.Array | None]) -> tuple[Any, None]:
        layer_params, layer_key = layer
        return block(layer_params, carry, layer_key), None

    x, _ = jax.lax.scan(body, x, (params["layers"], keys))
    return x
