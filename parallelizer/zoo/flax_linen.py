"""The GPT as a researcher writes it with flax.linen: modules, nn.scan, nn.remat, TrainState."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from parallelizer.zoo.gpt import GptConfig
from parallelizer.zoo.model import ZooModel, ZooOptionError, split_options
from parallelizer.zoo.tokens import random_tokens, token_shapes
from parallelizer.zoo.training import TrainingConfig, decayed, global_norm, make_optimizer

Batch = Mapping[str, jax.Array]


class TrainState(train_state.TrainState):
    """Flax's training state and the key that dropout draws from."""

    key: jax.Array


class Mlp(nn.Module):
    """Two dense layers with a GELU between."""

    config: GptConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        x = nn.Dense(self.config.mlp_ratio * self.config.embed, dtype=dtype, name="up")(x)
        return nn.Dense(self.config.embed, dtype=dtype, name="down")(nn.gelu(x))


class Block(nn.Module):
    """A pre-norm transformer layer; returns a pair because nn.scan wants (carry, output)."""

    config: GptConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        attention = nn.MultiHeadDotProductAttention(
            c.heads, dtype=dtype, dropout_rate=c.dropout, deterministic=self.deterministic, name="attention"
        )
        y = attention(nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="attention_norm")(x), mask=mask)
        x = x + nn.Dropout(c.dropout, deterministic=self.deterministic)(y)
        y = Mlp(c, name="mlp")(nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="mlp_norm")(x))
        return x + nn.Dropout(c.dropout, deterministic=self.deterministic)(y), None


class Gpt(nn.Module):
    """Tokens [b, s] to logits [b, s, vocab]."""

    config: GptConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        embed = nn.Embed(c.padded_vocab, c.embed, dtype=dtype, name="token_embedding")
        positions = nn.Embed(c.sequence, c.embed, dtype=dtype, name="position_embedding")
        x = embed(tokens) + positions(jnp.arange(tokens.shape[1]))
        x = nn.Dropout(c.dropout, deterministic=deterministic)(x)
        mask = nn.make_causal_mask(tokens)

        block: Any = Block
        if c.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            block = nn.remat(Block, prevent_cse=not c.scan, policy=policy)
        if c.scan:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=c.layers,
            )
            x, _ = stack(c, deterministic, name="layers")(x, mask)
        else:
            for i in range(c.layers):
                x, _ = block(c, deterministic, name=f"layers_{i}")(x, mask)

        x = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="final_norm")(x)
        return embed.attend(x) if c.tied else nn.Dense(c.padded_vocab, use_bias=False, dtype=dtype, name="head")(x)


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of training; the form of flax's own examples."""
    key, dropout_key = jax.random.split(state.key)

    def loss_fn(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, batch["tokens"], False, rngs={"dropout": dropout_key})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["targets"])
        return jnp.mean(losses)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    state = state.apply_gradients(grads=grads, key=key)
    return state, {"loss": loss, "grad_norm": global_norm(grads)}


def make_init(config: GptConfig, training: TrainingConfig) -> Callable[[jax.Array], TrainState]:
    """`init(key) -> TrainState`."""
    model, optimizer = Gpt(config), make_optimizer(training, decayed)

    def init(key: jax.Array) -> TrainState:
        params_key, dropout_key = jax.random.split(key)
        params = model.init(params_key, jnp.zeros((1, config.sequence), jnp.int32))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optimizer, key=dropout_key)

    return init


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The linen GPT with these fields of `GptConfig` and `TrainingConfig`, and `batch`."""
    sizes, training_options = split_options(name, options, GptConfig, TrainingConfig)
    config, training = GptConfig(**sizes), TrainingConfig(**training_options)
    if config.projection != "heads":
        raise ZooOptionError(f"{name} has flax's own attention: projection is always 'heads'", "projection", ("heads",))
    return ZooModel(
        name=name,
        config=config,
        step=train_step,
        init=make_init(config, training),
        batch=options["batch"],
        sequence=config.sequence,
        flop_per_token=config.flop_per_token,
        make_batch_shapes=token_shapes,
        make_example_batch=partial(random_tokens, config.vocab),
        params_of=lambda state: state.params,
    )
