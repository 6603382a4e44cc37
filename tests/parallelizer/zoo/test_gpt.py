"""The GPT: its forms agree with each other, and it learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import data, gpt, layers

Tree = Any

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _close(a: Tree, b: Tree, tolerance: float = 2e-5) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.allclose(x, y, rtol=tolerance, atol=tolerance)), a, b))


def _stacked(params: dict[str, Tree], count: int) -> dict[str, Tree]:
    """Unrolled parameters as the scanned model has them."""
    each = [params[f"layers_{i}"] for i in range(count)]
    rest = {k: v for k, v in params.items() if not k.startswith("layers_")}
    return rest | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *each)}


def _gradients(model: zoo.ZooModel, params: Tree, batch: Tree, key: jax.Array | None) -> tuple[jax.Array, Tree]:
    return jit(jax.value_and_grad(partial(gpt.loss, model.config)))(params, batch, key)


def test_scanned_unrolled_and_recomputing_forms_agree_with_dropout_too() -> None:
    scanned = zoo.model("gpt-toy", dropout=0.2)
    unrolled = zoo.model("gpt-toy", dropout=0.2, scan=False)
    params = jit(unrolled.init)(jax.random.key(0))["params"]
    stacked = jit(scanned.init)(jax.random.key(0))["params"]
    assert _close(stacked, _stacked(params, 2), 1e-6)

    batch, key = scanned.example_batch(jax.random.key(1)), jax.random.key(2)
    loss, gradients = _gradients(scanned, stacked, batch, key)
    for scan, remat in ((True, "full"), (False, "dots")):
        model = zoo.model("gpt-toy", dropout=0.2, scan=scan, remat=remat)
        other_loss, other = _gradients(model, stacked if scan else params, batch, key)
        assert np.allclose(loss, other_loss, rtol=1e-6)
        assert _close(gradients, other if scan else _stacked(other, 2))
    assert abs(float(loss - jit(partial(gpt.loss, scanned.config))(stacked, batch, None))) > 1e-4


def _products(jaxpr: Any) -> int:
    """Matrix products in a jaxpr, inner ones included."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == "dot_general"
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            count += _products(inner) if hasattr(inner, "eqns") else 0
    return count


def test_recomputation_repeats_the_products_that_its_policy_drops() -> None:
    def products(remat: str) -> int:
        model = zoo.model("gpt-toy", scan=False, remat=remat)
        return _products(jax.make_jaxpr(model.step)(model.state_shapes(), model.batch_shapes()).jaxpr)

    # A layer has 8 products forward. Its last one's result is only added to the residual, so it is never repeated;
    # "dots" keeps the products with weights and repeats the two of attention, of which the second only feeds "out".
    assert products("full") - products("none") == 2 * 7
    assert products("dots") - products("none") == 2 * 2


def test_flat_projections_are_the_same_numbers_laid_out_otherwise() -> None:
    heads, flat = zoo.model("gpt-toy"), zoo.model("gpt-toy", projection="flat")
    params = jit(heads.init)(jax.random.key(0))["params"]
    shapes = flat.state_shapes()["params"]
    reshaped = jax.tree.map(lambda leaf, shape: leaf.reshape(shape.shape), params, shapes)
    assert shapes["layers"]["attention"]["query"]["kernel"].shape == (2, 64, 64)
    tokens = heads.example_batch(jax.random.key(1))["tokens"]
    a, b = (jit(partial(gpt.apply, m.config))(p, tokens) for m, p in ((heads, params), (flat, reshaped)))
    assert np.allclose(a, b, atol=1e-5)


def test_no_position_sees_what_comes_after_it() -> None:
    model = zoo.model("gpt-toy")
    params = jit(model.init)(jax.random.key(0))["params"]
    tokens = model.example_batch(jax.random.key(1), batch=2)["tokens"]
    changed = tokens.at[:, 20:].set((tokens[:, 20:] + 1) % 256)
    forward = jit(partial(gpt.apply, model.config))
    a, b = forward(params, tokens), forward(params, changed)
    assert np.allclose(a[:, :20], b[:, :20], atol=1e-6)
    assert not np.allclose(a[:, 20], b[:, 20], atol=1e-3)


def test_bfloat16_stays_near_float32_and_keeps_float32_masters() -> None:
    exact, half = zoo.model("gpt-toy"), zoo.model("gpt-toy", dtype="bfloat16")
    state = jit(exact.init)(jax.random.key(0))
    batch = exact.example_batch(jax.random.key(1))
    a, b = (jit(partial(gpt.apply, m.config))(state["params"], batch["tokens"]) for m in (exact, half))
    assert b.dtype == jnp.bfloat16
    assert not np.array_equal(a, b)
    assert np.allclose(layers.cross_entropy(a, batch["targets"]), layers.cross_entropy(b, batch["targets"]), rtol=5e-3)
    new_state, _ = jax.eval_shape(half.step, state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(new_state["params"])} == {jnp.dtype("float32")}


def test_cross_entropy_is_minus_the_log_of_the_softmax_at_the_target() -> None:
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5)) * 10
    targets = jnp.array([[0, 4, 2], [1, 1, 3]])
    weights = np.exp(np.asarray(logits, np.float64))
    chosen = np.take_along_axis(weights / weights.sum(-1, keepdims=True), np.asarray(targets)[..., None], -1)
    assert np.allclose(layers.cross_entropy(logits, targets), -np.log(chosen).mean(), rtol=1e-6)


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    x = jnp.ones((200, 200))
    y = layers.dropout(x, 0.25, jax.random.key(0))
    assert abs(float(jnp.mean(y == 0)) - 0.25) < 0.01
    assert abs(float(jnp.mean(y)) - 1.0) < 0.02
    assert layers.dropout(x, 0.25, None) is x


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["gpt-toy", "llama-toy"])
def test_it_learns_the_text_that_ships_with_python(name: str) -> None:
    model = zoo.model(name)
    train, _ = data.split(data.corpus())
    step = jit(model.step, donate_argnums=0)
    state, losses = jit(model.init)(jax.random.key(0)), []
    for index in range(30):
        state, metrics = step(state, data.batch_at(train, model.batch, model.sequence, index=index))
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - np.log(256)) < 0.2
    assert np.mean(losses[-5:]) < losses[0] - 1.8
    assert int(state["step"]) == 30
