"""Muon, Shampoo, TNT and SOAP: what is a matrix, and the mathematics of one step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import optimizers
from parallelizer.zoo.training import TrainingConfig, make_init, make_step

Params = dict[str, Any]
SHAPE = (4, 6)


def _after(kind: str, steps: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The kernel before and after steps whose gradient is a fixed matrix, at rate 0.1 without decay and clipping."""
    gradient = jax.random.normal(jax.random.key(3), SHAPE)

    def loss(params: Params, batch: jax.Array, key: Any) -> jax.Array:
        return jnp.sum(params["dense"]["kernel"] * gradient) + jnp.sum(params["dense"]["bias"])

    def init_params(key: jax.Array) -> Params:
        return {"dense": {"kernel": jax.random.normal(key, SHAPE), "bias": jnp.zeros(6)}}

    config = TrainingConfig(optimizer=kind, learning_rate=0.1, weight_decay=0.0, clip_norm=None, **options)
    state = before = make_init(init_params, config, random=False)(jax.random.key(0))
    for _ in range(steps):
        state, _ = make_step(loss, config)(state, jnp.zeros(()))
    # Adam's steps are as long as the rate; in Muon it looks ahead (NAdam), which makes the first one longer.
    ahead = 1 + 0.9 * (1 - 0.9) / (1 - 0.9**2) if kind == "muon" else 1.0
    assert np.allclose(state["params"]["dense"]["bias"], -0.1 * ahead * steps, rtol=1e-3)
    return tuple(np.asarray(s["params"]["dense"]["kernel"]) for s in (before, state))


def test_muon_steps_have_nearly_equal_singular_values() -> None:
    before, after = _after("muon", 1)
    step = np.linalg.svd((before - after) / (0.1 * 0.2 * 6**0.5), compute_uv=False)
    assert step.max() < 1.25 and step.min() > 0.65  # the quintic's coefficients leave it between these


def test_shampoo_steps_are_the_gradient_between_inverse_roots_and_as_long_as_adams() -> None:
    before, after = _after("shampoo", 1, eps=1e-6, b2=0.9)
    g = np.asarray(jax.random.normal(jax.random.key(3), SHAPE), np.float64)

    def root(moment: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(0.1 * moment)
        return vectors @ np.diag((np.maximum(values, 0) + 1e-6) ** -0.25) @ vectors.T

    wanted = root(g @ g.T) @ g @ root(g.T @ g)
    wanted *= 0.1 * np.sqrt(g.size) / np.linalg.norm(wanted)  # Adam's first step has the rate in every number
    assert np.allclose(before - after, wanted, atol=2e-4)


def test_tnt_steps_are_the_gradient_between_inverses() -> None:
    before, after = _after("tnt", 1, b2=0.9)
    g = np.asarray(jax.random.normal(jax.random.key(3), SHAPE), np.float64)

    def inverse(moment: np.ndarray) -> np.ndarray:
        n = len(moment)
        return np.linalg.inv(moment + optimizers.DAMPING * np.trace(moment) / n * np.eye(n))

    wanted = inverse(g @ g.T) @ g @ inverse(g.T @ g)
    wanted *= 0.1 * np.sqrt(g.size) / np.linalg.norm(wanted)
    assert np.allclose(before - after, wanted, atol=2e-4)


def test_the_inverse_root_inverts_its_power() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 5, 9))
    moment = jnp.einsum("bij,bkj->bik", x, x)
    root = optimizers.inverse_root(moment, 4, 1e-8)
    assert np.allclose(root @ root @ root @ root @ moment, np.eye(5), atol=2e-2)


def test_soap_starts_as_adam_and_its_bases_become_eigenvectors() -> None:
    before, after = _after("soap", 1)
    assert np.allclose(np.abs(before - after), 0.1, rtol=1e-3)  # the bases are unit vectors at first
    rule = optimizers.soap(0.1, 0.9, 0.95, 1e-8, 0.0, None)
    params = {"dense": {"kernel": jnp.zeros(SHAPE)}}
    state, g = rule.init(params), jax.random.normal(jax.random.key(3), SHAPE)
    update = jax.jit(rule.update)
    for _ in range(60):
        _, state = update({"dense": {"kernel": g}}, state, params)
    (soap,) = (
        s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, optimizers.SoapState)) if hasattr(s, "bases")
    )
    (left, _), (moment, _) = soap.bases[0], soap.moments[0]
    turned = np.asarray(left.T @ moment @ left)
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 0.02 * np.abs(turned).max()


def test_kernels_are_read_as_rows_and_columns() -> None:
    state = zoo.model("mixtral-toy").state_shapes()
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state["params"])[0]:
        found["/".join(k.key for k in path)] = optimizers.matrix_axes(path, leaf)
    assert found["token_embedding/embedding"] is None
    assert found["final_norm/scale"] is None
    assert found["head/kernel"] == ((0,), (1,))
    assert found["layers/attention/query/kernel"] == ((1,), (2, 3))
    assert found["layers/attention/out/kernel"] == ((1, 2), (3,))
    assert found["layers/experts/up/kernel"] == ((2,), (3,))
    assert found["layers/router/kernel"] == ((1,), (2,))


@pytest.mark.parametrize("kind", optimizers.MATRIX_OPTIMIZERS)
def test_a_gpt_learns_with_it(kind: str) -> None:
    model = zoo.model("gpt-toy", optimizer=kind, layers=1, embed=32)
    state, batch, step = model.init(jax.random.key(0)), model.example_batch(jax.random.key(1)), jax.jit(model.step)
    shapes = jax.tree.map(jnp.shape, state)
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.2
    assert jax.tree.map(jnp.shape, state) == shapes
