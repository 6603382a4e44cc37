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


def _close(a: Tree, b: Tree, tolerance: float = 2e-5) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=tolerance, atol=tolerance), a, b))


def _stacked(params: dict[str, Tree], count: int) -> dict[str, Tree]:
    """Unrolled parameters as the scanned model has them."""
    each = [params[f"layers_{i}"] for i in range(count)]
    rest = {k: v for k, v in params.items() if not k.startswith("layers_")}
    return rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}


def _gradients(model: zoo.ZooModel, params: Tree, batch: Tree, key: jax.Array | None) -> tuple[jax.Array, Tree]:
    return jax.jit(jax.value_and_grad(partial(gpt.loss, model.config)))(params, batch, key)


@pytest.mark.smoke
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_scanned_and_unrolled_layers_agree(dropout: float) -> None:
    scanned = zoo.model("gpt-toy", dropout=dropout)
    unrolled = zoo.model("gpt-toy", dropout=dropout, scan=False)
    a, b = (jax.jit(m.init)(jax.random.key(0)) for m in (scanned, unrolled))
    assert _close(a["params"], _stacked(b["params"], 2), 1e-7)
    batch = scanned.example_batch(jax.random.key(1))
    key = jax.random.key(2) if dropout else None
    loss_a, grads_a = _gradients(scanned, a["params"], batch, key)
    loss_b, grads_b = _gradients(unrolled, b["params"], batch, key)
    assert jnp.allclose(loss_a, loss_b, rtol=1e-6)
    assert _close(grads_a, _stacked(grads_b, 2))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_changes_no_number(remat: str, scan: bool) -> None:
    kept = zoo.model("gpt-toy", scan=scan, dropout=0.1)
    again = zoo.model("gpt-toy", scan=scan, dropout=0.1, remat=remat)
    params = kept.init(jax.random.key(0))["params"]
    batch, key = kept.example_batch(jax.random.key(1)), jax.random.key(2)
    loss_a, grads_a = _gradients(kept, params, batch, key)
    loss_b, grads_b = _gradients(again, params, batch, key)
    assert jnp.allclose(loss_a, loss_b, rtol=1e-6)
    assert _close(grads_a, grads_b)


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
    params = heads.init(jax.random.key(0))["params"]
    shapes = flat.state_shapes()["params"]
    reshaped = jax.tree.map(lambda leaf, shape: leaf.reshape(shape.shape), params, shapes)
    assert shapes["layers"]["attention"]["query"]["kernel"].shape == (2, 64, 64)
    batch = heads.example_batch(jax.random.key(1))
    loss_a, grads_a = _gradients(heads, params, batch, None)
    loss_b, grads_b = _gradients(flat, reshaped, batch, None)
    assert jnp.allclose(loss_a, loss_b, rtol=1e-6)
    assert _close(jax.tree.map(lambda leaf, shape: leaf.reshape(shape.shape), grads_a, shapes), grads_b)


def test_no_position_sees_what_comes_after_it() -> None:
    model = zoo.model("gpt-toy")
    params = model.init(jax.random.key(0))["params"]
    tokens = model.example_batch(jax.random.key(1), batch=2)["tokens"]
    changed = tokens.at[:, 20:].set((tokens[:, 20:] + 1) % 256)
    a, b = (gpt.apply(model.config, params, t) for t in (tokens, changed))
    assert jnp.allclose(a[:, :20], b[:, :20], atol=1e-6)
    assert not jnp.allclose(a[:, 20], b[:, 20], atol=1e-3)


def test_bfloat16_stays_near_float32_and_keeps_float32_masters() -> None:
    exact, half = zoo.model("gpt-toy"), zoo.model("gpt-toy", dtype="bfloat16")
    state = exact.init(jax.random.key(0))
    batch = exact.example_batch(jax.random.key(1))
    assert gpt.apply(half.config, state["params"], batch["tokens"]).dtype == jnp.bfloat16
    a, b = (jax.jit(m.step)(state, batch) for m in (exact, half))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(b[0]["params"]))
    assert jnp.allclose(a[1]["loss"], b[1]["loss"], rtol=5e-3)
    assert not jnp.array_equal(a[1]["loss"], b[1]["loss"])


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


def test_dropout_draws_anew_in_every_step() -> None:
    model = zoo.model("gpt-toy", dropout=0.5, learning_rate=0.0)
    step, batch = jax.jit(model.step), model.example_batch(jax.random.key(1))
    state, first = step(model.init(jax.random.key(0)), batch)
    _, second = step(state, batch)
    assert abs(float(first["loss"] - second["loss"])) > 1e-3


def test_clipping_bounds_the_update_and_the_metric_shows_the_norm_before_it() -> None:
    options: dict[str, Any] = {"weight_decay": 0.0, "eps": 1.0}  # With so large an eps the update follows the gradient.
    free, clipped = (zoo.model("gpt-toy", clip_norm=norm, **options) for norm in (None, 0.01))
    state = free.init(jax.random.key(0))
    batch = free.example_batch(jax.random.key(1))
    a, metrics_a = jax.jit(free.step)(state, batch)
    clipped_state = state | {"opt_state": clipped.init(jax.random.key(0))["opt_state"]}
    b, metrics_b = jax.jit(clipped.step)(clipped_state, batch)
    assert jnp.allclose(metrics_a["grad_norm"], metrics_b["grad_norm"], rtol=1e-5)
    moved_a, moved_b = (
        float(jnp.linalg.norm(new["params"]["final_norm"]["bias"] - state["params"]["final_norm"]["bias"]))
        for new in (a, b)
    )
    assert moved_b < 0.05 * moved_a


def test_weight_decay_acts_on_matrices_only() -> None:
    model = zoo.model("gpt-toy", learning_rate=1.0, weight_decay=0.5, b1=0.0, b2=0.0, eps=1e30)
    state = model.init(jax.random.key(0))
    new, _ = jax.jit(model.step)(state, model.example_batch(jax.random.key(1)))
    before, after = state["params"]["layers"], new["params"]["layers"]
    assert jnp.allclose(after["mlp"]["up"]["kernel"], 0.5 * before["mlp"]["up"]["kernel"])
    assert jnp.allclose(after["mlp_norm"]["scale"], before["mlp_norm"]["scale"])


def test_warm_up_starts_from_a_rate_of_zero() -> None:
    model = zoo.model("gpt-toy", warmup_steps=4)
    state = model.init(jax.random.key(0))
    step, batch = jax.jit(model.step), model.example_batch(jax.random.key(1))
    first, _ = step(state, batch)
    second, _ = step(first, batch)
    assert _close(first["params"], state["params"], 0.0)
    assert not _close(second["params"], state["params"], 1e-6)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["gpt-toy", "llama-toy"])
def test_it_learns_the_text_that_ships_with_python(name: str) -> None:
    model = zoo.model(name)
    train, _ = data.split(data.corpus())
    step = jax.jit(model.step, donate_argnums=0)
    state, losses = jax.jit(model.init)(jax.random.key(0)), []
    for index in range(30):
        state, metrics = step(state, data.batch_at(train, model.batch, model.sequence, index=index))
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - np.log(256)) < 0.2
    assert np.mean(losses[-5:]) < losses[0] - 1.8
    assert int(state["step"]) == 30
