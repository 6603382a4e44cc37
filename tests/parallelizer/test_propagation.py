"""`mode="propagate"`: plans that run, reasons that lead back to annotations, prices of reshards, and bad input."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import cli, zoo
from parallelizer.errors import (
    AnnotationError,
    ContradictionError,
    DoesNotFitError,
    ModeError,
    NotDivisibleError,
    ReshardWarning,
    UnknownAxisError,
)

DOCS = Path(__file__).parents[2] / "docs" / "annotations.md"
F32 = jnp.float32
SIZES = {"data": 2, "model": 4}
SHAPES = (
    [jax.ShapeDtypeStruct((64, 128), F32), jax.ShapeDtypeStruct((128, 64), F32)],
    jax.ShapeDtypeStruct((256, 64), F32),
)
MEGATRON = {"x": P("data"), "w/0": P(None, "model")}


def mesh(**sizes: int) -> Mesh:
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def step(w: Any, x: jax.Array) -> Any:
    def loss(w: Any) -> jax.Array:
        return jnp.mean((jax.nn.relu(x @ w[0]) @ w[1]) ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - g, w, grads), value


def meets(x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ w) + y


MEETING = (SHAPES[1], jax.ShapeDtypeStruct((256, 128), jnp.bfloat16), SHAPES[0][0])
AGAINST = {"x": P("data"), "y": P("model")}


def propagated(fn: Any, *args: Any, **options: Any) -> pz.Plan:
    return pz.plan(fn, *args, **{"topology": "cpu:8", "mesh": SIZES, "mode": "propagate", **options})


def warned(fn: Any, *args: Any, **options: Any) -> tuple[pz.Plan, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = propagated(fn, *args, **options)
    return plan, [str(w.message) for w in caught if issubclass(w.category, ReshardWarning)]


# ---- plans that run ----
def test_a_training_step_is_completed_from_two_pins_and_gives_the_same_numbers() -> None:
    plan, messages = warned(step, *SHAPES, pins=MEGATRON)
    assert plan.shardings == {"w/0": P(None, "model"), "w/1": P("model"), "x": P("data")} and not messages
    assert {(c.kind, c.axes) for c in plan.collectives} == {("all_reduce", ("data",)), ("all_reduce", ("model",))}
    assert plan.mode == "propagate" and plan.audit().ok
    keys = jax.random.split(jax.random.key(0), 3)
    w = [jax.random.normal(k, s.shape) / 10 for k, s in zip(keys, SHAPES[0], strict=False)]
    x = jax.random.normal(keys[2], SHAPES[1].shape)
    for _ in range(2):
        new, expected = plan.apply(step)(w, x), jax.jit(step)(w, x)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6)
        w = new[0]
    assert w[0].sharding.spec == P(None, "model")


def test_a_whole_model_with_adam_learns_the_same_in_propagate_mode() -> None:
    model = zoo.model("mlp")
    batch = model.example_batch(jax.random.key(1), batch=16)
    planned = pz.parallelize(model.step, mesh=SIZES, mode="propagate", pins={"batch*": P("data")})
    ours, theirs = model.init(jax.random.key(0)), model.init(jax.random.key(0))
    for _ in range(3):
        ours, found = planned(ours, batch)
        theirs, expected = jax.jit(model.step)(theirs, batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4)
    assert planned.plan.mode == "propagate" and planned.plan.audit().ok


def test_annotations_in_the_step_and_shardings_of_arguments_bring_their_mesh() -> None:
    where = NamedSharding(mesh(data=2, model=4), P("data", "model"))

    def annotated(w: Any, x: jax.Array) -> jax.Array:
        return (lax.with_sharding_constraint(x @ w[0], where) @ w[1]).sum(0)

    plan = pz.plan(annotated, *SHAPES, topology="cpu:8", mode="propagate")
    assert plan.mesh.sizes == SIZES
    assert plan.shardings == {"w/0": P(None, "model"), "w/1": P("model"), "x": P("data")} and plan.audit().ok
    placed = jax.ShapeDtypeStruct((256, 64), F32, sharding=NamedSharding(mesh(a=2, b=4), P("b")))
    plan = pz.plan(step, SHAPES[0], placed, topology="cpu:8", mode="propagate")
    assert plan.mesh.sizes == {"a": 2, "b": 4} and plan.shardings["x"] == P("b")


def test_three_axes_and_a_loop() -> None:
    def looped(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.scan(lambda h, wi: (jnp.tanh(h @ wi), None), x, w)[0].astype(jnp.bfloat16)

    shapes = jax.ShapeDtypeStruct((3, 64, 64), F32), SHAPES[1]
    sizes = {"a": 2, "b": 2, "c": 2}
    plan = propagated(looped, *shapes, mesh=sizes, pins={"x": P(("a", "b"))})
    assert plan.outputs[0].sharding.dims == (("a", "b"), ()) and plan.audit().ok
    plan, messages = warned(looped, *shapes, mesh=sizes, pins={"x": P("a"), "w": P(None, "b", "c")})
    assert plan.shardings == {"w": P(None, "b", "c"), "x": P("a")} and plan.audit().ok
    args = jnp.full((3, 64, 64), 0.01), jnp.ones((256, 64))
    np.testing.assert_allclose(plan.apply(looped)(*args), jax.jit(looped)(*args), rtol=1e-5)


# ---- reasons ----
def test_every_cut_says_which_annotation_it_comes_from_and_through_what() -> None:
    plan = propagated(step, *SHAPES, pins=MEGATRON)
    text = plan.explain("w/1")
    assert "propagated from the user's annotations" in text
    assert "dimension 0 over model: the pin 'w/0' (w/0), through dot_general at test_propagation.py:" in text
    assert "pinned by the user" in plan.explain("x")
    assert "the pin 'x' (x), through" in propagated(meets, *MEETING, pins={"x": P("data")}).explain("result")
    why = {a: c.reason for c in plan.choices for a in c.arrays}
    assert why["w/1"] == "propagated" and why["w/0"] == "pinned"
    untouched = propagated(step, *SHAPES, pins={"x": P("data")})
    assert "propagation brings no annotation to it" in untouched.explain("w/0")
    assert "propagated from annotations, not searched" in plan.summary()


def test_reports_survive_a_file(tmp_path: Path) -> None:
    plan, _ = warned(meets, *MEETING, pins=AGAINST)
    plan.save(str(tmp_path / "plan.json"))
    again = pz.load_plan(str(tmp_path / "plan.json"))
    assert again.propagation == plan.propagation and again.mode == "propagate"
    assert again.explain("x") == plan.explain("x")


# ---- reshards and priorities ----
def test_a_reshard_that_propagation_forces_is_warned_of_with_its_price_and_both_sides() -> None:
    plan, (message,) = warned(meets, *MEETING, pins=AGAINST)
    (forced,) = plan.propagation.forced
    assert (forced.kind, forced.axes, forced.array) == ("all_gather", ("data",), "x") and forced.time_s > 0
    assert "a reshard that no annotation asks for" in message and f"{forced.time_s * 1e6:,.1f} us" in message
    assert "x is [data, -]: dimension 0 over data: the pin 'x'" in message
    assert "the result of dot_general" in message and "the pin 'y' (y), through convert_element_type" in message
    assert "RESHARDS THAT PROPAGATION FORCES" in plan.summary()
    assert plan.audit().ok


def test_a_reshard_that_an_annotation_asks_for_is_no_surprise() -> None:
    where = NamedSharding(mesh(data=2, model=4), P(None, "model"))

    def asked(x: jax.Array) -> jax.Array:
        return (lax.with_sharding_constraint(pz.hint(x * 2, "before"), where) + 1).astype(jnp.bfloat16)

    plan, messages = warned(asked, SHAPES[1], pins={"before": P("data")})
    assert not messages and not plan.propagation.forced
    assert {c.kind for c in plan.collectives} == {"all_gather"}


def test_a_move_that_is_only_cheaper_is_not_called_forced() -> None:
    shapes = [jax.ShapeDtypeStruct(s, F32) for s in ((1024, 1024), (1024, 4096), (4096, 1024))]

    def grad(x: jax.Array, up: jax.Array, down: jax.Array) -> Any:
        return jax.grad(lambda w: jnp.mean((x + jax.nn.gelu(x @ w[0]) @ w[1]) ** 2))((up, down))

    pins = {"x": P("data"), "up": P(None, "model")}
    plan, messages = warned(grad, *shapes, topology="v5e:4x4", mesh={"data": 4, "model": 4}, pins=pins)
    assert "all_gather" in {c.kind for c in plan.collectives}  # of activations, smaller than the gradient's sum
    assert not messages and not plan.propagation.forced


def test_state_goes_back_as_it_came() -> None:
    where = NamedSharding(mesh(data=2, model=4), P("model"))
    plan, (message,) = warned(lambda x: lax.with_sharding_constraint(x * 2, where), SHAPES[1], pins={"x": P("data")})
    assert plan.outputs[0].spec == plan.inputs[0].spec == P("data")
    assert "it is the next step's x, and leaves this one as that came" in message


def test_pins_in_a_list_are_heard_in_order() -> None:
    first, _ = warned(meets, *MEETING, pins=[{"x": P("data")}, {"y": P(None, "data")}])
    second, _ = warned(meets, *MEETING, pins=[{"y": P(None, "data")}, {"x": P("data")}])
    assert first.outputs[0].spec == P("data") and second.outputs[0].spec == P(None, "data")
    searched = pz.plan(meets, *MEETING, topology="cpu:8", mesh=SIZES, pins=[{"x": P("data")}, {"y": P("model")}])
    assert searched.shardings["x"] == P("data") and searched.shardings["y"] == P("model")


def test_named_dimensions_can_be_propagated() -> None:
    plan = propagated(zoo.model("mlp").step, *mlp_shapes(), pins={"dims": {"batch": "data"}})
    assert plan.shardings["batch/x"] == P("data") and not any("model" in str(s) for s in plan.shardings.values())


def mlp_shapes() -> tuple[Any, Any]:
    model = zoo.model("mlp")
    return model.state_shapes(), model.batch_shapes(batch=16)


# ---- bad input ----
def annotated(spec: P, on: Mesh) -> Any:
    return lambda w, x: (lax.with_sharding_constraint(x @ w[0], NamedSharding(on, spec)) @ w[1]).sum()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "propogate"}, ModeError, "did you mean mode='propagate'"),
        ({"mode": None}, ModeError, "mode=None is not known"),
        ({"mesh": None}, ModeError, "nothing says which mesh"),
        ({"pins": {"x": P("modle")}}, UnknownAxisError, "did you mean 'model'"),
        ({"pins": {"x": P(None, ("data", "model", "other"))}}, UnknownAxisError, "'other'"),
        ({"mesh": {"data": 8}, "pins": {"w/0": P(None, "model")}}, UnknownAxisError, "data=8"),
        ({"memory_bytes": 30_000, "pins": MEGATRON}, DoesNotFitError, "per device are missing"),
    ],
)  # fmt: skip
def test_bad_input_is_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        propagated(step, *SHAPES, **options)


def test_a_pin_that_cannot_divide_shows_the_arithmetic() -> None:
    odd = jax.ShapeDtypeStruct((250, 64), F32)
    with pytest.raises(NotDivisibleError, match="250 = 62 \\* 4 \\+ 2"):
        propagated(step, SHAPES[0], odd, pins={"x": P("model")})


def test_an_annotation_on_another_mesh_is_refused() -> None:
    with pytest.raises(AnnotationError, match="annotated for 8 devices and v5e:4x4 has 16"):
        pz.plan(annotated(P("data"), mesh(data=2, model=4)), *SHAPES, topology="v5e:4x4", mode="propagate")
    with pytest.raises(AnnotationError, match="cuts along 'data', and the mesh has no such axis"):
        propagated(annotated(P("data"), mesh(data=2, model=4)), *SHAPES, mesh={"x": 8})
    other = jax.ShapeDtypeStruct((256, 64), F32, sharding=NamedSharding(mesh(data=8), P("data")))
    with pytest.raises(AnnotationError, match="two meshes: axis 'data' has 8 devices and 2"):
        propagated(annotated(P("data"), mesh(data=2, model=4)), SHAPES[0], other)


def test_contradicting_annotations_name_both_sides() -> None:
    where = NamedSharding(mesh(data=2, model=4), P("data"))

    def fn(x: jax.Array) -> jax.Array:
        return pz.hint(lax.with_sharding_constraint(x * 2, where), "behind").sum(0)

    with pytest.raises(ContradictionError, match="'behind'") as caught:
        propagated(fn, SHAPES[1], pins={"behind": P("model")})
    assert "[data, -]" in str(caught.value) and "[model, -]" in str(caught.value)
    assert "test_propagation.py" in str(caught.value)
    placed = jax.ShapeDtypeStruct((256, 64), F32, sharding=NamedSharding(mesh(data=2, model=4), P("data")))
    with pytest.raises(ContradictionError, match="the sharding of argument 'x'"):
        propagated(fn, placed, pins={"x": P("model")})


def test_the_command_line_propagates(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "mlp", "--topology", "cpu:8", "--batch", "16", "--mesh", "data=2,model=4", "--mode", "propagate"]
    assert cli.main([*asked, "--pin", "batch/*=data"]) == 0
    assert "propagated from annotations, not searched" in capsys.readouterr().out
    assert cli.main([*asked[:-1], "propagat"]) == 2
    assert "did you mean mode='propagate'" in capsys.readouterr().err


# ---- the user's page ----
def test_the_page_about_annotations_runs_as_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(blocks) == 5
    space: dict[str, Any] = {"__name__": "docs_annotations"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReshardWarning)
        for block in blocks:
            exec(compile(block, str(DOCS), "exec"), space)
    assert space["plan"].shardings == {"params/down": P("model"), "params/up": P(None, "model"), "batch": P("data")}
    assert space["forced"].propagation.forced and "x" in space["ordered"].propagation.ways
    assert space["flax_plan"].shardings["v/params/Dense_1/kernel/value"] == P("model")
    assert space["explicit_plan"].outputs[0].spec == P("data", "model")
    assert all(space[name].audit().ok for name in ("plan", "flax_plan", "explicit_plan"))
