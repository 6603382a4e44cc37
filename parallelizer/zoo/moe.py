"""Mixtures of experts in a Llama-like decoder: Mixtral, DeepSeekMoE with shared experts, and GShard's and Alpa's form.

A layer is attention as in `llama.py` and then, in every `every`-th layer, experts in place of the one MLP
(`experts.py`). Parameters, with layers stacked in front where they are scanned:

    token_embedding/embedding                     [vocab, embed]
    first_0/{attention_norm,attention,mlp_norm,mlp}/...   leading layers without experts, never stacked
    layers/{attention_norm,attention,mlp_norm}/...
    layers/router/kernel                          [embed, experts]
    layers/experts/{gate,up,down}/kernel          [experts, embed, mlp], [experts, mlp, embed]
    layers/shared/{gate,up,down}/kernel           [embed, shared_mlp], [shared_mlp, embed]
    layers/dense_0/{attention_norm,...}/...       the layers without experts that come before it, every - 1 of them
    final_norm/scale, head/kernel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import decoder, llama
from parallelizer.zoo import experts as ex
from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel, check_choice, check_divides, check_positive, check_rate

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Sizes and options of a mixture of experts; names that `LlamaConfig` has mean the same here.

    `expert_mlp`, `shared_mlp` and `dense_mlp` are the hidden widths of one expert, of the experts that every token
    passes (0: none), and of layers without experts. `group` tokens are routed together (0: a sequence); `capacity` is
    how many places the experts of a group have, as a multiple of what an even spread needs ("onehot" only).
    `balance` weighs the balance loss. `gated` experts and MLPs are SwiGLU, others GELU without a gate.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    sequence: int
    experts: int
    top_k: int
    expert_mlp: int
    shared_mlp: int = 0
    dense_mlp: int = 0
    first_dense: int = 0
    every: int = 1
    gated: bool = True
    dispatch: str = "sorted"
    normalize: bool = True
    group: int = 0
    capacity: float = 1.0
    balance: float = 0.01
    vocab: int = 32_000
    vocab_multiple: int = 128
    tied: bool = False
    dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"
    projection: str = "heads"
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_positive(self, "layers", "sequence", "experts", "top_k", "expert_mlp", "every", "vocab", "vocab_multiple")
        check_rate("dropout", self.dropout)
        check_divides("embed", self.embed, "2 * heads", 2 * self.heads)
        check_divides("heads", self.heads, "kv_heads", self.kv_heads)
        check_divides("layers", self.layers - self.first_dense, "every", self.every)
        check_choice("dispatch", self.dispatch, ex.DISPATCH)
        check_choice("top_k", self.top_k, tuple(range(1, self.experts + 1)))
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)
        check_choice("projection", self.projection, nn.PROJECTIONS)
        if self.first_dense or self.every > 1:
            check_positive(self, "dense_mlp")

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def padded_vocab(self) -> int:
        return decoder.padded_vocab(self)

    @property
    def blocks(self) -> int:
        """How many layers have experts."""
        return (self.layers - self.first_dense) // self.every

    @property
    def group_tokens(self) -> int:
        return self.group or self.sequence

    @property
    def places(self) -> int:
        """How many tokens of a group one expert takes at the most ("onehot")."""
        return max(1, int(self.capacity * self.top_k * self.group_tokens / self.experts))

    @property
    def active_parameters(self) -> int:
        """Weights that one token meets in products, both of embedding and head counted (router and norms left out)."""
        kernels = 3 if self.gated else 2
        attention = 2 * self.embed**2 + 2 * self.embed * self.kv_heads * self.head_dim
        mlp = self.blocks * (self.top_k * self.expert_mlp + self.shared_mlp)
        mlp += (self.layers - self.blocks) * self.dense_mlp
        table = self.padded_vocab * self.embed * (1 if self.tied else 2)
        return self.layers * attention + kernels * self.embed * mlp + table

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, 12 L s e for attention, and the products with one-hot arrays.

        A one-hot dispatch computes every place of every expert, filled or not, and its two products with arrays of
        [tokens, experts, places] need 10 per entry and embedding: 4 to the experts, where the array has no gradient,
        and 6 back.
        """
        weights = self.active_parameters - (0 if self.tied else self.padded_vocab * self.embed)
        weights += self.blocks * self.embed * self.experts
        flop = 12 * self.layers * self.sequence * self.embed
        if self.dispatch == "onehot":
            kernels = 3 if self.gated else 2
            rows = self.experts * self.places
            filled = self.top_k * self.group_tokens
            flop += 6 * self.blocks * kernels * self.embed * self.expert_mlp * (rows - filled) // self.group_tokens
            flop += 10 * self.blocks * rows * self.embed
        return 6 * weights + flop


