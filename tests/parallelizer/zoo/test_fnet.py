"""FNet: published sizes, and its two mixings against NumPy's transforms."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import fnet


@pytest.mark.parametrize(("name", "published"), [("fnet-base", 83e6), ("fnet-large", 238e6)])
def test_parameters_are_as_many_as_published(name: str, published: float) -> None:
    assert zoo.model(name).num_parameters == pytest.approx(published, rel=0.006)


def test_fourier_mixing_is_the_real_part_of_numpys_transform() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 8, 6))
    assert np.allclose(fnet.fourier_mix(x), np.fft.fft2(np.asarray(x, np.float64)).real, atol=1e-4)


def test_a_filter_multiplies_frequencies() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 8, 3))
    real, imaginary = (jax.random.normal(jax.random.key(i), (5, 3)) for i in (1, 2))
    wanted = np.fft.irfft(np.fft.rfft(np.asarray(x), axis=1) * (np.asarray(real) + 1j * np.asarray(imaginary)), 8, 1)
    assert np.allclose(fnet.filter_mix({"real": real, "imaginary": imaginary}, x), wanted, atol=1e-5)


def test_every_position_feels_every_other_one() -> None:
    model = zoo.model("fnet-toy", layers=1)
    params = model.init(jax.random.key(0))["params"]
    tokens = model.example_batch(jax.random.key(1), batch=1)["tokens"]
    forward = jax.jit(partial(fnet.apply, model.config))
    a, b = forward(params, tokens), forward(params, tokens.at[0, 20].add(1))
    assert (np.abs(a - b).max(axis=(0, 2)) > 1e-5).all()


def test_filters_are_trained() -> None:
    model = zoo.model("fnet-filter-toy", weight_decay=0.0)
    state, batch = model.init(jax.random.key(0)), model.example_batch(jax.random.key(1))
    step, losses, now = jax.jit(model.step), [], state
    for _ in range(5):
        now, metrics = step(now, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    for part in ("real", "imaginary"):
        a, b = (s["params"]["layers"]["filter"][part] for s in (state, now))
        moved = np.asarray(a) != np.asarray(b)
        # The constant and the highest frequency of real numbers have no imaginary part.
        assert moved[:, 1:-1].mean() > 0.99 and moved[:, [0, -1]].any() == (part == "real")


def test_the_flop_formula_counts_the_products_of_the_program() -> None:
    model = zoo.model("fnet-toy", scan=False)
    text = jax.jit(model.step).lower(model.state_shapes(), model.batch_shapes()).as_text()
    assert text.count("stablehlo.dot_general") == 3 * (2 * model.config.layers + 3)
    config = model.config
    weights = config.layers * 2 * 32 * 64 + 2 * 32 * 32 + 256 * 32
    assert config.flop_per_token == 6 * weights
