"""Annotations that arguments and types bring: shardings of shapes, flax's axis names, and Explicit mode."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.errors import AnnotationError, BadPinError, ContradictionError, NotDivisibleError

F32 = jnp.float32
SIZES = {"data": 2, "model": 4}
MODES = pytest.mark.parametrize("mode", ["search", "propagate"])


def mesh(kind: AxisType = AxisType.Auto, **sizes: int) -> Mesh:
    sizes = sizes or SIZES
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


def shape(*dims: int, spec: P | None = None, on: Mesh | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, F32, sharding=None if spec is None else NamedSharding(on or mesh(), spec))


def step(w: Any, x: jax.Array) -> Any:
    def loss(w: Any) -> jax.Array:
        return jnp.mean((jax.nn.relu(x @ w[0]) @ w[1]) ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - g, w, grads), value


def same(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6)


# ---- shapes with shardings ----
@MODES
def test_shapes_with_shardings_are_pins_of_arguments(mode: str) -> None:
    args = [shape(64, 128, spec=P(None, "model")), shape(128, 64)], shape(256, 64, spec=P("data"))
    plan = pz.plan(step, *args, topology="cpu:8", mode=mode)
    assert plan.mesh.sizes == SIZES and plan.shardings["w/0"] == P(None, "model") and plan.shardings["x"] == P("data")
    assert "the sharding of argument 'x'" in plan.pins
    ignored = pz.plan(step, *args, topology="cpu:8", annotations="ignore")
    assert not ignored.pins


def test_where_arrays_lie_is_no_annotation() -> None:
    x = jax.device_put(jnp.ones((256, 64)), NamedSharding(mesh(data=8), P("data")))
    assert not pz.plan(step, [shape(64, 128), shape(128, 64)], x, topology="cpu:8").pins


@MODES
def test_shardings_of_the_planned_jit_are_pins_of_its_arguments(mode: str) -> None:
    on = mesh()
    jitted = jax.jit(step, in_shardings=([NamedSharding(on, P(None, "model")), None], NamedSharding(on, P("data"))))
    plan = pz.plan(jitted, [shape(64, 128), shape(128, 64)], shape(256, 64), topology="cpu:8", mode=mode)
    assert plan.shardings["w/0"] == P(None, "model") and plan.shardings["x"] == P("data")
    assert "in_shardings of argument 'x'" in plan.pins


def test_plans_hand_on_their_shardings() -> None:
    first = pz.plan(step, [shape(64, 128), shape(128, 64)], shape(256, 64), topology="cpu:8", mesh=SIZES)
    again = pz.plan(step, pz.abstract_state(first), pz.abstract_state(first, 1), topology="cpu:8")
    assert again.shardings == first.shardings and again.mesh.sizes == first.mesh.sizes


# ---- flax.linen ----
class Boxed(nn.Module):
    boxing: Any = nn.with_partitioning
    names: tuple[str, str] = ("model", "other")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init, (hidden, _) = nn.initializers.lecun_normal(), self.names
        h = nn.relu(nn.Dense(64, kernel_init=self.boxing(init, (None, hidden)))(x))
        return nn.Dense(32, kernel_init=self.boxing(init, (hidden, None)))(h)


def linen_step(model: nn.Module) -> Any:
    def train(v: Any, x: jax.Array) -> Any:
        value, grads = jax.value_and_grad(lambda v: jnp.mean(model.apply(v, x) ** 2))(v)
        return jax.tree.map(lambda p, g: p - 0.1 * g, v, grads), value

    return train


KERNELS = ("v/params/Dense_0/kernel/value", "v/params/Dense_1/kernel/value")


@MODES
def test_boxes_of_linen_are_honoured(mode: str) -> None:
    model = Boxed()
    v = jax.eval_shape(model.init, jax.random.key(0), shape(16, 32))
    plan = pz.plan(linen_step(model), v, shape(16, 32), topology="cpu:8", mesh=SIZES, mode=mode)
    assert [plan.shardings[k] for k in KERNELS] == [P(None, "model"), P("model")]
    assert plan.shardings["v/params/Dense_0/bias"] == P("model")
    assert plan.audit().ok
    real, x = model.init(jax.random.key(0), jnp.ones((16, 32))), jnp.ones((16, 32))
    same(plan.apply()(real, x), jax.jit(linen_step(model))(real, x))


@MODES
def test_logical_names_become_axes_by_their_rules(mode: str) -> None:
    model = Boxed(nn.with_logical_partitioning, ("mlp", "embed"))
    v = jax.eval_shape(model.init, jax.random.key(0), shape(16, 32))
    options = {"topology": "cpu:8", "mesh": SIZES, "mode": mode}
    with nn.logical_axis_rules((("mlp", "model"), ("batch", "data"))):
        plan = pz.plan(linen_step(model), v, shape(16, 32), **options)
    assert [plan.shardings[k] for k in KERNELS] == [P(None, "model"), P("model")]
    without = pz.plan(linen_step(model), v, shape(16, 32), **options)  # as flax: no rules, no constraint
    assert not without.pins


def test_names_without_sizes_ask_for_a_mesh() -> None:
    model = Boxed()
    v = jax.eval_shape(model.init, jax.random.key(0), shape(16, 32))
    with pytest.raises(AnnotationError, match="names the axis 'model', and nothing says how large it is"):
        pz.plan(linen_step(model), v, shape(16, 32), topology="cpu:8")
    with jax.set_mesh(mesh()):
        assert pz.plan(linen_step(model), v, shape(16, 32), topology="cpu:8").mesh.sizes == SIZES
    with pytest.raises(AnnotationError, match="did you mean 'models'"):
        pz.plan(linen_step(model), v, shape(16, 32), topology="cpu:8", mesh={"models": 8})


def test_names_that_do_not_fit_the_array_are_refused() -> None:
    boxed = nn.Partitioned(shape(64), names=(None, "model"))
    with pytest.raises(BadPinError, match="2 entries"):
        pz.plan(lambda w: w.value * 2, boxed, topology="cpu:8", mesh=SIZES)


# ---- flax.nnx ----
class Layers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal()
        self.up = nnx.Linear(32, 64, kernel_init=nnx.with_partitioning(init, (None, "model")), rngs=rngs)
        self.down = nnx.Linear(64, 32, kernel_init=nnx.with_partitioning(init, ("model", None)), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


def nnx_step(m: Layers, opt: nnx.Optimizer, x: jax.Array) -> jax.Array:
    value, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(m)
    opt.update(m, grads)
    return value


@MODES
def test_variables_of_nnx_are_honoured(mode: str) -> None:
    with jax.set_mesh(mesh()):
        m = Layers(nnx.Rngs(0))
        opt = nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Param)
        x = jnp.ones((16, 32))
        plan = pz.plan(nnx_step, m, opt, x, topology="cpu:8", mode=mode)
    assert plan.mesh.sizes == SIZES and "flax's axis names of argument 'm/up/kernel'" in plan.pins
    for state in ("m", "opt/opt_state/0/mu"):
        assert plan.shardings[f"{state}/up/kernel"] == P(None, "model")
        assert plan.shardings[f"{state}/down/kernel"] == P("model")
    assert plan.audit().ok


# ---- Explicit mode ----
def explicit(w: Any, x: jax.Array) -> Any:
    def loss(w: Any) -> jax.Array:
        h = jax.nn.relu(jnp.dot(x, w[0], out_sharding=P("data", "model")))
        o = jax.sharding.reshard(jnp.dot(h, w[1], out_sharding=P("data", None)), P("data", "model"))
        return jnp.mean(o.reshape(256, 16, 4, out_sharding=P("data", "model", None)) ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), value


def typed_args(on: Mesh) -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((64, 128), P(None, "model")), ((128, 64), P("model")), ((256, 64), P("data"))
    made = []
    for k, (dims, spec) in zip(keys, shapes, strict=True):
        made.append(jax.device_put(jax.random.normal(k, dims) / 8, NamedSharding(on, spec)))
    return made[:2], made[2]


@MODES
def test_types_of_explicit_mode_are_the_plan_and_plans_run_there(mode: str) -> None:
    on = mesh(AxisType.Explicit)
    with jax.set_mesh(on):
        args = typed_args(on)
        plan = pz.plan(explicit, *args, topology="cpu:8", mode=mode)
        assert plan.mesh.sizes == SIZES
        assert plan.shardings == {"w/0": P(None, "model"), "w/1": P("model"), "x": P("data")}
        product = next(op.outputs[0] for op in plan.graph.ops if op.primitive == "dot_general")
        assert plan.layout.values[product].dims == (("data",), ("model",))
        assert plan.audit().ok
        same(plan.apply(explicit)(*args), jax.jit(explicit)(*args))
        decorated = pz.parallelize(explicit, mode=mode)
        state, value = decorated(*args)
        state, after = decorated(state, args[1])
        assert after < value and decorated.plan.mesh.sizes == SIZES  # results are arrays of the current mesh
        assert jax.typeof(state[0]).sharding.spec == P(None, "model")


def test_shapes_are_enough_in_explicit_mode_and_the_plan_runs_outside() -> None:
    on = mesh(AxisType.Explicit)
    with jax.set_mesh(on):
        args = typed_args(on)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), args)
        plan = pz.plan(explicit, *shapes, topology="cpu:8", mode="propagate")
        expected = jax.jit(explicit)(*args)
    same(plan.apply()(*jax.tree.map(np.asarray, args)), expected)
    ways = [way for name, sentences in plan.propagation.ways.items() if name not in plan.shardings for way in sentences]
    assert any("its type in Explicit mode" in way for way in ways)


def test_a_pin_against_a_type_and_a_type_that_does_not_divide_are_refused() -> None:
    on = mesh(AxisType.Explicit)
    with jax.set_mesh(on):
        args = typed_args(on)
        with pytest.raises(ContradictionError, match="its type in Explicit mode|the sharding of argument"):
            pz.plan(explicit, *args, topology="cpu:8", pins={"x": P("model")})
        with pytest.raises(NotDivisibleError, match="256"):
            pz.plan(explicit, *args, topology="h100:8x12", mesh={"data": 24, "model": 4})
