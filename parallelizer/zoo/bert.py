"""A BERT encoder stack: post-norm blocks with bidirectional attention (arXiv:1810.04805), as a plain pytree.

With `loss="mse"` a batch brings hidden states and what the stack should make of them, without embedding or head (as
in Alpa's tests); with `loss="tokens"` it brings tokens and targets, and the model embeds and predicts them.

    layers/attention/qkv/{kernel,bias}      [embed, 3 embed] where fused, heads outermost and then query, key, value
    layers/attention/{query,key,value}/...  [embed, heads, head_dim] where not
    layers/attention/out/{kernel,bias}      [heads, head_dim, embed], flat where fused
    layers/attention_norm, layers/mlp/{up,down}, layers/mlp_norm
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel, check_choice, check_divides, check_positive
from parallelizer.zoo.tokens import random_tokens, token_shapes
from parallelizer.zoo.training import make_model

Params = dict[str, Any]
LOSSES = ("mse", "tokens")


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes and options of a BERT stack; `fused` makes query, key and value one product."""

    layers: int = 2
    embed: int = 128
    heads: int = 8
    sequence: int = 8
    mlp_ratio: int = 4
    vocab: int = 256
    loss: str = "mse"
    fused: bool = True
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "sequence", "mlp_ratio", "vocab")
        check_divides("embed", self.embed, "heads", self.heads)
        check_choice("loss", self.loss, LOSSES)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, 12 L s e for attention (arXiv:2104.04473, section 5), nothing recomputed.

        Given hidden states need no gradient, which spares 2 per weight of the first query, key and value.
        """
        flop = 6 * self.layers * (4 + 2 * self.mlp_ratio) * self.embed**2
        flop += 12 * self.layers * self.sequence * self.embed
        return flop + (6 * self.vocab * self.embed if self.loss == "tokens" else -6 * self.embed**2)


def init_params(config: BertConfig, key: jax.Array) -> Params:
    """Fresh parameters, normal with deviation 0.02."""
    tokens, positions, layers = jax.random.split(key, 3)
    params = nn.init_layers(partial(_init_block, config), layers, config.layers, config.scan)
    if config.loss == "tokens":
        params["token_embedding"] = {"embedding": nn.normal(tokens, (config.vocab, config.embed), 0.02)}
        params["position_embedding"] = {"embedding": nn.normal(positions, (config.sequence, config.embed), 0.02)}
        params["embedding_norm"] = nn.init_layer_norm(config.embed)
    return params


def _init_block(config: BertConfig, key: jax.Array) -> Params:
    query, key_, value, out, up, down = jax.random.split(key, 6)
    embed, hidden = config.embed, config.mlp_ratio * config.embed
    sizes = (embed, config.heads, config.head_dim, "flat" if config.fused else "heads")
    attention: Params = {"out": nn.init_merge(out, *sizes, std=0.02)}
    if config.fused:
        attention["qkv"] = nn.init_dense(query, (embed, 3 * embed), (3 * embed,))
    else:
        for name, k in (("query", query), ("key", key_), ("value", value)):
            attention[name] = nn.init_projection(k, *sizes)
    return {
        "attention": attention,
        "attention_norm": nn.init_layer_norm(embed),
        "mlp": {
            "up": nn.init_dense(up, (embed, hidden), (hidden,)),
            "down": nn.init_dense(down, (hidden, embed), (embed,)),
        },
        "mlp_norm": nn.init_layer_norm(embed),
    }


def _block(config: BertConfig, mask: jax.Array, params: Params, x: jax.Array, _: jax.Array | None) -> jax.Array:
    attention = params["attention"]
    if config.fused:
        fused = nn.dense(attention["qkv"], x, "bse,ef->bsf")
        parts = fused.reshape(*x.shape[:2], config.heads, 3, config.head_dim)
        query, key, value = parts[:, :, :, 0], parts[:, :, :, 1], parts[:, :, :, 2]
    else:
        query, key, value = (nn.project(attention[name], x, config.heads) for name in ("query", "key", "value"))
    y = nn.merge(attention["out"], nn.attention(query, key, value, mask))
    x = nn.layer_norm(params["attention_norm"], x + y, eps=1e-12)
    y = jax.nn.gelu(nn.dense(params["mlp"]["up"], x, "bse,ef->bsf"))
    return nn.layer_norm(params["mlp_norm"], x + nn.dense(params["mlp"]["down"], y, "bsf,fe->bse"), eps=1e-12)


def apply(config: BertConfig, params: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
    """The stack on [b, s, e]; `mask` [b, s] is nonzero where there is something to attend to."""
    block = partial(_block, config, mask[:, None, None, :] != 0)
    x = x.astype(jnp.dtype(config.dtype))
    return nn.apply_layers(block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)


def loss(config: BertConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean squared error against `batch["label"]` [b, s, e], or mean cross-entropy of `batch["targets"]` [b, s]."""
    del key
    if config.loss == "mse":
        y = apply(config, params, batch["hidden"], batch["mask"])
        return jnp.mean(jnp.square(y.astype(jnp.float32) - batch["label"]))
    table, tokens = params["token_embedding"]["embedding"], batch["tokens"]
    x = table[tokens] + params["position_embedding"]["embedding"][: tokens.shape[1]]
    x = apply(config, params, nn.layer_norm(params["embedding_norm"], x, eps=1e-12), jnp.ones(tokens.shape, bool))
    return nn.cross_entropy(jnp.einsum("bse,ve->bsv", x, table.astype(x.dtype)), batch["targets"])


def _batch_shapes(config: BertConfig, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    if config.loss == "tokens":
        return token_shapes(batch, sequence)
    hidden = jax.ShapeDtypeStruct((batch, sequence, config.embed), jnp.float32)
    return {"hidden": hidden, "mask": jax.ShapeDtypeStruct((batch, sequence), jnp.int32), "label": hidden}


def _example_batch(config: BertConfig, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    if config.loss == "tokens":
        # Masked-token prediction needs a masking scheme; predicting the tokens themselves costs the same.
        tokens = random_tokens(config.vocab, key, batch, sequence)["tokens"]
        return {"tokens": tokens, "targets": tokens}
    hidden_key, label_key = jax.random.split(key)
    shape = (batch, sequence, config.embed)
    return {
        "hidden": jax.random.normal(hidden_key, shape),
        "mask": jnp.ones((batch, sequence), jnp.int32),
        "label": jax.random.normal(label_key, shape),
    }


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The stack with these fields of `BertConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        BertConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
    )
