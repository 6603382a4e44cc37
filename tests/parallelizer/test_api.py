"""The decorator and `pz.plan` as a user calls them: everything that `jax.jit` accepts, and what comes back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import parallelizer as pz
from parallelizer import zoo

WIDE, DEEP, BATCH = 64, 32, 16


def sgd(w: Any, x: Any) -> Any:
    """A step on a matrix: new matrix, loss."""
    loss, gradient = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(w)
    return w - 0.1 * gradient, loss


def matrix() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (WIDE, DEEP))


def inputs(batch: int = BATCH) -> jax.Array:
    return jax.random.normal(jax.random.key(batch), (batch, WIDE))


def check(step: Any, *args: Any, **kwargs: Any) -> Any:
    """One call, equal in structure, types and numbers to the undecorated function under jit."""
    wanted = jax.jit(step.__wrapped__)(*args, **kwargs)
    got = step(*args, **kwargs)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return got


# ---- the decorator ----
@pytest.mark.smoke
def test_plain_decorator_plans_for_all_devices_at_the_first_call():
    step = pz.parallelize(sgd)
    assert step.plan is None and step.__wrapped__ is sgd and step.__name__ == "sgd" and step.__doc__ == sgd.__doc__
    w, _ = check(step, matrix(), inputs())
    assert step.plan.topology == "cpu:8"
    assert len(w.sharding.device_set) == 8
    assert w.sharding.spec == step.plan.in_shardings[0]
    first = step.plan
    check(step, w, inputs())
    assert step.plan is first


def test_decorator_with_options():
    @pz.parallelize(mesh={"x": 2, "y": 4}, pins={"w": PartitionSpec("y", None)}, donate_argnums=(0,))
    def step(w, x):
        return sgd(w, x)

    w = pz.parallelize(sgd, devices=jax.devices()[:1])(matrix(), inputs())[0]
    assert w.sharding.device_set == {jax.devices()[0]}
    got, _ = step(matrix(), inputs())
    assert step.plan.mesh.sizes == {"x": 2, "y": 4}
    assert got.sharding.spec == step.plan.in_shardings[0] == PartitionSpec("y")
    assert step.plan.pins == {"w": "[y, -]"}


def test_unknown_option_names_the_known_ones():
    with pytest.raises(TypeError, match="no option 'mash'.*mesh"):
        pz.parallelize(sgd, mash={"x": 8})


def test_options_do_not_collide_with_the_steps_own_keywords():
    step = pz.parallelize(lambda x, *, mesh, pins: x * mesh + pins)
    check(step, inputs(), mesh=2.0, pins=jnp.ones((WIDE,)))


def test_second_signature_gets_a_second_program_and_both_stay():
    step = pz.parallelize(sgd)
    w = matrix()
    reference = jax.jit(sgd)
    expected = w
    seen = []
    for batch in (16, 24, 16, 24, 7):
        w, loss = step(w, inputs(batch))
        expected, wanted = reference(expected, inputs(batch))
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
        seen.append(step.plan)
    np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
    assert seen[0] is seen[2] and seen[1] is seen[3] and seen[0] is not seen[1]
    assert len(step.plans) == 3
    # The state goes from one program into the other without being moved.
    assert len({p.in_shardings[0] for p in seen}) == 1


def test_another_structure_is_another_signature():
    step = pz.parallelize(lambda state, batch: {k: v + sum(batch.values()).sum() for k, v in state.items()})
    state = {"a": jnp.ones((8,))}
    check(step, state, {"x": jnp.ones((16,))})
    check(step, state, {"x": jnp.ones((16,)), "y": jnp.ones((16,))})
    check(step, {"a": state["a"], "b": jnp.ones((8, 4))}, {"x": jnp.ones((16,))})
    check(step, state, {"x": jnp.ones((16,))})
    assert len(step.plans) == 3


# ---- arguments ----
def test_keyword_arguments():
    step = pz.parallelize(sgd)
    check(step, matrix(), x=inputs())
    check(step, x=inputs(), w=matrix())
    check(step, matrix(), inputs())
    assert len(step.plans) == 3


def test_defaults_are_not_arguments():
    step = pz.parallelize(lambda x, scale=2.0: x * scale)
    check(step, inputs())
    check(step, inputs(), 3.0)
    check(step, inputs(), scale=4.0)


@pytest.mark.parametrize("static", [{"static_argnums": (1,)}, {"static_argnums": -1}, {"static_argnames": "double"}])
def test_static_arguments_by_position(static):
    step = pz.parallelize(lambda x, double: x * 2 if double else x + 1, **static)
    x = inputs()
    for _ in range(2):
        np.testing.assert_allclose(step(x, True), x * 2)
        np.testing.assert_allclose(step(x, False), x + 1)
    assert len(step.plans) == 2


def test_static_arguments_by_name():
    def fn(x, *, mode):
        return x * 2 if mode == "double" else x + 1

    step = pz.parallelize(fn, static_argnames=("mode",))
    x = inputs()
    np.testing.assert_allclose(step(x, mode="double"), x * 2)
    np.testing.assert_allclose(step(x, mode="other"), x + 1)
    assert {p.inputs[0].path for p in step.plans.values()} == {"x"}


class Pair(NamedTuple):
    w: jax.Array
    count: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pair", "rate"], meta_fields=["name"])
@dataclass
class State:
    pair: Pair
    rate: jax.Array
    name: str


def test_namedtuples_and_dataclasses():
    def fn(state, batch):
        w, loss = sgd(state.pair.w, batch[0])
        return State(Pair(w, state.pair.count + 1), state.rate * 0.5, state.name), (loss, batch[1])

    step = pz.parallelize(fn)
    state = State(Pair(matrix(), jnp.zeros((), jnp.int32)), jnp.float32(0.1), "a")
    state, _ = check(step, state, (inputs(), [jnp.ones((8,)), None]))
    assert isinstance(state, State) and state.name == "a"
    assert list(step.plan.shardings) == ["state/pair/w", "state/pair/count", "state/rate", "batch/0", "batch/1/0"]
    assert isinstance(step.plan.in_shardings[0], State)
    assert step.plan.out_shardings[0].pair.w == step.plan.in_shardings[0].pair.w


def test_numpy_scalars_integers_and_booleans():
    def fn(w, x, flag, rate, count, small):
        return jnp.where(flag, w - rate * x.mean(), w), count + 1, small ^ 3, ~flag

    step = pz.parallelize(fn)
    w, x = np.ones((16, 8), np.float32), np.arange(32, dtype=np.int64)
    check(step, w, x, np.bool_(True), 0.5, 3, np.arange(8, dtype=np.uint8))
    check(step, w, x, True, np.float32(0.5), jnp.int32(3), np.arange(8, dtype=np.uint8))


def test_weakly_typed_arguments_keep_jax_promotion():
    step = pz.parallelize(lambda x, rate: x * rate)
    x = jnp.ones((16, 8), jnp.bfloat16)
    assert check(step, x, 2.0).dtype == jnp.bfloat16
    assert check(step, x, jnp.float32(2.0)).dtype == jnp.float32
    assert check(step, x, 3.0).dtype == jnp.bfloat16
    assert check(step, x, jnp.asarray(2.0)).dtype == jax.jit(step.__wrapped__)(x, jnp.asarray(2.0)).dtype


def test_typed_and_old_keys_draw_the_same_bits():
    def fn(key, x):
        key, use = jax.random.split(key)
        return key, x + jax.random.normal(use, x.shape), jax.random.bernoulli(use, 0.3, x.shape)

    step = pz.parallelize(fn)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        wanted = jax.jit(fn)(key, inputs())
        got = check(step, key, inputs())
        np.testing.assert_array_equal(got[1], wanted[1])
        np.testing.assert_array_equal(got[2], wanted[2])
    assert len(step.plans) == 2


def test_jit_inside_and_outside():
    inner = jax.jit(sgd)
    step = pz.parallelize(lambda w, x: inner(w, jnp.tanh(x)))
    check(step, matrix(), inputs())
    check(pz.parallelize(jax.jit(sgd)), matrix(), inputs())


class Trainer:
    rate = 0.25

    def train(self, w, x):
        return w - self.rate * x.mean(), x.sum()

    decorated = pz.parallelize(train, static_argnums=0)


def test_methods_partials_and_lambdas():
    trainer = Trainer()
    check(pz.parallelize(trainer.train), matrix(), inputs())
    w, _ = trainer.decorated(matrix(), inputs())
    np.testing.assert_allclose(w, trainer.train(matrix(), inputs())[0], rtol=1e-5, atol=1e-6)
    assert Trainer.decorated.plan is trainer.decorated.plan is not None
    check(pz.parallelize(functools.partial(sgd, x=inputs())), matrix())
    check(pz.parallelize(functools.partial(sgd, matrix())), inputs())
    check(pz.parallelize(lambda w: w + 1), matrix())


# ---- results ----
def test_results_of_any_kind():
    x = inputs()
    check(pz.parallelize(lambda w, x: w * 2), matrix(), x)  # state only, an argument unused
    check(pz.parallelize(lambda w, x: {"norm": jnp.sum(w**2), "shape": jnp.zeros((3,))}), matrix(), x)  # nothing alike
    check(pz.parallelize(lambda w, x: None), matrix(), x)
    check(pz.parallelize(lambda w, x: (w, w, x, 1.0)), matrix(), x)  # passed through, twice, and a constant


def test_empty_trees():
    check(pz.parallelize(lambda state, batch, extra: (state, batch + 1)), {}, inputs(), ())
    check(pz.parallelize(lambda state: state), {})
    check(pz.parallelize(lambda: jnp.arange(16)))


def test_odd_sizes_and_empty_arrays():
    check(pz.parallelize(sgd), jax.random.normal(jax.random.key(0), (7, 3)), jnp.ones((5, 7)))
    check(pz.parallelize(lambda x, y: (x * 2, y.sum())), jnp.zeros((0, 8)), jnp.ones((1, 1)))


# ---- where arrays are ----
def test_part_of_the_devices():
    step = pz.parallelize(sgd, topology="cpu:4")
    w, _ = check(step, matrix(), inputs())
    assert w.sharding.device_set == set(jax.devices()[:4])
    step = pz.parallelize(sgd, devices=jax.devices()[4:6])
    w, _ = check(step, matrix(), inputs())
    assert step.plan.topology == "cpu:2" and w.sharding.device_set == set(jax.devices()[4:6])


def test_arrays_committed_to_one_device_are_moved():
    step = pz.parallelize(sgd)
    device = jax.devices()[3]
    for _ in range(2):
        check(step, jax.device_put(matrix(), device), jax.device_put(inputs(), device))
    state, _ = step(matrix(), inputs())
    step(state, jax.device_put(inputs(), device))
    assert len(step.plans) == 1


def test_arrays_cut_otherwise_over_the_same_mesh_are_moved():
    step = pz.parallelize(sgd, mesh={"x": 8})
    w, _ = step(matrix(), inputs())
    other = jax.device_put(w, NamedSharding(w.sharding.mesh, PartitionSpec(("x",))))
    everywhere = jax.device_put(w, NamedSharding(w.sharding.mesh, PartitionSpec()))
    expected = jax.jit(sgd)(np.asarray(w), inputs())[1]
    for x in (other, everywhere):
        np.testing.assert_allclose(step(x, inputs())[1], expected, rtol=1e-5)


# ---- plans in hand ----
def test_plan_apply_compile_and_state():
    model = zoo.model("mlp", layers=2, hidden=64, batch=32)
    plan = pz.plan(
        model.step, model.state_shapes(), model.batch_shapes(), topology="cpu:8", mesh={"x": 8}, memory_bytes=40_000
    )
    kernel = plan.in_shardings[0]["params"]["layers_0"]["kernel"]
    assert kernel != PartitionSpec()  # little memory: the weights are cut
    abstract = pz.abstract_state(plan)
    assert jax.tree.structure(abstract) == jax.tree.structure(model.state_shapes())
    state = pz.init(plan, model.init, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    cut = state["params"]["layers_0"]["kernel"]
    assert cut.sharding.spec == kernel and cut.addressable_shards[0].data.size == cut.size // 8
    batch = pz.shard(plan, model.example_batch(jax.random.key(1)), argnum=1)
    wanted, metrics = jax.jit(model.step)(model.init(jax.random.key(0)), model.example_batch(jax.random.key(1)))
    for run in (plan.apply(), plan.apply(model.step), plan.compile()):
        got = run(state, batch)
        np.testing.assert_allclose(got[1]["loss"], metrics["loss"], rtol=1e-5)
        assert jax.tree.map(lambda x: x.sharding, got[0]) == jax.tree.map(lambda x: x.sharding, state)


def test_init_of_several_arguments_and_of_others():
    plan = pz.plan(sgd, matrix(), inputs(), topology="cpu:8")
    w, x = pz.init(plan, lambda: (matrix(), inputs()))
    assert (w.sharding.spec, x.sharding.spec) == plan.in_shardings
    with pytest.raises(pz.ParallelizerError, match="other shapes"):
        pz.init(plan, lambda: jnp.zeros((3, 3)))


def test_static_arguments_do_not_shift_the_state():
    plan = pz.plan(lambda mode, w, x: sgd(w, x), "train", matrix(), inputs(), topology="cpu:8", static_argnums=0)
    assert pz.abstract_state(plan, 1).shape == (WIDE, DEEP)
    assert pz.shard(plan, matrix(), 1).sharding.spec == plan.in_shardings[0]


def test_planning_a_decorated_step_keeps_its_static_and_donated_arguments():
    step = pz.parallelize(lambda w, x, scale: (w * scale, x.sum()), donate_argnums=0, static_argnums=2)
    plan = pz.plan(step, matrix(), inputs(), 3, topology="cpu:8")
    assert plan.donated == (0,) and len(plan.inputs) == 2
    assert step.plan is None


# ---- donation ----
def test_donated_arguments_are_gone_and_their_memory_is_reused():
    step = pz.parallelize(sgd, donate_argnums=0)
    w, x = matrix(), inputs()
    placed = jax.device_put(w, jax.tree.leaves(step(w, x)[0].sharding)[0])
    got, _ = step(placed, x)
    assert placed.is_deleted() and not x.is_deleted() and not got.is_deleted()
    memory = step.plan.compile().memory_analysis()
    assert memory.alias_size_in_bytes == got.addressable_shards[0].data.nbytes


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.dropout(nnx.relu(self.up(x))))


def nnx_step(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1.0) ** 2))(model)
    optimizer.update(model, grads)
    return loss


def test_nnx_steps_change_their_objects_and_donate():
    def make():
        model = Model(nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    step = pz.parallelize(nnx_step, donate_argnums=(0, 1))
    (model, optimizer), (other, other_optimizer) = make(), make()
    reference = nnx.jit(nnx_step)
    for i in range(3):
        x = jax.random.normal(jax.random.key(i), (16, 16))
        before = model.up.kernel[...]
        np.testing.assert_allclose(step(model, optimizer, x), reference(other, other_optimizer, x), rtol=1e-5)
        assert before.is_deleted() or i == 0
    np.testing.assert_allclose(model.up.kernel[...], other.up.kernel[...], rtol=1e-4, atol=1e-6)
    assert optimizer.step[...] == 3
    assert "model/up/kernel" in step.plan.shardings
    step(model, optimizer, jnp.ones((24, 16)))
    assert len(step.plans) == 2
