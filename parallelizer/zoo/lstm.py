"""LSTM language models (arXiv:1409.2329, arXiv:1602.02410): a scan over time, optionally with projected states.

Parameters:

    token_embedding/embedding           [vocab, embed]
    layers_i/input/{kernel,bias}        [inputs, 4, hidden], [4, hidden]: input, forget, cell and output gate
    layers_i/state/kernel               [state, 4, hidden]
    layers_i/project/kernel             [hidden, state], only where states are projected
    head/kernel                         [state, vocab]
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
from parallelizer.zoo.model import ZooModel, check_choice, check_positive, check_rate

Params = dict[str, Any]
REMAT = ("none", "full")
GATES = 4


@dataclass(frozen=True, slots=True)
class LstmConfig:
    """Sizes and options of an LSTM; states are `embed` wide, projected down from `hidden` where the two differ.

    `remat` "full" keeps only the states of a time step for the backward pass and computes its gates again.
    """

    layers: int
    embed: int
    hidden: int
    sequence: int
    vocab: int = 10_000
    vocab_multiple: int = 16
    tied: bool = False
    dropout: float = 0.0
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "embed", "hidden", "sequence", "vocab", "vocab_multiple")
        check_rate("dropout", self.dropout)
        check_choice("remat", self.remat, REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def flop_per_token(self) -> int:
        """6 per weight."""
        projection = self.embed * self.hidden if self.embed != self.hidden else 0
        layer = GATES * 2 * self.embed * self.hidden + projection
        return 6 * (self.layers * layer + decoder.padded_vocab(self) * self.embed)


def init_params(config: LstmConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with deviation 1 / sqrt(fan-in), forget gates open (bias 1)."""
    table, head, layers = jax.random.split(key, 3)
    return {
        "token_embedding": decoder.init_table(config, table),
        **nn.init_layers(partial(_init_layer, config), layers, config.layers, scan=False),
        **decoder.init_head(config, head),
    }


def _init_layer(config: LstmConfig, key: jax.Array) -> Params:
    inputs, state, project = jax.random.split(key, 3)
    gates = (config.embed, GATES, config.hidden)
    std = config.embed**-0.5
    bias = jnp.zeros(gates[1:], jnp.float32).at[1].set(1.0)
    params: Params = {
        "input": {**nn.init_dense(inputs, gates, std=std), "bias": bias},
        "state": nn.init_dense(state, gates, std=std),
    }
    if config.embed != config.hidden:
        params["project"] = nn.init_dense(project, (config.hidden, config.embed), std=config.hidden**-0.5)
    return params


def run_layer(config: LstmConfig, params: Params, x: jax.Array) -> jax.Array:
    """[b, s, e] to the states [b, s, e]; the products with the inputs are taken for all times at once."""
    given = nn.dense(params["input"], x, "bse,egh->sbgh")

    def step(carry: tuple[jax.Array, jax.Array], at: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        state, cell = carry
        gates = (at + nn.dense(params["state"], state, "be,egh->bgh")).astype(jnp.float32)
        cell = jax.nn.sigmoid(gates[:, 1]) * cell + jax.nn.sigmoid(gates[:, 0]) * jnp.tanh(gates[:, 2])
        state = (jax.nn.sigmoid(gates[:, 3]) * jnp.tanh(cell)).astype(x.dtype)
        if "project" in params:
            state = nn.dense(params["project"], state, "bh,he->be")
        return (state, cell), state

    if config.remat == "full":
        step = jax.checkpoint(step, prevent_cse=False)
    batch = x.shape[0]
    start = jnp.zeros((batch, config.embed), x.dtype), jnp.zeros((batch, config.hidden), jnp.float32)
    _, states = jax.lax.scan(step, start, given)
    return states.transpose(1, 0, 2)


def apply(config: LstmConfig, params: Params, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits [b, s, padded vocab] for tokens [b, s]; dropout between layers, only with a key."""
    x = params["token_embedding"]["embedding"][tokens].astype(jnp.dtype(config.dtype))
    keys = [None] * config.layers if key is None else list(jax.random.split(key, config.layers))
    for i in range(config.layers):
        x = nn.dropout(run_layer(config, params[f"layers_{i}"], x), config.dropout, keys[i])
    return decoder.logits(config, params, x)


loss = partial(decoder.next_token_loss, apply)


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The LSTM with these fields of `LstmConfig` and `TrainingConfig`, and `batch`."""
    return decoder.build_decoder(name, options, LstmConfig, init_params, loss)
