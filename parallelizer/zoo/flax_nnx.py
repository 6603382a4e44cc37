"""The GPT as a researcher writes it with flax.nnx: modules that hold their parameters, a step that updates in place.

`train_step(model, optimizer, batch)` is the step that users write under `nnx.jit`. The zoo's `step(state, batch)` is
the same function between `nnx.merge` and `nnx.state`, which is how flax works under plain JAX transformations.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from parallelizer.zoo.gpt import GptConfig
from parallelizer.zoo.model import ZooModel, ZooOptionError, split_options
from parallelizer.zoo.tokens import random_tokens, token_shapes
from parallelizer.zoo.training import TrainingConfig, global_norm, make_optimizer

Batch = Mapping[str, jax.Array]


class Mlp(nnx.Module):
    """Two dense layers with a GELU between."""

    def __init__(self, config: GptConfig, rngs: nnx.Rngs) -> None:
        dtype, hidden = jnp.dtype(config.dtype), config.mlp_ratio * config.embed
        self.up = nnx.Linear(config.embed, hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, config.embed, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x)))


class Block(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: GptConfig, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        self.attention_norm = nnx.LayerNorm(config.embed, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            config.heads,
            config.embed,
            dtype=dtype,
            dropout_rate=config.dropout,
            deterministic=False,
            decode=False,
            rngs=rngs,
        )
        self.mlp_norm = nnx.LayerNorm(config.embed, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config, rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Gpt(nnx.Module):
    """Tokens [b, s] to logits [b, s, vocab]."""

    def __init__(self, config: GptConfig, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        self.token_embedding = nnx.Embed(config.padded_vocab, config.embed, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(config.sequence, config.embed, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.final_norm = nnx.LayerNorm(config.embed, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.token_embedding(tokens) + self.position_embedding(jnp.arange(tokens.shape[1]))
        x = self.dropout(x)
        mask = nnx.make_causal_mask(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        return self.token_embedding.attend(self.final_norm(x))


def create(config: GptConfig, training: TrainingConfig, key: jax.Array) -> tuple[Gpt, nnx.Optimizer[Gpt]]:
    """A fresh model and its optimizer; weight decay acts on every parameter."""
    params_key, dropout_key = jax.random.split(key)
    model = Gpt(config, nnx.Rngs(params=params_key, dropout=dropout_key))
    return model, nnx.Optimizer(model, make_optimizer(training, None), wrt=nnx.Param)


def train_step(model: Gpt, optimizer: nnx.Optimizer[Gpt], batch: Batch) -> dict[str, jax.Array]:
    """One step of training; changes the model and the optimizer in place."""

    def loss_fn(model: Gpt) -> jax.Array:
        logits = model(batch["tokens"]).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]))

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return {"loss": loss, "grad_norm": global_norm(grads)}


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The nnx GPT with these fields of `GptConfig` and `TrainingConfig`, and `batch`; layers are a plain list."""
    sizes, training_options = split_options(name, options, GptConfig, TrainingConfig)
    config, training = GptConfig(**sizes), TrainingConfig(**training_options)
    fixed = {"scan": False, "remat": "none", "tied": True, "projection": "heads"}
    for option, value in fixed.items():
        if getattr(config, option) != value:
            raise ZooOptionError(f"{name} is written with {option}={value!r} only", option, (value,))
    make = partial(create, config, training)

    def objects_from(key: jax.Array) -> dict[str, Any]:
        model, optimizer = make(key)
        return {"model": model, "optimizer": optimizer}

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: objects_from(jax.random.key(0))))

    def init(key: jax.Array) -> Any:
        return nnx.state(objects_from(key))

    def step(state: Any, batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        objects = nnx.merge(graphdef, state)
        metrics = train_step(objects["model"], objects["optimizer"], batch)
        return nnx.state(objects), metrics

    return ZooModel(
        name=name,
        config=config,
        step=step,
        init=init,
        batch=options["batch"],
        sequence=config.sequence,
        flop_per_token=config.flop_per_token,
        make_batch_shapes=token_shapes,
        make_example_batch=partial(random_tokens, config.vocab),
        params_of=lambda state: nnx.filter_state(state, nnx.Param),
    )
