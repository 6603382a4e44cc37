"""Products in eight bits: near the exact ones, with gradients as said."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import llama, quantized

EQUATIONS = {"bse,ef->bsf": (8, 6), "bse,ehd->bshd": (8, 2, 3), "bshd,hde->bse": (4, 2, 5)}


def _arrays(equation: str) -> tuple[jax.Array, jax.Array]:
    kernel = EQUATIONS[equation]
    left = (2, 3, 4, 2) if equation.startswith("bshd") else (2, 3, 8)
    return jax.random.normal(jax.random.key(0), left), jax.random.normal(jax.random.key(1), kernel)


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize(("kind", "share"), [("int8", 0.02), ("fp8", 0.1)])
def test_results_are_near_the_exact_ones_and_not_equal(kind: str, share: float, equation: str) -> None:
    x, kernel = _arrays(equation)
    exact, rounded = jnp.einsum(equation, x, kernel), quantized.PRODUCTS[kind](equation, x, kernel)
    error = np.abs(np.asarray(exact - rounded)).max() / np.abs(np.asarray(exact)).max()
    assert 0 < error < share


def test_int8_is_exact_where_the_numbers_fit() -> None:
    """Rows and columns whose largest number is 127 times a power of two, and all others multiples of that power."""
    whole = jax.random.randint(jax.random.key(0), (2, 3, 8), -126, 127).at[..., 0].set(127)
    x = whole * 2.0 ** jnp.arange(-3, 3).reshape(2, 3, 1)
    kernel = jax.random.randint(jax.random.key(1), (8, 6), -126, 127).at[0].set(-127) * 2.0 ** jnp.arange(6)
    got = quantized.int8_product("bse,ef->bsf", x, kernel)
    assert np.allclose(got, jnp.einsum("bse,ef->bsf", x, kernel), rtol=1e-6)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_int8_gradients_are_those_of_the_exact_product(equation: str) -> None:
    x, kernel = _arrays(equation)
    g = jax.random.normal(jax.random.key(2), jnp.einsum(equation, x, kernel).shape)

    def pull(product: quantized.Product) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(partial(product, equation), x, kernel)[1](g)

    for a, b in zip(pull(quantized.int8_product), pull(jnp.einsum), strict=True):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(pull(quantized.fp8_product), pull(jnp.einsum), strict=True):
        assert 0 < np.abs(np.asarray(a - b)).max() < 0.15 * np.abs(np.asarray(b)).max()


def test_zeros_stay_zeros() -> None:
    x, kernel = jnp.zeros((2, 3, 8)), jnp.ones((8, 6))
    for kind in ("int8", "fp8"):
        assert np.array_equal(quantized.PRODUCTS[kind]("bse,ef->bsf", x, kernel), jnp.zeros((2, 3, 6)))


@pytest.mark.parametrize(("kind", "dtypes"), [("int8", {"i8"}), ("fp8", {"f8E4M3FN", "f8E5M2"})])
def test_the_blocks_products_with_weights_have_eight_bits(kind: str, dtypes: set[str]) -> None:
    """Seven products with weights per layer, all three of each in fp8, the forward one in int8; not those of attention,
    embedding and head."""
    model = zoo.model(f"llama-toy-{kind}", layers=1, scan=False)
    shapes = model.state_shapes()["params"], model.batch_shapes()
    loss = partial(llama.loss, model.config, key=None)
    text = jax.jit(jax.grad(loss)).lower(*shapes).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    small = [line for line in products if any(f"x{d}>" in line for d in dtypes)]
    assert len(small) == (7 if kind == "int8" else 21)
    assert len(products) == 3 * (7 + 2 + 1)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_it_learns_like_the_exact_model(kind: str) -> None:
    exact, small = zoo.model("llama-toy", layers=1), zoo.model(f"llama-toy-{kind}", layers=1)
    losses = []
    for model in (exact, small):
        state, batch, step = model.init(jax.random.key(0)), model.example_batch(jax.random.key(1)), jax.jit(model.step)
        own = []
        for _ in range(4):
            state, metrics = step(state, batch)
            own.append(float(metrics["loss"]))
        losses.append(own)
    assert losses[0] != losses[1]
    assert np.allclose(losses[0], losses[1], rtol=2e-3)
    assert losses[1][-1] < losses[1][0] - 0.3
