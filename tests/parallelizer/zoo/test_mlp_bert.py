"""The perceptron and the BERT stack."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import bert, mlp

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name", ["mlp", "bert"])
def test_it_fits_one_batch(name: str) -> None:
    model = zoo.model(name, **({"scan": True} if name == "bert" else {}))
    step, batch = jit(model.step, donate_argnums=0), model.example_batch(jax.random.key(1))
    state, losses = jit(model.init)(jax.random.key(0)), []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_an_untrained_bert_finds_all_other_tokens_about_equally_likely() -> None:
    model = zoo.model("bert", loss="tokens", scan=True)
    params = jit(model.init)(jax.random.key(0))["params"]
    same, other = (model.example_batch(jax.random.key(i)) for i in (1, 2))
    loss = jit(partial(bert.loss, model.config))
    assert abs(float(loss(params, same | {"targets": other["tokens"]}, None)) - np.log(256)) < 0.3
    assert float(loss(params, same, None)) < np.log(256) - 0.5  # The table that embeds a token also predicts it.


def test_mlp_is_products_with_relu_between() -> None:
    model = zoo.model("mlp", layers=3, hidden=4, inputs=5, outputs=2, batch=7)
    params = jit(model.init)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)
    batch = model.example_batch(jax.random.key(1))
    x = np.asarray(batch["x"])
    assert x.shape == (7, 5)
    for i in range(3):
        x = x @ np.asarray(params[f"layers_{i}"]["kernel"]) + np.asarray(params[f"layers_{i}"]["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    expected = np.mean((x - np.asarray(batch["y"])) ** 2)
    assert np.allclose(mlp.loss(model.config, params, batch, None), expected, rtol=1e-5)


def test_mlp_without_bias_has_kernels_only() -> None:
    params = zoo.model("mlp", layers=2, bias=False).state_shapes()["params"]
    assert [set(layer) for layer in params.values()] == [{"kernel"}, {"kernel"}]


def test_adam_state_holds_two_moments_per_parameter() -> None:
    model = zoo.model("mlp")
    moments = [leaf for leaf in jax.tree.leaves(model.state_shapes()["opt_state"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * model.num_parameters


def test_fused_and_separate_projections_agree() -> None:
    fused, separate = zoo.model("bert"), zoo.model("bert", fused=False)
    heads, head_dim, embed = fused.config.heads, fused.config.head_dim, fused.config.embed
    params = jit(fused.init)(jax.random.key(0))["params"]
    batch = fused.example_batch(jax.random.key(1))
    other = {}
    for name, layer in params.items():
        qkv = layer["attention"]["qkv"]
        kernel = qkv["kernel"].reshape(embed, heads, 3, head_dim)
        bias = qkv["bias"].reshape(heads, 3, head_dim)
        attention = {
            part: {"kernel": kernel[:, :, i], "bias": bias[:, i]} for i, part in enumerate(("query", "key", "value"))
        }
        out = layer["attention"]["out"]
        attention["out"] = {"kernel": out["kernel"].reshape(heads, head_dim, embed), "bias": out["bias"]}
        other[name] = layer | {"attention": attention}
    a = jit(partial(bert.loss, fused.config))(params, batch, None)
    b = jit(partial(bert.loss, separate.config))(other, batch, None)
    assert np.allclose(a, b, rtol=1e-6)


def test_what_the_mask_hides_has_no_influence() -> None:
    model = zoo.model("bert")
    params = jit(model.init)(jax.random.key(0))["params"]
    batch = model.example_batch(jax.random.key(1))
    mask = batch["mask"].at[:, 5].set(0)
    changed = batch["hidden"].at[:, 5].add(1.0)
    stack = jit(partial(bert.apply, model.config))
    a, b = stack(params, batch["hidden"], mask), stack(params, changed, mask)
    others = np.arange(8) != 5
    assert np.allclose(np.asarray(a)[:, others], np.asarray(b)[:, others], atol=1e-5)
    seen = stack(params, changed, batch["mask"])
    assert not np.allclose(np.asarray(a)[:, others], np.asarray(seen)[:, others], atol=1e-5)


def test_the_scanned_recomputing_stack_has_the_same_gradient() -> None:
    plain, other = zoo.model("bert"), zoo.model("bert", remat="dots", scan=True)
    batch = plain.example_batch(jax.random.key(1))
    results = []
    for model in (plain, other):
        params = jit(model.init)(jax.random.key(0))["params"]
        loss, gradients = jit(jax.value_and_grad(partial(bert.loss, model.config)))(params, batch, None)
        norms = sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(gradients))
        results.append((float(loss), norms))
    assert np.allclose(results[0], results[1], rtol=1e-5)
