"""T5 1.0: encoder and decoder with relative position biases (arXiv:1910.10683), as a plain pytree of parameters.

RMSNorm without bias before every sublayer, no biases in dense layers, no scaling of attention logits (it is folded into
the initial query weights), ReLU, embeddings shared by both sides and the head. Parameters, with L layers stacked in
front where they are scanned:

    token_embedding/embedding                      [vocab, embed]
    {encoder,decoder}/position_bias/embedding      [buckets, heads], used by every layer of that side
    {encoder,decoder}/layers/self/{query,key,value}/kernel [embed, heads, head_dim], out/kernel [heads, head_dim, embed]
    decoder/layers/cross/...                       the same, over the encoder's result
    {encoder,decoder}/layers/mlp/{up,down}/kernel  [embed, mlp], [mlp, embed]
    {encoder,decoder}/layers/{self,cross,mlp}_norm/scale, {encoder,decoder}/final_norm/scale  [embed]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn
from parallelizer.zoo.llama import rms_norm
from parallelizer.zoo.model import ZooModel, check_choice, check_positive
from parallelizer.zoo.tokens import random_tokens, token_shapes
from parallelizer.zoo.training import make_model

Params = dict[str, Any]
NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class T5Config:
    """Sizes and options of a T5; `sequence` is the length of both sides, `layers` the layers of each.

    Heads times head_dim need not be `embed`. Distances between positions fall into `buckets` up to `distance`.
    """

    layers: int
    embed: int
    heads: int
    mlp: int
    sequence: int
    head_dim: int = 64
    vocab: int = 32_128
    buckets: int = 32
    distance: int = 128
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "embed", "heads", "mlp", "sequence", "head_dim", "vocab")
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, 12 s h d per attention, per position (one of each side)."""
        inner = self.heads * self.head_dim
        weights = self.layers * (3 * 4 * self.embed * inner + 2 * 2 * self.embed * self.mlp) + self.vocab * self.embed
        return 6 * weights + 3 * 12 * self.layers * self.sequence * inner


def init_params(config: T5Config, key: jax.Array) -> Params:
    """Fresh parameters with the deviations of the released code: 1 for embeddings, else 1 / sqrt(fan-in)."""
    tokens, encoder, decoder = jax.random.split(key, 3)
    return {
        "token_embedding": {"embedding": nn.normal(tokens, (config.vocab, config.embed), 1.0)},
        "encoder": _init_side(config, encoder, cross=False),
        "decoder": _init_side(config, decoder, cross=True),
    }


def _init_side(config: T5Config, key: jax.Array, cross: bool) -> Params:
    bias, layers = jax.random.split(key)
    embed = config.embed

    def init_block(k: jax.Array) -> Params:
        own, other, up, down = jax.random.split(k, 4)
        params = {
            "self_norm": _init_norm(embed),
            "self": _init_attention(config, own),
            "mlp_norm": _init_norm(embed),
            "mlp": {
                "up": nn.init_dense(up, (embed, config.mlp), std=embed**-0.5),
                "down": nn.init_dense(down, (config.mlp, embed), std=config.mlp**-0.5),
            },
        }
        if cross:
            params |= {"cross_norm": _init_norm(embed), "cross": _init_attention(config, other)}
        return params

    return {
        "position_bias": {"embedding": nn.normal(bias, (config.buckets, config.heads), embed**-0.5)},
        **nn.init_layers(init_block, layers, config.layers, config.scan),
        "final_norm": _init_norm(embed),
    }


def _init_norm(embed: int) -> Params:
    return {"scale": jnp.ones(embed, jnp.float32)}


def _init_attention(config: T5Config, key: jax.Array) -> Params:
    query, key_, value, out = jax.random.split(key, 4)
    into, heads = (config.embed, config.heads, config.head_dim), (config.heads, config.head_dim, config.embed)
    return {
        "query": nn.init_dense(query, into, std=(config.embed * config.head_dim) ** -0.5),
        "key": nn.init_dense(key_, into, std=config.embed**-0.5),
        "value": nn.init_dense(value, into, std=config.embed**-0.5),
        "out": nn.init_dense(out, heads, std=(config.heads * config.head_dim) ** -0.5),
    }


