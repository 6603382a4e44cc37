"""LSTM, Mamba and S5 beside step-by-step computations of their definitions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import lstm, s5, ssm


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("hidden", [8, 12])
def test_an_lstm_is_its_four_gates(hidden: int) -> None:
    config = zoo.model("lstm-toy", embed=8, hidden=hidden, remat="full").config
    params = lstm.init_params(config, jax.random.key(0))["layers_0"]
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    found = np.asarray(lstm.run_layer(config, params, x))
    given, recurrent = (np.asarray(params[name]["kernel"]) for name in ("input", "state"))
    state, cell = np.zeros((2, 8)), np.zeros((2, hidden))
    for t in range(5):
        gates = np.einsum("be,egh->gbh", np.asarray(x[:, t]), given) + np.einsum("be,egh->gbh", state, recurrent)
        gates += np.asarray(params["input"]["bias"])[:, None]
        cell = sigmoid(gates[1]) * cell + sigmoid(gates[0]) * np.tanh(gates[2])
        state = sigmoid(gates[3]) * np.tanh(cell)
        if hidden != 8:
            state = state @ np.asarray(params["project"]["kernel"])
        np.testing.assert_allclose(found[:, t], state, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("steps", [1, 7, 8])
def test_the_recurrence_is_the_loop(steps: int, dtype: type) -> None:
    rng = np.random.default_rng(steps)
    decay, value = (rng.uniform(-1, 1, (2, steps, 3)).astype(dtype) for _ in range(2))
    if dtype is np.complex64:
        decay = decay * np.exp(1j * rng.uniform(0, 3, decay.shape)).astype(dtype)
    found = np.asarray(ssm.linear_recurrence(jnp.asarray(decay), jnp.asarray(value)))
    state = np.zeros((2, 3), dtype)
    for t in range(steps):
        state = decay[:, t] * state + value[:, t]
        np.testing.assert_allclose(found[:, t], state, atol=1e-5)


def test_a_mambas_output_depends_on_the_past_alone() -> None:
    model = zoo.model("mamba-toy", layers=1)
    params = model.init(jax.random.key(0))["params"]
    tokens = model.example_batch(jax.random.key(1), batch=2)["tokens"]
    logits = jax.jit(partial(ssm.apply, model.config, params))
    before, after = logits(tokens), logits(tokens.at[:, 9].add(1))
    np.testing.assert_allclose(after[:, :9], before[:, :9], atol=1e-5)
    assert jnp.max(jnp.abs(after[:, 12] - before[:, 12])) > 1e-6


def test_a_channels_convolution_sees_its_last_positions() -> None:
    kernel, x = jax.random.normal(jax.random.key(0), (4, 1, 3)), jax.random.normal(jax.random.key(1), (2, 6, 3))
    found = ssm.causal_conv({"kernel": kernel, "bias": jnp.zeros(3)}, x)
    padded = np.pad(x, ((0, 0), (3, 0), (0, 0)))
    wanted = sum(padded[:, i : i + 6] * np.asarray(kernel[i, 0]) for i in range(4))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_s5_is_its_discretised_equation() -> None:
    model = zoo.model("s5-toy", layers=1, scan=False)
    params = model.init(jax.random.key(0))["params"]["layers_0"]
    x = jax.random.normal(jax.random.key(1), (2, 6, 32))
    found = np.asarray(s5.state_space(params, x))
    values, write, read = (
        np.asarray(params[n][..., 0] + 1j * params[n][..., 1]) for n in ("eigenvalues", "write", "read")
    )
    decay = np.exp(values * np.exp(np.asarray(params["step"])))
    state = np.zeros((2, len(values)), np.complex128)
    for t in range(6):
        state = decay * state + np.asarray(x[:, t]) @ ((decay - 1) / values * write.T)
        wanted = 2 * (state @ read.T).real + np.asarray(params["skip"] * x[:, t])
        np.testing.assert_allclose(found[:, t], wanted, atol=1e-4)
