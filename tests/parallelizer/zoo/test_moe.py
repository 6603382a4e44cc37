"""Mixtures of experts: published sizes, and both dispatches against the definition."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import experts as ex
from parallelizer.zoo import moe

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Counted in the released checkpoints.
EXACT = {"mixtral-8x7b": 46_702_792_704, "deepseek-moe-16b": 16_375_728_128}
ACTIVE = {"mixtral-8x7b": 12.9e9, "deepseek-moe-16b": 2.8e9}
# The table of arXiv:2201.12023, to the digits that it prints.
ROUNDED = {"moe-380m": 380e6, "moe-1.3b": 1.3e9, "moe-2.4b": 2.4e9, "moe-10b": 10e9, "moe-27b": 27e9, "moe-70b": 70e9}

GROUPS, TOKENS, EMBED, HIDDEN, EXPERTS, CHOICES = 2, 12, 8, 6, 4, 2


def test_every_name_is_a_toy_or_has_its_published_size() -> None:
    mine = {n for n in zoo.names() if isinstance(zoo.model(n).config, moe.MoeConfig)}
    assert {n for n in mine if not n.endswith("-toy")} == {*EXACT, *ROUNDED}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_of_the_released_checkpoint(name: str) -> None:
    model = zoo.model(name, vocab_multiple=1)
    assert model.num_parameters == EXACT[name]
    assert model.config.active_parameters == pytest.approx(ACTIVE[name], rel=0.01)


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert zoo.model(name).num_parameters == pytest.approx(ROUNDED[name], rel=0.04 if name == "moe-1.3b" else 0.02)


@pytest.fixture(scope="module", params=[True, False], ids=["gated", "gelu"])
def layer(request: Any) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    params = ex.init_experts(keys[:3], EXPERTS, EMBED, HIDDEN, request.param, 0.5)
    x = jax.random.normal(keys[3], (GROUPS, TOKENS, EMBED))
    router = {"kernel": jax.random.normal(keys[4], (EMBED, EXPERTS))}
    weights, chosen, _ = ex.route(router, x, CHOICES, True)
    return params, x, weights, chosen


def by_definition(params: Any, x: jax.Array, weights: jax.Array, chosen: jax.Array) -> np.ndarray:
    """Every token through each of its experts, one by one."""
    y = np.zeros(x.shape, np.float32)
    for g, t, k in np.ndindex(chosen.shape):
        up, down = (params[n]["kernel"][chosen[g, t, k]] for n in ("up", "down"))
        hidden = x[g, t] @ up
        if "gate" in params:
            hidden = jax.nn.silu(x[g, t] @ params["gate"]["kernel"][chosen[g, t, k]]) * hidden
        else:
            hidden = jax.nn.gelu(hidden)
        y[g, t] += weights[g, t, k] * (hidden @ down)
    return y


def test_both_dispatches_are_every_token_through_its_experts(layer: Any) -> None:
    wanted = by_definition(*layer)
    assert np.allclose(jit(ex.sorted_experts)(*layer), wanted, atol=1e-5)
    enough = jit(partial(ex.onehot_experts, capacity=TOKENS))
    assert np.allclose(enough(*layer), wanted, atol=1e-5)


def test_both_dispatches_have_the_same_gradients(layer: Any) -> None:
    params, x, weights, chosen = layer

    def gradients(f: Any) -> Any:
        return jit(jax.grad(lambda p, x, w: jnp.sum(jnp.sin(f(p, x, w, chosen))), (0, 1, 2)))(params, x, weights)

    a, b = gradients(ex.sorted_experts), gradients(partial(ex.onehot_experts, capacity=TOKENS))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.allclose(x, y, atol=1e-5), a, b))


def test_places_go_to_first_choices_first_and_then_in_order() -> None:
    chosen = jnp.array([[[0, 1], [0, 1], [1, 0]]])
    weights = jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]])
    combine = np.zeros((1, 3, 2, 2))
    combine[0, 0, 0, 0], combine[0, 1, 0, 1], combine[0, 2, 1, 0] = 0.9, 0.8, 0.7  # first choices
    combine[0, 0, 1, 1] = 0.1  # of the second choices one finds a place: expert 1 is then full, expert 0 already was
    assert np.allclose(ex.places(weights, chosen, 2, 2), combine)


def test_the_balance_loss_is_one_where_all_experts_are_used_alike_and_grows_with_one_expert() -> None:
    x = jnp.eye(EXPERTS)[None]
    alike = ex.route({"kernel": 20.0 * jnp.eye(EXPERTS)}, x, 1, True)[2]
    one = ex.route({"kernel": jnp.zeros((EXPERTS, EXPERTS)).at[:, 0].set(20.0)}, x, 1, True)[2]
    assert np.allclose(alike, 1.0, atol=1e-4)
    assert np.allclose(one, EXPERTS, atol=1e-4)


def _product_flop(jaxpr: Any) -> int:
    """2 FLOP per multiply-add of the products in a jaxpr without loops; in ragged ones each row meets one expert."""
    total = 0
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            total += _product_flop(inner) if hasattr(inner, "eqns") else 0
        shapes = [v.aval.shape for v in eqn.invars]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([shapes[0][d] for d in contracted]))
        elif eqn.primitive.name == "ragged_dot_general":
            numbers = eqn.params["ragged_dot_dimension_numbers"]
            rows, width = shapes[0][:2], shapes[0][2]
            other = shapes[1][2] if not numbers.rhs_group_dimensions else eqn.outvars[0].aval.shape[2]
            total += 2 * int(np.prod(rows)) * width * other
    return total


@pytest.mark.parametrize("name", ["mixtral-toy", "deepseek-moe-toy", "moe-toy"])
def test_the_flop_formula_counts_the_products_of_the_program(name: str) -> None:
    model = zoo.model(name, scan=False)
    jaxpr = jax.make_jaxpr(model.step)(model.state_shapes(), model.batch_shapes())
    counted = _product_flop(jaxpr.jaxpr)
    # The weighted sum of a token's experts is a product of k with k e numbers, three times; too small for the formula.
    assert counted == pytest.approx(model.flop_per_token * model.batch * model.sequence, rel=0.015)


@pytest.mark.parametrize("name", ["deepseek-moe-toy", "moe-toy"])
def test_scanned_recomputing_and_unrolled_forms_agree(name: str) -> None:
    scanned = zoo.model(name, remat="full", dropout=0.1)
    unrolled = zoo.model(name, scan=False, dropout=0.1)
    params, stacked = (jit(m.init)(jax.random.key(0))["params"] for m in (unrolled, scanned))
    batch, key = scanned.example_batch(jax.random.key(1), batch=4), jax.random.key(2)
    (a, grads_a), (b, grads_b) = (
        jit(jax.value_and_grad(partial(moe.loss, m.config)))(p, batch, key)
        for m, p in ((scanned, stacked), (unrolled, params))
    )
    assert np.allclose(a, b, rtol=1e-6)
    for i in range(scanned.config.blocks):
        for x, y in zip(jax.tree.leaves(grads_a["layers"]), jax.tree.leaves(grads_b[f"layers_{i}"]), strict=True):
            assert np.allclose(x[i], y, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "option"),
    [({"top_k": 9}, "top_k"), ({"dispatch": "all"}, "dispatch"), ({"every": 2, "layers": 3}, "layers")],
)
def test_impossible_values_name_their_option(options: dict[str, Any], option: str) -> None:
    with pytest.raises(zoo.ZooOptionError) as caught:
        zoo.model("mixtral-toy", **options)
    assert caught.value.option == option