def init_params(config: MoeConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with deviation 0.02, projections onto the residual divided by sqrt(2 layers)."""
    tokens, first, layers, head = jax.random.split(key, 4)
    return {
        "token_embedding": decoder.init_table(config, tokens),
        **_init_dense_layers(config, first, "first", config.first_dense),
        **nn.init_layers(partial(_init_block, config), layers, config.blocks, config.scan),
        "final_norm": llama.init_norm(config.embed),
        **decoder.init_head(config, head),
    }


def _init_dense_layers(config: MoeConfig, key: jax.Array, name: str, count: int) -> Params:
    keys = jax.random.split(key, max(count, 1))
    return {f"{name}_{i}": _init_layer(config, keys[i], config.dense_mlp) for i in range(count)}


def _residual_std(config: MoeConfig) -> float:
    return 0.02 * (2 * config.layers) ** -0.5


def _init_mlp(config: MoeConfig, keys: jax.Array, hidden: int) -> Params:
    params = llama.init_swiglu((keys[0], keys[1], keys[2]), config.embed, hidden, _residual_std(config))
    return params if config.gated else {"up": params["up"], "down": params["down"]}


def _init_layer(config: MoeConfig, key: jax.Array, hidden: int) -> Params:
    """Attention and, with `hidden` > 0, an MLP."""
    keys = jax.random.split(key, 7)
    attention = llama.init_attention(config, tuple(keys[:4]), _residual_std(config))
    params = attention | {"mlp_norm": llama.init_norm(config.embed)}
    return params | {"mlp": _init_mlp(config, keys[4:], hidden)} if hidden else params


def _init_block(config: MoeConfig, key: jax.Array) -> Params:
    own, router, experts, shared, before = jax.random.split(key, 5)
    params = _init_layer(config, own, 0)
    params["router"] = nn.init_dense(router, (config.embed, config.experts))
    keys, sizes = jax.random.split(experts, 3), (config.experts, config.embed, config.expert_mlp)
    params["experts"] = ex.init_experts(keys, *sizes, config.gated, _residual_std(config))
    if config.shared_mlp:
        params["shared"] = _init_mlp(config, jax.random.split(shared, 3), config.shared_mlp)
    return params | _init_dense_layers(config, before, "dense", config.every - 1)


def _mlp(params: Params, x: jax.Array) -> jax.Array:
    if "gate" in params:
        return llama.swiglu(params, x)
    return nn.dense(params["down"], jax.nn.gelu(nn.dense(params["up"], x, "bse,ef->bsf")), "bsf,fe->bse")


def moe_layer(config: MoeConfig, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The experts' part [b, s, e] -> [b, s, e], and the balance loss; shared experts included."""
    groups = x.reshape(-1, config.group, x.shape[-1]) if config.group else x
    weights, chosen, balance = ex.route(params["router"], groups, config.top_k, config.normalize)
    if config.dispatch == "onehot":
        capacity = config.places if config.group else max(1, config.places * x.shape[1] // config.sequence)
        y = ex.onehot_experts(params["experts"], groups, weights, chosen, capacity)
    else:
        y = ex.sorted_experts(params["experts"], groups, weights, chosen)
    y = y.reshape(x.shape)
    return (y + _mlp(params["shared"], x) if config.shared_mlp else y), balance


Keys = tuple[jax.Array | None, ...]


def _split(key: jax.Array | None, count: int) -> Keys:
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def _dense_layer(
    config: MoeConfig, angles: jax.Array, params: Params, x: jax.Array, key: jax.Array | None
) -> jax.Array:
    *attention, mlp_key = _split(key, 3)
    x = llama.attend(config, angles, params, x, tuple(attention))
    y = _mlp(params["mlp"], llama.rms_norm(params["mlp_norm"], x, config.norm_eps))
    return x + nn.dropout(y, config.dropout, mlp_key)


def _block(
    config: MoeConfig, angles: jax.Array, params: Params, carry: tuple[jax.Array, jax.Array], key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    x, balance = carry
    *attention, mlp_key, before = _split(key, 4)
    for i, dense_key in enumerate(_split(before, max(config.every - 1, 1))[: config.every - 1]):
        x = _dense_layer(config, angles, params[f"dense_{i}"], x, dense_key)
    x = llama.attend(config, angles, params, x, tuple(attention))
    y, own = moe_layer(config, params, llama.rms_norm(params["mlp_norm"], x, config.norm_eps))
    return x + nn.dropout(y, config.dropout, mlp_key), balance + own


def apply(
    config: MoeConfig, params: Params, tokens: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Logits [b, s, padded vocab] in `config.dtype` for tokens [b, s], and the mean balance loss of the layers."""
    x = params["token_embedding"]["embedding"][tokens].astype(jnp.dtype(config.dtype))
    angles = llama.rotary_angles(tokens.shape[1], config.head_dim, config.rope_base)
    first, layers_key = _split(key, 2)
    for i, first_key in enumerate(_split(first, max(config.first_dense, 1))[: config.first_dense]):
        x = _dense_layer(config, angles, params[f"first_{i}"], x, first_key)
    x, balance = nn.apply_layers(
        partial(_block, config, angles),
        params,
        (x, jnp.float32(0.0)),
        layers_key,
        layers=config.blocks,
        scan=config.scan,
        remat=config.remat,
    )
    x = llama.rms_norm(params["final_norm"], x, config.norm_eps)
    return decoder.logits(config, params, x), balance / config.blocks


def loss(config: MoeConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean cross-entropy of `batch["targets"]` [b, s] plus `config.balance` times the balance loss."""
    logits, balance = apply(config, params, batch["tokens"], key)
    return nn.cross_entropy(logits, batch["targets"]) + config.balance * balance


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The mixture with these fields of `MoeConfig` and `TrainingConfig`, and `batch`."""
    return decoder.build_decoder(name, options, MoeConfig, init_params, loss)