def buckets_of(config: T5Config, sequence: int, both_ways: bool) -> jax.Array:
    """The bucket, int32 [query, key], of the distance between two positions.

    Half of the buckets are for distances one by one, the others widen geometrically up to `distance`, where the last
    begins; `both_ways` spends half of all on keys that come after the query, which otherwise count as distance 0.
    """
    position = jnp.arange(sequence)
    ahead = position[None, :] - position[:, None]
    count, offset = config.buckets, jnp.zeros_like(ahead)
    if both_ways:
        count //= 2
        offset, away = jnp.where(ahead > 0, count, 0), jnp.abs(ahead)
    else:
        away = jnp.maximum(-ahead, 0)
    exact = count // 2
    share = jnp.log(jnp.maximum(away, 1) / exact) / jnp.log(config.distance / exact)
    far = jnp.minimum(exact + (share * (count - exact)).astype(jnp.int32), count - 1)
    return offset + jnp.where(away < exact, away, far)


def _attention(params: Params, x: jax.Array, context: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Attention of [b, s, e] to `context` [b, t, e]; `bias` [h, s, t] is added to the logits."""
    query = nn.dense(params["query"], x, "bse,ehd->bshd")
    key, value = (nn.dense(params[name], context, "bse,ehd->bshd") for name in ("key", "value"))
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
    weights = jax.nn.softmax(logits if bias is None else logits + bias, axis=-1).astype(value.dtype)
    return nn.merge(params["out"], jnp.einsum("bhqk,bkhd->bqhd", weights, value))


def _block(bias: jax.Array, encoded: jax.Array | None, params: Params, x: jax.Array, _: jax.Array | None) -> jax.Array:
    y = rms_norm(params["self_norm"], x, NORM_EPS)
    x = x + _attention(params["self"], y, y, bias)
    if encoded is not None:
        x = x + _attention(params["cross"], rms_norm(params["cross_norm"], x, NORM_EPS), encoded, None)
    return x + nn.mlp(params["mlp"], rms_norm(params["mlp_norm"], x, NORM_EPS), jax.nn.relu)


def _side(config: T5Config, params: Params, x: jax.Array, encoded: jax.Array | None) -> jax.Array:
    sequence = x.shape[1]
    bias = params["position_bias"]["embedding"][buckets_of(config, sequence, encoded is None)].transpose(2, 0, 1)
    if encoded is not None:
        bias = jnp.where(nn.causal_mask(sequence), bias, -1e30)
    block = partial(_block, bias, encoded)
    x = nn.apply_layers(block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)
    return rms_norm(params["final_norm"], x, NORM_EPS)


def apply(config: T5Config, params: Params, source: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits [b, t, vocab] for the decoder's tokens [b, t], given the encoder's [b, s]."""
    table = params["token_embedding"]["embedding"]
    dtype = jnp.dtype(config.dtype)
    encoded = _side(config, params["encoder"], table[source].astype(dtype), None)
    x = _side(config, params["decoder"], table[tokens].astype(dtype), encoded)
    return jnp.einsum("bse,ve->bsv", x * config.embed**-0.5, table.astype(dtype))


def loss(config: T5Config, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean cross-entropy of `batch["targets"]` [b, t] given `batch["source"]` [b, s] and `batch["tokens"]` [b, t]."""
    del key
    return nn.cross_entropy(apply(config, params, batch["source"], batch["tokens"]), batch["targets"])


def _batch_shapes(batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = token_shapes(batch, sequence)
    return {"source": shapes["tokens"], **shapes}


def _example_batch(config: T5Config, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    source, target = jax.random.split(key)
    text = random_tokens(config.vocab, source, batch, sequence)
    return {"source": text["tokens"], **random_tokens(config.vocab, target, batch, sequence)}


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The T5 with these fields of `T5Config` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        T5Config,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: _batch_shapes,
        example_batch=lambda config: partial(_example_batch, config),
    )
