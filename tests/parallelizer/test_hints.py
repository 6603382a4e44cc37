"""Values inside a step that the user names and pins."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.errors import BadPinError, NotDivisibleError, UnknownAxisError, UnknownPathError

SHAPES = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((64, 16), jnp.float32)


def step(w: jax.Array, x: jax.Array) -> Any:
    def loss(w: jax.Array) -> jax.Array:
        h = pz.hint(x @ w, "hidden")
        return jnp.mean(jax.nn.relu(h) ** 2)

    value, grad = jax.value_and_grad(loss)(w)
    return w - 0.1 * grad, value


def sharding_of(plan: pz.Plan, name: str) -> Any:
    (op,) = (op for op in plan.graph.ops if op.primitive == "name" and op.params["name"] == name)
    return plan.layout.values[op.outputs[0]]


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", "y"), P(("y", "x")), P()], ids=str)
def test_a_named_value_is_cut_as_pinned_and_the_numbers_stay(spec: P) -> None:
    args = jnp.ones((16, 32)) / 7, jnp.arange(64.0 * 16).reshape(64, 16) / 1000
    plan = pz.plan(step, *args, topology="cpu:8", mesh={"x": 2, "y": 4}, pins={"hidden": spec})
    entries = tuple((e,) if isinstance(e, str) else (e or ()) for e in (*spec, *(None,) * (2 - len(spec))))
    assert sharding_of(plan, "hidden").dims == entries and not sharding_of(plan, "hidden").partial
    assert plan.audit().ok
    for a, b in zip(plan.apply(step)(*args), jax.jit(step)(*args), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5)


def test_names_of_checkpoint_policies_and_globs_can_be_pinned_too() -> None:
    def two(w: jax.Array, x: jax.Array) -> jax.Array:
        a = jax.ad_checkpoint.checkpoint_name(x @ w, "mlp_a")
        b = pz.hint({"b": a @ w.T}, "mlp_b")["b"]
        return b.sum()

    plan = pz.plan(two, *SHAPES, topology="cpu:8", mesh={"x": 8}, pins={"mlp_*": P("x")})
    assert sharding_of(plan, "mlp_a").dims[0] == sharding_of(plan, "mlp_b").dims[0] == ("x",)


def test_a_path_comes_before_a_name() -> None:
    def named(x: jax.Array) -> jax.Array:
        return pz.hint(x * 2, "x").sum(0)

    plan = pz.plan(named, SHAPES[1], topology="cpu:8", mesh={"a": 8}, pins={"x": P(None, "a")})
    assert plan.shardings["x"] == P(None, "a")


def test_a_hint_without_a_plan_changes_nothing() -> None:
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: pz.hint(x, "x"))(x)), np.asarray(x))


@pytest.mark.parametrize(
    ("pins", "error", "words"),
    [
        ({"hiden": P("x")}, UnknownPathError, "hidden"),
        ({"hidden": P("q")}, UnknownAxisError, "q"),
        ({"hidden": P("x", None, None)}, BadPinError, "value named 'hidden' has 2 dimensions"),
        ({"odd": P("x")}, NotDivisibleError, "the value named 'odd'"),
        ({"same": P("x")}, BadPinError, "follows from other values"),
    ],
)
def test_bad_pins_of_values_say_which_value(pins: dict[str, P], error: type[Exception], words: str) -> None:
    def odd(w: jax.Array, x: jax.Array) -> Any:
        filled = pz.hint(jnp.full((64, 32), 3.0), "same")
        return pz.hint((x @ w)[:63], "odd").sum(), pz.hint(x @ w, "hidden").sum(), filled * (x @ w)

    with pytest.raises(error, match=words):
        pz.plan(odd, *SHAPES, topology="cpu:8", mesh={"x": 8}, pins=pins)
