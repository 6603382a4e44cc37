"""The flax forms compute what the plain GPT computes, and train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallelizer import zoo
from parallelizer.zoo import data, flax_linen, flax_nnx, gpt
from parallelizer.zoo.training import TrainingConfig


@pytest.mark.parametrize("options", [{}, {"scan": False}, {"remat": "full"}, {"remat": "dots"}, {"tied": False}])
def test_linen_has_the_plain_models_parameters_and_logits(options: dict[str, Any]) -> None:
    plain, linen = zoo.model("gpt-toy", **options), zoo.model("gpt-toy-linen", **options)
    params = jax.jit(linen.init)(jax.random.key(0)).params
    shapes = plain.state_shapes()["params"]
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    tokens = plain.example_batch(jax.random.key(1))["tokens"]
    expected = gpt.apply(plain.config, params, tokens)
    logits = flax_linen.Gpt(linen.config).apply({"params": params}, tokens)
    assert jnp.allclose(logits, expected, atol=1e-4)


def test_nnx_has_the_plain_models_parameters_and_logits() -> None:
    plain = zoo.model("gpt-toy", scan=False)
    model, _ = flax_nnx.create(plain.config, TrainingConfig(), jax.random.key(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for i, layer in params.pop("layers").items():
        params[f"layers_{i}"] = layer
    shapes = plain.state_shapes()["params"]
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    tokens = plain.example_batch(jax.random.key(1))["tokens"]
    assert jnp.allclose(model(tokens), gpt.apply(plain.config, params, tokens), atol=1e-4)


def test_the_nnx_step_in_place_and_the_functional_one_are_the_same() -> None:
    zoo_model = zoo.model("gpt-toy-nnx", dropout=0.1)
    training = TrainingConfig(learning_rate=3e-3, b2=0.99)
    model, optimizer = flax_nnx.create(zoo_model.config, training, jax.random.key(0))
    state = zoo_model.init(jax.random.key(0))
    in_place, functional = nnx.jit(flax_nnx.train_step), jax.jit(zoo_model.step)
    for i in range(3):
        batch = zoo_model.example_batch(jax.random.key(i))
        metrics = in_place(model, optimizer, batch)
        state, other = functional(state, batch)
        assert jnp.allclose(metrics["loss"], other["loss"], rtol=1e-5)
    changed = jax.tree.leaves(nnx.state(model, nnx.Param))
    for a, b in zip(changed, jax.tree.leaves(nnx.filter_state(state["model"], nnx.Param)), strict=True):
        assert jnp.allclose(a, b, atol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["gpt-toy-linen", "gpt-toy-nnx"])
def test_it_learns_the_text_that_ships_with_python(name: str) -> None:
    model = zoo.model(name, dropout=0.1)
    train, _ = data.split(data.corpus())
    step = jax.jit(model.step, donate_argnums=0)
    state, losses = jax.jit(model.init)(jax.random.key(0)), []
    for index in range(30):
        state, metrics = step(state, data.batch_at(train, model.batch, model.sequence, index=index))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < losses[0] - 1.8
