"""Llama's own pieces: rotary positions, grouped attention, RMSNorm."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from parallelizer import zoo
from parallelizer.zoo import layers, llama

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_rotary_products_depend_on_the_distance_alone() -> None:
    query, key = (jax.random.normal(jax.random.key(i), (16,)) for i in (0, 1))
    angles = llama.rotary_angles(32, 16, 500_000.0)
    turned_q, turned_k = (llama.rotate(jnp.broadcast_to(v, (1, 32, 1, 16)), angles)[0, :, 0] for v in (query, key))
    products = turned_q @ turned_k.T
    for distance in (0, 1, 7):
        along = np.diagonal(products, offset=distance)
        assert np.allclose(along, along[0], atol=1e-4)
    assert not np.allclose(products[0, 0], products[0, 7], atol=1e-2)
    assert np.allclose(turned_q[0], query)


def test_grouped_attention_is_attention_with_repeated_keys_and_values() -> None:
    query = jax.random.normal(jax.random.key(0), (2, 6, 8, 4))
    key, value = (jax.random.normal(jax.random.key(i), (2, 6, 2, 4)) for i in (1, 2))
    grouped = jit(lambda q, k, v: llama.grouped_attention(q, k, v, 0.0, None))(query, key, value)
    repeated = [np.repeat(x, 4, axis=2) for x in (key, value)]
    assert np.allclose(grouped, jit(layers.attention)(query, *repeated, layers.causal_mask(6)), atol=1e-5)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x = jnp.array([[3.0, 4.0]])
    y = llama.rms_norm({"scale": jnp.array([1.0, 2.0])}, x, 0.0)
    assert np.allclose(y, jnp.array([[3.0, 8.0]]) / 12.5**0.5)


def test_scanned_and_unrolled_layers_agree() -> None:
    options = {"tied": True, "dropout": 0.1}
    scanned = zoo.model("llama-toy", remat="full", **options)
    unrolled = zoo.model("llama-toy", remat="dots", scan=False, **options)
    params, stacked = (jit(m.init)(jax.random.key(0))["params"] for m in (unrolled, scanned))
    batch, key = scanned.example_batch(jax.random.key(1)), jax.random.key(2)
    loss_a, grads_a = jit(jax.value_and_grad(partial(llama.loss, scanned.config)))(stacked, batch, key)
    loss_b, grads_b = jit(jax.value_and_grad(partial(llama.loss, unrolled.config)))(params, batch, key)
    assert np.allclose(loss_a, loss_b, rtol=1e-6)
    for i in range(2):
        for a, b in zip(jax.tree.leaves(grads_a["layers"]), jax.tree.leaves(grads_b[f"layers_{i}"]), strict=True):
            assert np.allclose(a[i], b, rtol=1e-4, atol=2e-5)


def test_flat_projections_are_the_same_numbers_laid_out_otherwise() -> None:
    heads, flat = zoo.model("llama-toy"), zoo.model("llama-toy", projection="flat")
    params = jit(heads.init)(jax.random.key(0))["params"]
    reshaped = jax.tree.map(lambda leaf, shape: leaf.reshape(shape.shape), params, flat.state_shapes()["params"])
    assert reshaped["layers"]["attention"]["key"]["kernel"].shape == (2, 64, 16)
    batch = heads.example_batch(jax.random.key(1))
    a, b = (jit(partial(llama.loss, m.config))(p, batch, None) for m, p in ((heads, params), (flat, reshaped)))
    assert np.allclose(a, b, rtol=1e-6)
