"""Llama 3: RMSNorm, rotary positions, grouped-query attention, SwiGLU (arXiv:2407.21783), as a plain pytree.

Parameters, with L layers stacked in front where they are scanned:

    token_embedding/embedding          [vocab, embed]
    layers/attention_norm/scale        [embed]
    layers/attention/query/kernel      [embed, heads, head_dim]
    layers/attention/{key,value}/kernel [embed, kv_heads, head_dim]
    layers/attention/out/kernel        [heads, head_dim, embed]
    layers/mlp_norm/scale              [embed]
    layers/mlp/{gate,up,down}/kernel   [embed, mlp], [embed, mlp], [mlp, embed]
    final_norm/scale                   [embed]
    head/kernel                        [embed, vocab]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from parallelizer.zoo import decoder, quantized
from parallelizer.zoo import layers as nn
from parallelizer.zoo.decoder import build_decoder, next_token_loss
from parallelizer.zoo.model import ZooModel, check_choice, check_divides, check_positive, check_rate

Params = dict[str, Any]


class LlamaLike(Protocol):
    """What attention reads of a config; mixtures of experts have it too."""

    @property
    def embed(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def projection(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes and options of a Llama; the options mean what they mean in `GptConfig`.

    Rotary frequencies are those of Llama 3, without the long-context scaling that 3.1 adds. `products` computes the
    blocks' products with weights "exact", in "int8" or in "fp8" (`quantized.py`); embedding and head stay exact.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    mlp: int
    sequence: int
    vocab: int = 128_256
    vocab_multiple: int = 128
    tied: bool = False
    dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"
    projection: str = "heads"
    rope_base: float = 500_000.0
    norm_eps: float = 1e-5
    products: str = "exact"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "mlp", "sequence", "vocab", "vocab_multiple")
        check_rate("dropout", self.dropout)
        check_divides("embed", self.embed, "2 * heads", 2 * self.heads)
        check_divides("heads", self.heads, "kv_heads", self.kv_heads)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)
        check_choice("projection", self.projection, nn.PROJECTIONS)
        check_choice("products", self.products, tuple(quantized.PRODUCTS))

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def padded_vocab(self) -> int:
        return decoder.padded_vocab(self)

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, 12 L s e for attention (arXiv:2104.04473, section 5), nothing recomputed."""
        attention = 2 * self.embed**2 + 2 * self.embed * self.kv_heads * self.head_dim
        weights = self.layers * (attention + 3 * self.embed * self.mlp) + self.padded_vocab * self.embed
        return 6 * weights + 12 * self.layers * self.sequence * self.embed


