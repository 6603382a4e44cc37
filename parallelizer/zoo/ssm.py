"""Mamba: selective state spaces by an associative scan over time (arXiv:2312.00752), as a plain pytree.

Parameters, with L layers stacked in front where they are scanned; inner = 2 embed, n states per channel:

    token_embedding/embedding      [vocab, embed], also the head
    layers/norm/scale              [embed]
    layers/into/{value,gate}/kernel [embed, inner]
    layers/conv/{kernel,bias}      [width, 1, inner], [inner]: each channel over its own last `width` positions
    layers/select/{step,write,read}/kernel [inner, rank], [inner, n], [inner, n]
    layers/step/{kernel,bias}      [rank, inner], [inner]
    layers/decay                   [inner, n], the logarithm of -A
    layers/skip                    [inner]
    layers/out/kernel              [inner, embed]
    final_norm/scale               [embed]
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
from parallelizer.zoo.llama import init_norm, rms_norm
from parallelizer.zoo.model import ZooModel, check_choice, check_positive, check_rate

Params = dict[str, Any]
NORM_EPS = 1e-5
# Between these the first time steps are spread, evenly in their logarithm.
STEP_RANGE = (1e-3, 1e-1)


@dataclass(frozen=True, slots=True)
class MambaConfig:
    """Sizes and options of a Mamba; `rank` of the time step's projection is embed / 16 where it is not given."""

    layers: int
    embed: int
    sequence: int
    states: int = 16
    width: int = 4
    expand: int = 2
    rank: int | None = None
    vocab: int = 50_277
    vocab_multiple: int = 8
    tied: bool = True
    dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "embed", "sequence", "states", "width", "expand", "vocab", "vocab_multiple")
        check_rate("dropout", self.dropout)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def inner(self) -> int:
        return self.expand * self.embed

    @property
    def step_rank(self) -> int:
        return -(-self.embed // 16) if self.rank is None else self.rank

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, the convolution's included, and 6 per state that is read."""
        weights = 3 * self.embed * self.inner + self.inner * (2 * self.step_rank + 2 * self.states)
        layer = weights + self.inner * (self.width + self.states)
        return 6 * (self.layers * layer + decoder.padded_vocab(self) * self.embed)


def init_params(config: MambaConfig, key: jax.Array) -> Params:
    """Fresh parameters; decays 1 to n and time steps spread over STEP_RANGE, as in the released code."""
    table, layers, head = jax.random.split(key, 3)
    return {
        "token_embedding": decoder.init_table(config, table),
        **nn.init_layers(partial(_init_layer, config), layers, config.layers, config.scan),
        "final_norm": init_norm(config.embed),
        **decoder.init_head(config, head),
    }


def _init_layer(config: MambaConfig, key: jax.Array) -> Params:
    value, gate, conv, step_in, write, read, step, time, out = jax.random.split(key, 9)
    embed, inner, rank, states = config.embed, config.inner, config.step_rank, config.states
    low, high = (jnp.log(limit) for limit in STEP_RANGE)
    first = jnp.exp(low + (high - low) * jax.random.uniform(time, (inner,), jnp.float32))
    std = inner**-0.5
    return {
        "norm": init_norm(embed),
        "into": {
            "value": nn.init_dense(value, (embed, inner), std=embed**-0.5),
            "gate": nn.init_dense(gate, (embed, inner), std=embed**-0.5),
        },
        "conv": nn.init_dense(conv, (config.width, 1, inner), (inner,), config.width**-0.5),
        "select": {
            "step": nn.init_dense(step_in, (inner, rank), std=std),
            "write": nn.init_dense(write, (inner, states), std=std),
            "read": nn.init_dense(read, (inner, states), std=std),
        },
        # softplus of this bias is the first time step.
        "step": {"kernel": nn.normal(step, (rank, inner), rank**-0.5), "bias": first + jnp.log(-jnp.expm1(-first))},
        "decay": jnp.broadcast_to(jnp.log(jnp.arange(1, states + 1, dtype=jnp.float32)), (inner, states)),
        "skip": jnp.ones(inner, jnp.float32),
        "out": nn.init_dense(out, (inner, embed), std=std * (2 * config.layers) ** -0.5),
    }


def causal_conv(params: Params, x: jax.Array) -> jax.Array:
    """Every channel of [b, s, c] over its own last positions; the beginning sees zeros."""
    width, _, channels = params["kernel"].shape
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"].astype(x.dtype),
        (1,),
        [(width - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=channels,
    )
    return y + params["bias"].astype(x.dtype)


def linear_recurrence(decay: jax.Array, value: jax.Array) -> jax.Array:
    """h[t] = decay[t] h[t - 1] + value[t] along axis 1, from h = 0, in logarithmic depth."""

    def combine(first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] * then[0], first[1] * then[0] + then[1]

    return jax.lax.associative_scan(combine, (decay, value), axis=1)[1]


def _select(params: Params, x: jax.Array) -> jax.Array:
    """The selective state space on [b, s, inner], in float32."""
    step = nn.dense(params["step"], nn.dense(params["select"]["step"], x, "bsi,ir->bsr"), "bsr,ri->bsi")
    step = jax.nn.softplus(step.astype(jnp.float32))
    write, read = (nn.dense(params["select"][name], x, "bsi,in->bsn").astype(jnp.float32) for name in ("write", "read"))
    x32 = x.astype(jnp.float32)
    decay = jnp.exp(step[..., None] * -jnp.exp(params["decay"]))
    states = linear_recurrence(decay, (step * x32)[..., None] * write[:, :, None, :])
    return jnp.einsum("bsin,bsn->bsi", states, read) + params["skip"] * x32


def _block(params: Params, x: jax.Array, _: jax.Array | None) -> jax.Array:
    y = rms_norm(params["norm"], x, NORM_EPS)
    value, gate = (nn.dense(params["into"][name], y, "bse,ei->bsi") for name in ("value", "gate"))
    y = _select(params, jax.nn.silu(causal_conv(params["conv"], value))).astype(x.dtype)
    return x + nn.dense(params["out"], y * jax.nn.silu(gate), "bsi,ie->bse")


def apply(config: MambaConfig, params: Params, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits [b, s, padded vocab] in `config.dtype` for tokens [b, s]; dropout of embeddings, only with a key."""
    x = params["token_embedding"]["embedding"][tokens].astype(jnp.dtype(config.dtype))
    x = nn.dropout(x, config.dropout, key)
    x = nn.apply_layers(_block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)
    return decoder.logits(config, params, rms_norm(params["final_norm"], x, NORM_EPS))


loss = partial(decoder.next_token_loss, apply)


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The Mamba with these fields of `MambaConfig` and `TrainingConfig`, and `batch`."""
    return decoder.build_decoder(name, options, MambaConfig, init_params, loss)
