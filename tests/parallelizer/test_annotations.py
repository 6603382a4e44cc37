"""The user's own sharding annotations: kept as pins, or ignored."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.errors import AnnotationError, ContradictionError, NotDivisibleError

F32 = jnp.float32
SHAPES = (
    [jax.ShapeDtypeStruct((64, 128), F32), jax.ShapeDtypeStruct((128, 64), F32)],
    jax.ShapeDtypeStruct((256, 64), F32),
)


def mesh(**sizes: int) -> Mesh:
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def annotated(spec: P, on: Mesh | None = None) -> Any:
    """A two-layer step whose hidden activations are annotated."""
    where = NamedSharding(on or mesh(data=2, model=4), spec)

    def step(w: Any, x: jax.Array) -> Any:
        def loss(w: Any) -> jax.Array:
            hidden = lax.with_sharding_constraint(x @ w[0], where)
            return jnp.mean((jax.nn.relu(hidden) @ w[1]) ** 2)

        value, grads = jax.value_and_grad(loss)(w)
        return jax.tree.map(lambda p, g: p - g, w, grads), value

    return step


def arrays() -> Any:
    key = jax.random.split(jax.random.key(0), 3)
    w = [jax.random.normal(k, s.shape) / 10 for k, s in zip(key, SHAPES[0], strict=False)]
    return w, jax.random.normal(key[2], SHAPES[1].shape)


def hidden_forms(plan: pz.Plan) -> set[Any]:
    ops = [op for op in plan.graph.ops if op.primitive == "sharding_constraint"]
    return {plan.layout.values[op.outputs[0]].dims for op in ops}


def check(plan: pz.Plan, step: Any) -> None:
    audit = plan.audit()
    assert audit.ok and not audit.mismatches
    args = arrays()
    for a, b in zip(jax.tree.leaves(plan.apply(step)(*args)), jax.tree.leaves(jax.jit(step)(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6)


def test_annotations_are_kept_on_their_own_mesh_and_nothing_unplanned_is_compiled() -> None:
    step = annotated(P("data", "model"))
    plan = pz.plan(step, *SHAPES, topology="cpu:8")
    assert plan.mesh.sizes == {"data": 2, "model": 4}
    assert hidden_forms(plan) == {(("data",), ("model",))}  # the activations', and their gradient's
    assert plan.shardings["w/0"] == P(None, "model") and plan.shardings["w/1"] == P("model")  # found from it: Megatron
    assert any("test_annotations.py" in where for where in plan.pins)
    check(plan, step)


def test_the_same_names_may_have_other_sizes_where_the_step_is_planned_for_another_machine() -> None:
    plan = pz.plan(annotated(P("data", "model")), *SHAPES, topology="v5p:4x4x4", mesh={"data": 32, "model": 2})
    assert hidden_forms(plan) == {(("data",), ("model",))}


def test_unconstrained_dimensions_are_left_to_the_search() -> None:
    step = annotated(P(P.UNCONSTRAINED, "model"))
    plan = pz.plan(step, *SHAPES, topology="cpu:8")
    assert {dims[1] for dims in hidden_forms(plan)} == {("model",)}
    check(plan, step)


def test_shardings_of_a_nested_jit_are_annotations() -> None:
    on = mesh(a=8)
    enters, leaves = NamedSharding(on, P("a")), NamedSharding(on, P(None, "a"))
    inner = jax.jit(lambda x: x * 2, in_shardings=enters, out_shardings=leaves)

    def step(x: jax.Array) -> jax.Array:
        return (inner(x) + 1).sum(0)

    plan = pz.plan(step, SHAPES[1], topology="cpu:8")
    assert plan.mesh.sizes == {"a": 8}
    assert hidden_forms(plan) == {(("a",), ()), ((), ("a",))}
    assert {c.kind for c in plan.collectives if c.size_bytes > 256} == {"all_to_all"}
    assert plan.audit().ok


def test_annotations_inside_a_loop_hold_in_every_iteration() -> None:
    where = NamedSharding(mesh(data=2, model=4), P("data", "model"))

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        def layer(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return lax.with_sharding_constraint(jnp.tanh(h @ w), where), None

        return lax.scan(layer, x, w)[0].sum()

    shapes = jax.ShapeDtypeStruct((3, 64, 64), F32), SHAPES[1]
    plan = pz.plan(step, *shapes, topology="cpu:8")
    args = jnp.full((3, 64, 64), 0.01), jnp.ones((256, 64))
    assert plan.audit().ok
    np.testing.assert_allclose(plan.apply(step)(*args), jax.jit(step)(*args), rtol=1e-5)


def test_ignored_annotations_change_nothing() -> None:
    step = annotated(P("data", "model"))
    plan = pz.plan(step, *SHAPES, topology="cpu:8", annotations="ignore")
    bare = pz.plan(annotated(P()), *SHAPES, topology="cpu:8", annotations="ignore")
    assert plan.objective_s == bare.objective_s and not plan.pins
    check(plan, step)


def test_the_decorator_keeps_annotations_too() -> None:
    step = pz.parallelize(annotated(P("data", "model")))
    args = arrays()
    _, value = step(*args)
    assert step.plan.mesh.sizes == {"data": 2, "model": 4}
    np.testing.assert_allclose(value, jax.jit(step.__wrapped__)(*args)[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"topology": "v5p:4x4x4"}, AnnotationError, "annotated for 8 devices and v5p:4x4x4 has 64"),
        ({"topology": "cpu:8", "mesh": {"x": 8}}, AnnotationError, "cuts along 'data'.*no such axis"),
        ({"topology": "cpu:8", "annotations": "maybe"}, AnnotationError, "annotations='maybe' is not known"),
    ],
)
def test_annotations_that_cannot_be_kept_are_named(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pz.plan(annotated(P("data", "model")), *SHAPES, **options)


def test_two_meshes_in_one_step_are_refused() -> None:
    one, other = NamedSharding(mesh(data=2, model=4), P("data")), NamedSharding(mesh(data=8), P("data"))

    def step(x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(lax.with_sharding_constraint(x * 2, one) + 1, other)

    with pytest.raises(AnnotationError, match="two meshes: axis 'data' has 2 devices and 8"):
        pz.plan(step, SHAPES[1], topology="cpu:8")


def test_a_pin_before_an_annotation_is_a_reshard_and_behind_it_a_contradiction() -> None:
    where = NamedSharding(mesh(data=2, model=4), P("data"))

    def step(x: jax.Array) -> jax.Array:
        before = pz.hint(x * 2, "before")
        return pz.hint(lax.with_sharding_constraint(before, where), "behind").sum(0)

    plan = pz.plan(step, SHAPES[1], topology="cpu:8", pins={"before": P(None, "model")})
    assert "all_gather" in {c.kind for c in plan.collectives}
    assert plan.audit().ok
    with pytest.raises(ContradictionError, match="'behind'.*always cut alike") as error:
        pz.plan(step, SHAPES[1], topology="cpu:8", pins={"behind": P("model")})
    assert "test_annotations.py" in str(error.value) and "behind" in str(error.value)


def test_an_annotation_that_does_not_divide_says_where() -> None:
    def step(x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x * 2, NamedSharding(mesh(data=2, model=4), P("model"))).sum()

    with pytest.raises(NotDivisibleError, match="test_annotations.py"):
        pz.plan(step, jax.ShapeDtypeStruct((255, 64), F32), topology="cpu:8")