def init_params(config: LlamaConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with deviation 0.02, projections onto the residual divided by sqrt(2 layers)."""
    tokens, layers, head = jax.random.split(key, 3)
    return {
        "token_embedding": decoder.init_table(config, tokens),
        **nn.init_layers(partial(_init_block, config), layers, config.layers, config.scan),
        "final_norm": init_norm(config.embed),
        **decoder.init_head(config, head),
    }


def init_norm(embed: int) -> Params:
    """Scale one, [e]."""
    return {"scale": jnp.ones(embed, jnp.float32)}


def init_attention(config: LlamaLike, keys: tuple[jax.Array, ...], residual_std: float) -> Params:
    """The norm and the four projections of an attention layer, from four keys."""
    query, key, value, out = keys
    sizes = (config.head_dim, config.projection)

    def to_heads(k: jax.Array, heads: int) -> Params:
        return nn.init_projection(k, config.embed, heads, *sizes, bias=False)

    return {
        "attention_norm": init_norm(config.embed),
        "attention": {
            "query": to_heads(query, config.heads),
            "key": to_heads(key, config.kv_heads),
            "value": to_heads(value, config.kv_heads),
            "out": nn.init_merge(out, config.embed, config.heads, *sizes, residual_std, bias=False),
        },
    }


def _init_block(config: LlamaConfig, key: jax.Array) -> Params:
    query, key_, value, out, gate, up, down = jax.random.split(key, 7)
    residual_std = 0.02 * (2 * config.layers) ** -0.5
    return {
        **init_attention(config, (query, key_, value, out), residual_std),
        "mlp_norm": init_norm(config.embed),
        "mlp": init_swiglu((gate, up, down), config.embed, config.mlp, residual_std),
    }


def init_swiglu(keys: tuple[jax.Array, ...], embed: int, hidden: int, residual_std: float) -> Params:
    """{gate, up, down}, kernels [e, f], [e, f], [f, e], from three keys."""
    gate, up, down = keys
    return {
        "gate": nn.init_dense(gate, (embed, hidden)),
        "up": nn.init_dense(up, (embed, hidden)),
        "down": nn.init_dense(down, (hidden, embed), std=residual_std),
    }


def swiglu(params: Params, x: jax.Array, product: nn.Product = jnp.einsum) -> jax.Array:
    """silu(x gate) * (x up), down again: [b, s, e] -> [b, s, e] (Shazeer, arXiv:2002.05202)."""
    gate = jax.nn.silu(nn.dense(params["gate"], x, "bse,ef->bsf", product))
    return nn.dense(params["down"], gate * nn.dense(params["up"], x, "bse,ef->bsf", product), "bsf,fe->bse", product)


def rms_norm(params: Params, x: jax.Array, eps: float) -> jax.Array:
    """Division by the root mean square over the last dimension, in float32 (arXiv:1910.07467)."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale * params["scale"]).astype(x.dtype)


def rotary_angles(sequence: int, head_dim: int, base: float) -> jax.Array:
    """[s, d / 2] angles: position times base^(-2 i / d) (Su et al., arXiv:2104.09864)."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return jnp.arange(sequence, dtype=jnp.float32)[:, None] * frequencies[None, :]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns pairs (i, i + d/2) of [b, s, h, d] by the angles [s, d / 2]."""
    cos, sin = (f(angles)[None, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def grouped_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, rate: float, dropout_key: jax.Array | None
) -> jax.Array:
    """Causal attention of queries [b, s, h, d] in groups that share the keys and values [b, s, kv, d]."""
    b, s, _, d = query.shape
    grouped = query.reshape(b, s, key.shape[2], -1, d)
    logits = jnp.einsum("bqkgd,btkd->bkgqt", grouped, key).astype(jnp.float32) * d**-0.5
    weights = jax.nn.softmax(jnp.where(nn.causal_mask(s), logits, -1e30), axis=-1).astype(value.dtype)
    y = jnp.einsum("bkgqt,btkd->bqkgd", nn.dropout(weights, rate, dropout_key), value)
    return y.reshape(query.shape)


def attend(
    config: LlamaLike,
    angles: jax.Array,
    params: Params,
    x: jax.Array,
    keys: tuple[jax.Array | None, ...],
    product: nn.Product = jnp.einsum,
) -> jax.Array:
    """x [b, s, e] plus causal attention on its norm; `keys` drop out weights and result."""
    weights_key, attention_key = keys
    y = rms_norm(params["attention_norm"], x, config.norm_eps)
    query = rotate(nn.project(params["attention"]["query"], y, config.heads, product), angles)
    key = rotate(nn.project(params["attention"]["key"], y, config.kv_heads, product), angles)
    value = nn.project(params["attention"]["value"], y, config.kv_heads, product)
    y = grouped_attention(query, key, value, config.dropout, weights_key)
    return x + nn.dropout(nn.merge(params["attention"]["out"], y, product), config.dropout, attention_key)


def _block(config: LlamaConfig, angles: jax.Array, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    weights_key, attention_key, mlp_key = (None, None, None) if key is None else jax.random.split(key, 3)
    product = quantized.PRODUCTS[config.products]
    x = attend(config, angles, params, x, (weights_key, attention_key), product)
    y = swiglu(params["mlp"], rms_norm(params["mlp_norm"], x, config.norm_eps), product)
    return x + nn.dropout(y, config.dropout, mlp_key)


def apply(config: LlamaConfig, params: Params, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits [b, s, padded vocab] in `config.dtype` for tokens [b, s]; dropout only with a key."""
    table = params["token_embedding"]["embedding"]
    x = table[tokens].astype(jnp.dtype(config.dtype))
    angles = rotary_angles(tokens.shape[1], config.head_dim, config.rope_base)
    block = partial(_block, config, angles)
    x = nn.apply_layers(block, params, x, key, layers=config.layers, scan=config.scan, remat=config.remat)
    return decoder.logits(config, params, rms_norm(params["final_norm"], x, config.norm_eps))


loss = partial(next_token_loss, apply)


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The Llama with these fields of `LlamaConfig` and `TrainingConfig`, and `batch`."""
    return build_decoder(name, options, LlamaConfig, init_params, loss)
