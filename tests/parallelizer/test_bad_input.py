"""Wrong input: each mistake has its own error, which says what, where, the numbers and the way out; and the undecorated
function still runs."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import errors, zoo
from parallelizer.api import Parallelized


def sgd(w: Any, x: Any) -> Any:
    loss, gradient = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(w)
    return w - 0.1 * gradient, loss


W, X = jnp.ones((64, 32)), jnp.ones((16, 64))


def refused(kind: type[errors.ParallelizerError], step: Any, *args: Any, **kwargs: Any) -> Any:
    """The error of a call; it is whole, and the function without us still runs."""
    with pytest.raises(kind) as caught:
        step(*args, **kwargs)
    error = caught.value
    assert isinstance(error, pz.ParallelizerError)
    assert error.what and error.way_out and json.dumps(error.to_dict())
    if isinstance(step, Parallelized):
        assert step.plan is None
        # What is wrong may be in the call itself; then the function says so as without us.
        with contextlib.suppress(TypeError, jax.errors.ConcretizationTypeError):
            step.__wrapped__(*args, **kwargs)
    return error


# ---- pins and meshes ----
def test_batch_that_does_not_divide_by_what_is_pinned():
    step = pz.parallelize(sgd, mesh={"x": 8}, pins={"x": P("x")})
    error = refused(errors.NotDivisibleError, step, W, jnp.ones((12, 64)))
    assert "12 does not divide by 8" in str(error) and "dimension 0" in error.where
    assert error.details["legal"] == [8, 16]
    # The same without a pinned mesh: no mesh that has the axis divides.
    error = refused(errors.NotDivisibleError, pz.parallelize(sgd, pins={"x": P(("x", "y"))}), W, jnp.ones((7, 64)))
    assert error.details["size"] == 7


def test_what_must_be_cut_alike_does_not_divide():
    def step(state, batch):
        return jax.tree.map(lambda w: w - jnp.mean(batch["x"] @ state["a"]), state), batch["x"].sum()

    pinned = pz.parallelize(step, mesh={"x": 8}, pins={"batch/x": P(None, "x")})
    state = {"a": jnp.ones((64, 12))}
    got, _ = pinned(state, {"x": jnp.ones((16, 64))})  # the contracted dimension divides: 64 / 8
    assert got["a"].shape == (64, 12)
    error = refused(
        errors.NotDivisibleError, pz.parallelize(step, mesh={"x": 8}, pins={"a": P(None, "x")}), state, {"x": X}
    )
    assert error.details["path"] == "state/a" and error.details["size"] == 12


def test_pin_of_an_axis_that_does_not_exist():
    error = refused(errors.UnknownAxisError, pz.parallelize(sgd, mesh={"data": 8}, pins={"x": P("dat")}), W, X)
    assert error.details["nearest"] == ["data"] and "did you mean 'data'?" in str(error)
    error = refused(errors.UnknownAxisError, pz.parallelize(sgd, pins={"x": P("batch")}), W, X)
    assert error.details["axis"] == "batch"


def test_pin_of_a_path_that_does_not_exist():
    model = zoo.model("mlp")
    step = pz.parallelize(model.step, pins={"state/params/layer_0/kernel": P("x")})
    error = refused(
        errors.UnknownPathError, step, model.init(jax.random.key(0)), model.example_batch(jax.random.key(1))
    )
    assert "state/params/layers_0/kernel" in error.details["nearest"]
    refused(errors.UnknownPathError, pz.parallelize(sgd, pins={"*/kernel": P("x")}), W, X)


@pytest.mark.parametrize("spec", [P("x", None, None), P("x", "x"), P(("x", "x")), (3,)])
def test_pin_that_no_array_can_have(spec):
    error = refused(errors.BadPinError, pz.parallelize(sgd, mesh={"x": 8}, pins={"w": spec}), W, X)
    assert "w" in error.where


def test_pins_that_contradict_each_other():
    def step(a, b):
        return a + b, a.sum()

    both = pz.parallelize(step, mesh={"x": 8}, pins={"a": P("x"), "b": P(None, "x")})
    got, _ = both(jnp.ones((8, 8)), jnp.ones((8, 8)))  # legal: one of them is moved
    assert got.sharding.spec == both.plan.in_shardings[0] == P("x")
    assert both.plan.in_shardings[1] == P(None, "x")


@pytest.mark.parametrize("mesh", [{"x": 4}, {"x": 3, "y": 3}, {"x": 16}, {"x": 0}, {}])
def test_mesh_of_another_size(mesh):
    error = refused(errors.MeshSizeError, pz.parallelize(sgd, mesh=mesh), W, X)
    assert error.details["devices"] == 8


# ---- memory ----
@pytest.mark.parametrize("name, options, kwargs", [
    ("mlp", {"layers": 2, "hidden": 64, "batch": 64}, {"mesh": {"x": 8}, "donate_argnums": 0}),
    ("mlp", {"layers": 3, "hidden": 64, "batch": 64}, {"topology": "v5e:2x2"}),
])  # fmt: skip
def test_nothing_fits_and_the_memory_that_is_named_is_enough(name, options, kwargs):
    model = zoo.model(name, **options)
    topology = {"topology": "cpu:8", **kwargs}
    shapes = model.state_shapes(), model.batch_shapes()
    error = refused(errors.DoesNotFitError, lambda: pz.plan(model.step, *shapes, memory_bytes=4000, **topology))
    facts = error.details
    assert facts["missing_bytes"] == facts["needed_bytes"] - 4000 > 0
    assert str(facts["missing_bytes"]) in str(error)
    assert facts["dominated_by"] == sorted(facts["dominated_by"], key=lambda row: -row[1])
    assert any(phrase == f"memory_bytes={facts['needed_bytes']}" for phrase, _ in facts["relaxations"])
    plan = pz.plan(model.step, *shapes, memory_bytes=facts["needed_bytes"], **topology)
    assert 4000 < plan.cost.peak_bytes <= facts["needed_bytes"]


def test_relaxations_are_true():
    """Pins that keep everything whole, no donation: leaving the pins out is enough, and so is donating."""
    shapes = jax.ShapeDtypeStruct((1024, 256), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.float32)

    def step(w, x):
        return w * x.sum(), x.mean()

    whole = {"w": P()}
    needed = pz.plan(step, *shapes, topology="cpu:8", mesh={"x": 8}, pins=whole).cost.peak_bytes
    donated = pz.plan(step, *shapes, topology="cpu:8", mesh={"x": 8}, pins=whole, donate_argnums=0).cost.peak_bytes
    assert donated < needed
    limit = (needed + donated) // 2
    error = refused(
        errors.DoesNotFitError,
        lambda: pz.plan(step, *shapes, topology="cpu:8", mesh={"x": 8}, pins=whole, memory_bytes=limit),
    )
    offered = dict(error.details["relaxations"])
    assert set(offered) == {
        f"memory_bytes={error.details['needed_bytes']}", "donate the state (donate_argnums)", "leave the pins out",
    }  # fmt: skip
    free = pz.plan(step, *shapes, topology="cpu:8", mesh={"x": 8}, memory_bytes=limit)
    kept = pz.plan(step, *shapes, topology="cpu:8", mesh={"x": 8}, pins=whole, memory_bytes=limit, donate_argnums=0)
    assert offered["leave the pins out"] == free.cost.peak_bytes <= limit
    assert offered["donate the state (donate_argnums)"] == kept.cost.peak_bytes <= limit


def test_the_step_runs_undecorated_when_nothing_fits():
    refused(errors.DoesNotFitError, pz.parallelize(sgd, memory_bytes=100), W, X)


# ---- the step ----
def test_a_step_that_cannot_be_traced_names_the_line():
    def branches(w, x):
        if x.sum() > 0:
            return w, x
        return w + 1, x

    error = refused(errors.NotTraceableError, pz.parallelize(branches), W, X)
    assert __file__.rsplit("/", 1)[-1] in error.where and "branches" in str(error)
    assert "static_argnums" in str(error)


def test_an_exception_inside_the_step_is_shown_and_kept():
    def broken(w, x):
        raise KeyError("my own")

    with pytest.raises(errors.NotTraceableError, match="my own") as caught:
        pz.parallelize(broken)(W, X)
    assert isinstance(caught.value.__cause__, KeyError)


def test_arguments_that_are_no_arrays():
    error = refused(errors.NotTraceableError, pz.parallelize(lambda w, name: w), W, "text")
    assert "text" in str(error) or "str" in str(error)


def test_wrong_number_of_arguments():
    step = pz.parallelize(sgd)
    with pytest.raises(errors.NotTraceableError, match="argument"):
        step(W)
    step(W, X)
    with pytest.raises(errors.NotTraceableError, match="argument"):
        step(W, X, X)
    step(W, X)


# ---- machines ----
@pytest.mark.parametrize("name", ["v5x:2x4", "v5e:3x7x9", "nonsense", "cpu:0", "v5e:"])
def test_unknown_topology_lists_the_known(name):
    error = refused(errors.UnknownTopologyError, pz.parallelize(sgd, topology=name), W, X)
    assert error.details["known"] and "v5p" in str(error.details["known"])


def test_more_devices_than_present():
    error = refused(errors.TooFewDevicesError, pz.parallelize(sgd, topology="cpu:16"), W, X)
    assert error.details == {"asked": 16, "present": 8, "platform": "cpu"}
    # Planning needs none of them; running does.
    plan = pz.plan(sgd, W, X, topology="cpu:16")
    refused(errors.TooFewDevicesError, plan.compile)
    refused(errors.TooFewDevicesError, pz.plan, sgd, W, X, topology="cpu:4", devices=jax.devices()[:2])


# ---- plans that are used elsewhere ----
def test_plan_with_other_shapes():
    plan = pz.plan(sgd, W, X, topology="cpu:8")
    run = plan.apply()
    run(W, X)
    for other in (jnp.ones((17, 64)), jnp.ones((32, 64)), jnp.ones((16, 64), jnp.bfloat16)):
        error = refused(errors.ShapeMismatchError, run, W, other)
        assert error.where == "x" and "float32[16,64]" in str(error)
        refused(errors.ShapeMismatchError, plan.apply(sgd), W, other)
        refused(errors.ShapeMismatchError, pz.shard, plan, other, 1)
    np.testing.assert_allclose(run(W, X)[1], sgd(W, X)[1], rtol=1e-5)
    refused(errors.ShapeMismatchError, run, W, {"x": X})


def test_plan_with_another_function():
    plan = pz.plan(sgd, W, X, topology="cpu:8")
    error = refused(errors.PlanMismatchError, plan.apply(lambda w, x: (w - 0.2 * (x.T @ (x @ w)), x.sum())), W, X)
    assert error.details["primitives"] and "graph hash" in str(error)


def test_arrays_on_another_mesh():
    step = pz.parallelize(sgd, mesh={"x": 8})
    step(W, X)
    other = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    elsewhere = jax.device_put(W, NamedSharding(other, P("a", "b")))
    with pytest.raises(errors.MeshMismatchError) as caught:
        step(elsewhere, X)
    assert "w: mesh" in str(caught.value) and caught.value.where == "w"
    half = Mesh(np.array(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))
    with pytest.raises(errors.MeshMismatchError, match="4 devices"):
        step(W, jax.device_put(X, NamedSharding(half, P("x"))))
    np.testing.assert_allclose(step.__wrapped__(elsewhere, X)[1], step(W, X)[1], rtol=1e-5)


# ---- files ----
def test_plan_files_that_are_damaged_foreign_or_missing(tmp_path):
    path = tmp_path / "plan.json"
    pz.plan(sgd, W, X, topology="cpu:8").save(str(path))
    assert pz.load_plan(str(path)).in_shardings
    text = path.read_text()
    bad = {
        "truncated": text[: len(text) // 2],
        "not JSON": "hello",
        "not a plan": json.dumps({"weights": [1, 2]}),
        "checksum": text.replace('"float32"', '"float64"', 1),
        "newer": text.replace('"format": 1', '"format": 99'),
    }
    for reason, content in bad.items():
        path.write_text(content)
        error = refused(errors.PlanFileError, pz.load_plan, str(path))
        assert reason in str(error) and str(path) in str(error)
    refused(errors.PlanFileError, pz.load_plan, str(tmp_path / "absent.json"))


def test_loaded_plan_meets_its_function_and_no_other(tmp_path):
    path = str(tmp_path / "plan.json")
    pz.plan(sgd, W, X, topology="cpu:8").save(path)
    plan = pz.load_plan(path)
    np.testing.assert_allclose(plan.apply(sgd)(W, X)[1], sgd(W, X)[1], rtol=1e-5)
    refused(errors.ShapeMismatchError, plan.apply(sgd), W, jnp.ones((24, 64)))
    refused(errors.PlanMismatchError, plan.apply(lambda w, x: (w, x.sum())), W, X)
    with pytest.raises(pz.ParallelizerError, match="does not have its function"):
        plan.apply()


def test_strict_names_operations_without_a_rule():
    def step(w, x):
        return w, jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    error = refused(errors.UnknownPrimitiveError, pz.parallelize(step, strict=True), W, X)
    assert "pure_callback" in str(error)
