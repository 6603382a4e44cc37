"""What the models that predict the next token share: the table and the head around their blocks, loss, and the model.

A family brings a config (any dataclass with the fields of `DecoderConfig`), `init_params(config, key)` and
`apply(config, params, tokens, key)`; everything else about such a model is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel
from parallelizer.zoo.tokens import random_tokens, token_shapes
from parallelizer.zoo.training import make_model

Params = dict[str, Any]


class DecoderConfig(Protocol):
    """The fields of a config that this module reads."""

    @property
    def embed(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def vocab_multiple(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def dropout(self) -> float: ...
    @property
    def flop_per_token(self) -> int: ...


Apply = Callable[[Any, Params, jax.Array, jax.Array | None], jax.Array]
InitParams = Callable[[Any, jax.Array], Params]


def padded_vocab(config: DecoderConfig) -> int:
    """The rows of the embedding table: `vocab` rounded up, because odd sizes cannot be cut."""
    return -(-config.vocab // config.vocab_multiple) * config.vocab_multiple


def init_table(config: DecoderConfig, key: jax.Array) -> Params:
    """The embedding table, {"embedding": [padded vocab, embed]}, normal with deviation 0.02."""
    return {"embedding": nn.normal(key, (padded_vocab(config), config.embed), 0.02)}


def init_head(config: DecoderConfig, key: jax.Array) -> Params:
    """{"head": kernel [embed, padded vocab]}; nothing where the head is the table."""
    return {} if config.tied else {"head": nn.init_dense(key, (config.embed, padded_vocab(config)))}


def logits(config: DecoderConfig, params: Params, x: jax.Array) -> jax.Array:
    """[b, s, padded vocab] from normed hidden states [b, s, e], with the table where it is tied."""
    if config.tied:
        return jnp.einsum("bse,ve->bsv", x, params["token_embedding"]["embedding"].astype(x.dtype))
    return nn.dense(params["head"], x, "bse,ev->bsv")


def next_token_loss(
    apply: Apply, config: Any, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None
) -> jax.Array:
    """Mean cross-entropy of `batch["targets"]`, which are `batch["tokens"]` one position on, both [b, s]."""
    return nn.cross_entropy(apply(config, params, batch["tokens"], key), batch["targets"])


def build_decoder(
    name: str,
    options: Mapping[str, Any],
    config_type: type,
    init_params: InitParams,
    loss: Callable[..., jax.Array],
) -> ZooModel:
    """The model with these fields of `config_type` and `TrainingConfig`, and `batch`; random where it drops out."""
    return make_model(
        name,
        options,
        config_type,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: token_shapes,
        example_batch=lambda config: partial(random_tokens, config.vocab),
        random=lambda config: config.dropout > 0,
    )
