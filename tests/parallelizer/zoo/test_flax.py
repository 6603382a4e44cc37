"""The flax forms compute what the plain GPT computes, and train."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from parallelizer import zoo
from parallelizer.zoo import data, flax_linen, flax_nnx, gpt
from parallelizer.zoo.training import TrainingConfig

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("options", [{"remat": "full"}, {"scan": False, "remat": "dots", "tied": False}])
def test_linen_has_the_plain_models_parameters_and_logits(options: dict[str, Any]) -> None:
    plain, linen = zoo.model("gpt-toy", **options), zoo.model("gpt-toy-linen", **options)
    params = jit(linen.init)(jax.random.key(0)).params
    shapes = plain.state_shapes()["params"]
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    tokens = plain.example_batch(jax.random.key(1))["tokens"]
    expected = jit(partial(gpt.apply, plain.config))(params, tokens)
    logits = jit(flax_linen.Gpt(linen.config).apply)({"params": params}, tokens)
    assert np.allclose(logits, expected, atol=1e-4)


def test_nnx_has_the_plain_models_parameters_and_logits() -> None:
    plain = zoo.model("gpt-toy", scan=False)
    model, _ = flax_nnx.create(plain.config, TrainingConfig(), jax.random.key(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for i, layer in params.pop("layers").items():
        params[f"layers_{i}"] = layer
    shapes = plain.state_shapes()["params"]
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    tokens = plain.example_batch(jax.random.key(1))["tokens"]
    graphdef, state = nnx.split(model)
    logits = jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens))(state, tokens)
    assert np.allclose(logits, jit(partial(gpt.apply, plain.config))(params, tokens), atol=1e-4)


@pytest.mark.smoke
def test_linen_learns_the_text_that_ships_with_python() -> None:
    model = zoo.model("gpt-toy-linen", dropout=0.1)
    train, _ = data.split(data.corpus())
    step = jit(model.step, donate_argnums=0)
    state, losses = jit(model.init)(jax.random.key(0)), []
    for index in range(30):
        state, metrics = step(state, data.batch_at(train, model.batch, model.sequence, index=index))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < losses[0] - 1.8
    assert int(state.step) == 30


@pytest.mark.smoke
def test_the_nnx_step_in_place_and_the_functional_one_learn_the_same() -> None:
    zoo_model = zoo.model("gpt-toy-nnx", dropout=0.1)
    train, _ = data.split(data.corpus())
    training = TrainingConfig(learning_rate=3e-3, b2=0.99)
    model, optimizer = flax_nnx.create(zoo_model.config, training, jax.random.key(0))
    state, losses = zoo_model.init(jax.random.key(0)), []
    in_place, functional = nnx.jit(flax_nnx.train_step), jit(zoo_model.step)
    for index in range(30):
        batch = data.batch_at(train, zoo_model.batch, zoo_model.sequence, index=index)
        state, metrics = functional(state, batch)
        losses.append(float(metrics["loss"]))
        if index < 3:
            assert np.allclose(in_place(model, optimizer, batch)["loss"], losses[-1], rtol=1e-5)
    assert np.mean(losses[-5:]) < losses[0] - 1.8
