"""The shared training step, on a loss so small that every number can be said beforehand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer.zoo.training import TrainingConfig, decayed, make_init, make_step

Params = dict[str, Any]


def _init_params(key: jax.Array) -> Params:
    del key
    return {"dense": {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}}


def _half_square(params: Params, batch: jax.Array, key: jax.Array | None) -> jax.Array:
    """Its gradient is the parameters times the batch."""
    del key
    return 0.5 * batch * sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))


def _noise(params: Params, batch: jax.Array, key: jax.Array | None) -> jax.Array:
    assert key is not None
    return _half_square(params, batch, None) + jax.random.uniform(key)


def _after(config: TrainingConfig, steps: int, batch: float = 1.0) -> tuple[Params, dict[str, jax.Array]]:
    state, metrics = make_init(_init_params, config, random=False)(jax.random.key(0)), {}
    for _ in range(steps):
        state, metrics = make_step(_half_square, config)(state, jnp.float32(batch))
    return state, metrics


def test_the_first_step_of_adam_moves_every_number_by_the_rate() -> None:
    state, metrics = _after(TrainingConfig(learning_rate=0.1, weight_decay=0.0, clip_norm=None), 1)
    assert np.allclose(state["params"]["dense"]["kernel"], jnp.array([2.9, 0.0]))
    assert np.allclose(state["params"]["dense"]["bias"], 3.9)
    assert np.allclose(metrics["loss"], 12.5)
    assert np.allclose(metrics["grad_norm"], 5.0)
    assert int(state["step"]) == 1


def test_clipping_scales_what_adam_sees_and_not_the_metric() -> None:
    state, metrics = _after(TrainingConfig(weight_decay=0.0, clip_norm=0.5), 1, batch=2.0)
    first_moment = state["opt_state"][1][0].mu
    assert np.allclose(first_moment["dense"]["kernel"], 0.1 * 0.5 * jnp.array([0.6, 0.0]), atol=1e-6)
    assert np.allclose(metrics["grad_norm"], 10.0)


def test_a_gradient_below_the_bound_is_not_clipped() -> None:
    state, _ = _after(TrainingConfig(weight_decay=0.0, clip_norm=50.0), 1)
    assert np.allclose(state["opt_state"][1][0].mu["dense"]["bias"], 0.4)


def test_weight_decay_acts_on_kernels_and_embeddings_only() -> None:
    tree = {"a": {"kernel": 0, "bias": 0}, "b": {"embedding": 0}, "c": {"scale": 0}}
    assert decayed(tree) == {"a": {"kernel": True, "bias": False}, "b": {"embedding": True}, "c": {"scale": False}}
    state, _ = _after(TrainingConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=None), 1)
    assert np.allclose(state["params"]["dense"]["kernel"], jnp.array([2.9 - 0.1 * 0.5 * 3.0, 0.0]))
    assert np.allclose(state["params"]["dense"]["bias"], 3.9)


def test_warm_up_raises_the_rate_from_zero() -> None:
    config = TrainingConfig(learning_rate=0.4, weight_decay=0.0, clip_norm=None, warmup_steps=4)
    for steps, bias in ((1, 4.0), (2, 4.0 - 0.1)):
        assert np.allclose(_after(config, steps)[0]["params"]["dense"]["bias"], bias, atol=1e-4)


@pytest.mark.parametrize("metrics", [(), ("loss",), ("grad_norm",)])
def test_only_the_metrics_asked_for_are_returned(metrics: tuple[str, ...]) -> None:
    assert set(_after(TrainingConfig(metrics=metrics), 1)[1]) == set(metrics)


def test_a_random_step_draws_anew_every_time_and_repeats_for_a_key() -> None:
    config = TrainingConfig(learning_rate=0.0)
    init, step = make_init(_init_params, config, random=True), make_step(_noise, config)
    runs = []
    for seed in (0, 0, 1):
        state, losses = init(jax.random.key(seed)), []
        for _ in range(3):
            state, metrics = step(state, jnp.float32(1.0))
            losses.append(float(metrics["loss"]))
        runs.append(losses)
    assert len(set(runs[0])) == 3
    assert runs[0] == runs[1] != runs[2]
