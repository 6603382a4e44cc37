"""The pieces of image models, beside Flax's or their definitions; batch statistics, noise, patches."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from parallelizer import zoo
from parallelizer.zoo import dit, images, resnet, unet

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))


def test_group_norm_is_flaxs() -> None:
    params = {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}
    wanted = linen.GroupNorm(num_groups=4, epsilon=1e-5).apply({"params": params}, X)
    np.testing.assert_allclose(images.group_norm(params, X, 4), wanted, atol=1e-5)


def test_batch_norm_is_flaxs_and_moves_the_running_statistics() -> None:
    params = {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}
    y, new = images.batch_norm(params, images.init_statistics(8), X)
    norm = linen.BatchNorm(use_running_average=False, momentum=images.STATISTICS_DECAY)
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
    wanted, state = norm.apply({"params": params, "batch_stats": stats}, X, mutable=["batch_stats"])
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(new["mean"], state["batch_stats"]["mean"], atol=1e-6)
    np.testing.assert_allclose(new["variance"], state["batch_stats"]["var"], atol=1e-6)


def test_transposed_convolutions_are_flaxs_and_double_the_image() -> None:
    params = images.init_conv(jax.random.key(1), 4, 8, 3)
    wanted = linen.ConvTranspose(3, (4, 4), (2, 2)).apply({"params": params}, X)
    assert wanted.shape == (2, 12, 12, 3)
    np.testing.assert_allclose(images.conv_transpose(params, X), wanted, atol=1e-5)


def test_max_pool_and_upsample() -> None:
    np.testing.assert_array_equal(images.max_pool(X, 3, 2), linen.max_pool(X, (3, 3), (2, 2), "SAME"))
    np.testing.assert_array_equal(images.upsample(X), np.repeat(np.repeat(X, 2, axis=1), 2, axis=2))


def test_patches_are_cut_row_by_row_and_put_together_again() -> None:
    image = jnp.arange(2 * 4 * 6 * 1).reshape(2, 4, 6, 1)
    patches = images.to_patches(image, 2)
    assert patches.shape == (2, 6, 4)
    np.testing.assert_array_equal(patches[0, 1], image[0, :2, 2:4, 0].ravel())
    np.testing.assert_array_equal(images.from_patches(patches, 2, 4), image)


def test_noise_keeps_the_variance_of_a_normal_image() -> None:
    image = jax.random.normal(jax.random.key(2), (64, 16, 16, 4))
    x, noise, time = images.noised(image, jax.random.key(3))
    assert x.shape == noise.shape == image.shape and time.shape == (64,)
    assert float(jnp.var(x)) == pytest.approx(1.0, abs=0.02)
    late, early = int(jnp.argmax(time)), int(jnp.argmin(time))
    assert jnp.mean(jnp.square(x[late] - noise[late])) < jnp.mean(jnp.square(x[early] - noise[early]))


def test_blocks_of_a_fresh_resnet_are_the_identity_and_statistics_are_those_of_the_batch() -> None:
    model = zoo.model("resnet-toy")
    params, statistics = resnet.init_params(model.config, jax.random.key(0))
    image = model.example_batch(jax.random.key(1), batch=4)["image"]
    _, new = jax.jit(partial(resnet.apply, model.config))(params, statistics, image)
    assert jax.tree.structure(new) == jax.tree.structure(statistics)
    stem = images.conv(params["stem"], image, 2, [(3, 3), (3, 3)])
    np.testing.assert_allclose(new["stem_norm"]["mean"], 0.1 * jnp.mean(stem, axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(new["stem_norm"]["variance"], 0.9 + 0.1 * jnp.var(stem, axis=(0, 1, 2)), atol=1e-4)


def test_skips_of_a_unet_are_used_up() -> None:
    config = zoo.model("unet-sd").config
    parts = list(config.parts())
    kept = 1 + sum(part.pushes for part in parts)
    assert kept == sum(part.pops for part in parts) == 12
    assert (parts[-1].height, parts[-1].outputs) == (64, 320)
    assert min(part.height for part in parts) == 8


@pytest.mark.parametrize("upsample", unet.UPSAMPLE)
def test_a_unet_answers_in_the_shape_of_its_image(upsample: str) -> None:
    model = zoo.model("unet-toy", upsample=upsample)
    shapes = model.batch_shapes(batch=3)
    params = model.state_shapes()["params"]
    time = jax.ShapeDtypeStruct((3,), jnp.int32)
    found = jax.eval_shape(partial(unet.apply, model.config), params, shapes["image"], time, shapes["text"])
    assert found.shape == (3, 8, 8, 4)


def test_a_dits_variance_costs_nothing_where_it_is_the_smallest_and_the_noise_is_right() -> None:
    time = jnp.array([1, 10, 500])
    error = jnp.zeros((3, 2, 2, 4))
    assert float(dit.variance_loss(error, error - 1, time)) == pytest.approx(0.0, abs=1e-6)
    assert float(dit.variance_loss(error, error + 1, time)) > 1e-4
    assert float(dit.variance_loss(error + 1, error - 1, time)) > 1e-4
