"""GPT-2 and GPT-3: pre-norm decoder, learned positions, GELU (arXiv:2005.14165), as a plain pytree of parameters.

Parameters, with L layers stacked in front where they are scanned:

    token_embedding/embedding     [vocab, embed]
    position_embedding/embedding  [sequence, embed]
    layers/attention_norm/{scale,bias}               [embed]
    layers/attention/{query,key,value}/{kernel,bias} [embed, heads, head_dim], [heads, head_dim]
    layers/attention/out/{kernel,bias}               [heads, head_dim, embed], [embed]
    layers/mlp_norm/{scale,bias}                     [embed]
    layers/mlp/{up,down}/{kernel,bias}               [embed, 4 embed], [4 embed, embed]
    final_norm/{scale,bias}       [embed]
    head/kernel                   [embed, vocab], only where the embeddings are not tied
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import decoder
from parallelizer.zoo import layers as nn
from parallelizer.zoo.decoder import build_decoder, next_token_loss
from parallelizer.zoo.model import ZooModel, check_choice, check_divides, check_positive, check_rate

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GptConfig:
    """Sizes and options of a GPT.

    The embedding table has `vocab` rounded up to a multiple of `vocab_multiple` rows: odd sizes cannot be cut, and the
    extra rows are never looked up nor a target, so training only pushes their logits down. `projection` lays the
    attention's kernels out as [embed, heads, head_dim] ("heads") or [embed, embed] with a reshape ("flat").
    """

    layers: int
    embed: int
    heads: int
    sequence: int
    vocab: int = 50_257
    vocab_multiple: int = 128
    mlp_ratio: int = 4
    tied: bool = True
    dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"
    projection: str = "heads"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "sequence", "vocab", "vocab_multiple", "mlp_ratio")
        check_rate("dropout", self.dropout)
        check_divides("embed", self.embed, "heads", self.heads)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)
        check_choice("projection", self.projection, nn.PROJECTIONS)

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def padded_vocab(self) -> int:
        return decoder.padded_vocab(self)

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, 12 L s e for attention (arXiv:2104.04473, section 5), nothing recomputed."""
        weights = self.layers * (4 + 2 * self.mlp_ratio) * self.embed**2 + self.padded_vocab * self.embed
        return 6 * weights + 12 * self.layers * self.sequence * self.embed


def init_params(config: GptConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with deviation 0.02, projections onto the residual divided by sqrt(2 layers)."""
    tokens, positions, layers, head = jax.random.split(key, 4)
    return {
        "token_embedding": decoder.init_table(config, tokens),
        "position_embedding": {"embedding": nn.normal(positions, (config.sequence, config.embed), 0.02)},
        **nn.init_layers(partial(_init_block, config), layers, config.layers, config.scan),
        "final_norm": nn.init_layer_norm(config.embed),
        **decoder.init_head(config, head),
    }


def _init_block(config: GptConfig, key: jax.Array) -> Params:
    query, key_, value, out, up, down = jax.random.split(key, 6)
    sizes = (config.embed, config.heads, config.head_dim, config.projection)
    hidden = config.mlp_ratio * config.embed
    residual_std = 0.02 * (2 * config.layers) ** -0.5
    return {
        "attention_norm": nn.init_layer_norm(config.embed),
        "attention": {
            "query": nn.init_projection(query, *sizes),
            "key": nn.init_projection(key_, *sizes),
            "value": nn.init_projection(value, *sizes),
            "out": nn.init_merge(out, *sizes, std=residual_std),
        },
        "mlp_norm": nn.init_layer_norm(config.embed),
        "mlp": {
            "up": nn.init_dense(up, (config.embed, hidden), (hidden,)),
            "down": nn.init_dense(down, (hidden, config.embed), (config.embed,), residual_std),
        },
    }


def _block(config: GptConfig, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    weights_key, attention_key, mlp_key = (None, None, None) if key is None else jax.random.split(key, 3)
    y = nn.layer_norm(params["attention_norm"], x)
    query, key_, value = (nn.project(params["attention"][n], y, config.heads) for n in ("query", "key", "value"))
    y = nn.attention(query, key_, value, nn.causal_mask(x.shape[1]), config.dropout, weights_key)
    x = x + nn.dropout(nn.merge(params["attention"]["out"], y), config.dropout, attention_key)
    y = nn.layer_norm(params["mlp_norm"], x)
    y = jax.nn.gelu(nn.dense(params["mlp"]["up"], y, "bse,ef->bsf"))
    return x + nn.dropout(nn.dense(params["mlp"]["down"], y, "bsf,fe->bse"), config.dropout, mlp_key)


def apply(config: GptConfig, params: Params, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits [b, s, padded vocab] in `config.dtype` for tokens [b, s]; dropout only with a key."""
    embed_key, layers_key = (None, None) if key is None else jax.random.split(key)
    table = params["token_embedding"]["embedding"]
    x = table[tokens] + params["position_embedding"]["embedding"][: tokens.shape[1]]
    x = nn.dropout(x.astype(jnp.dtype(config.dtype)), config.dropout, embed_key)
    x = nn.apply_layers(
        partial(_block, config), params, x, layers_key, layers=config.layers, scan=config.scan, remat=config.remat
    )
    return decoder.logits(config, params, nn.layer_norm(params["final_norm"], x))


loss = partial(next_token_loss, apply)


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The GPT with these fields of `GptConfig` and `TrainingConfig`, and `batch`."""
    return build_decoder(name, options, GptConfig, init_params, loss)
