"""nnx steps through the adapter: the same states as under nnx.jit, readable paths, cheap later calls."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from parallelizer.lower import lower
from parallelizer.nnx_adapter import RESULT, NnxAdapter, StructureChangedError, adapt
from parallelizer.tracer import trace


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + self.down(self.drop(nnx.gelu(self.up(self.norm(x)))))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def train_step(model, optimizer, x, y):
    def loss(m):
        return optax.softmax_cross_entropy_with_integer_labels(m(x), y).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def make():
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    return model, optimizer


X = jax.random.normal(jax.random.key(3), (4, 8))
Y = jnp.array([0, 1, 2, 1])


def same_state(a, b):
    for x, y in zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def run(adapter, *args):
    """One call through the whole line: adapt, trace, lower, run, put back."""
    call = adapter.adapt(args, {})
    traced = trace(call.fn, call.args, call.kwargs)
    return call.restore(jax.jit(traced.with_body(lower(traced.graph, None, None)))(*call.args)), traced, call


def test_steps_equal_nnx_jit():
    model, optimizer = make()
    other, other_optimizer = make()
    step = nnx.jit(train_step)
    adapter = NnxAdapter(train_step)
    keys = []
    for _ in range(2):
        got, traced, call = run(adapter, model, optimizer, X, Y)
        keys.append(call.key)
        assert got == step(other, other_optimizer, X, Y)
        same_state((model, optimizer), (other, other_optimizer))
    assert keys[0] is keys[1]
    assert optimizer.step.get_value() == 2


def test_paths_and_carried_state():
    model, optimizer = make()
    _, traced, _ = run(NnxAdapter(train_step), model, optimizer, X, Y)
    graph = traced.graph
    assert "model/layers/0/up/kernel" in graph.input_paths
    assert "optimizer/opt_state/0/mu/layers/1/down/bias" in graph.input_paths
    assert "model/layers/0/drop/rngs/count" in graph.input_paths
    assert graph.input_paths[-2:] == ("x", "y")
    assert RESULT in graph.output_paths
    carried = {graph.output_paths[o]: graph.input_paths[i] for o, i in graph.carried.items()}
    assert len(carried) == len(graph.input_paths) - 2
    assert all(o == i for o, i in carried.items())


def test_settings_and_replaced_variables_are_seen():
    model, optimizer = make()
    adapter = NnxAdapter(train_step)
    first = adapter.adapt((model, optimizer, X, Y), {})
    model.eval()
    evaluated = adapter.adapt((model, optimizer, X, Y), {})
    assert evaluated.key is not first.key
    model.train()
    assert adapter.adapt((model, optimizer, X, Y), {}).key is first.key
    model.head.kernel = nnx.Param(jnp.zeros((8, 3)))
    replaced = adapter.adapt((model, optimizer, X, Y), {})
    assert replaced.key is first.key
    np.testing.assert_array_equal(replaced.args[0]["head"]["kernel"], jnp.zeros((8, 3)))
    run(adapter, model, optimizer, X, Y)
    assert np.abs(model.head.kernel.get_value()).sum() > 0


def test_shared_variables_are_one_input():
    model = Model(nnx.Rngs(0))
    holder = nnx.ModelAndOptimizer(model, optax.sgd(0.1))

    def step(model, holder, x, y):
        def loss(m):
            return optax.softmax_cross_entropy_with_integer_labels(m(x), y).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        holder.update(grads)
        return value

    before = copy.deepcopy(nnx.state(model, nnx.Param))
    _, traced, call = run(NnxAdapter(step), model, holder, X, Y)
    assert sum(p.endswith("head/kernel") for p in traced.graph.input_paths) == 1
    assert "model/head/kernel" in traced.graph.input_paths
    after = nnx.state(model, nnx.Param)
    assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    same_state(model, holder.model)
    model.layers[0].up.kernel = model.layers[1].up.kernel
    tied = NnxAdapter(step).adapt((model, holder, X, Y), {})
    assert len(jax.tree.leaves(tied.args)) == len(jax.tree.leaves(call.args)) - 1


def test_containers_keywords_and_lone_variables():
    model, optimizer = make()
    total = nnx.Variable(jnp.zeros(()))

    def step(pair, x, *, y, total):
        value = train_step(pair["model"], pair["optimizer"], x, y)
        total.set_value(total.get_value() + value)
        return {"loss": value}

    call = adapt(step, ({"model": model, "optimizer": optimizer}, X), {"y": Y, "total": total})
    traced = trace(call.fn, call.args, call.kwargs)
    assert "pair/model/head/bias" in traced.graph.input_paths
    assert "total" in traced.graph.input_paths
    assert f"{RESULT}/loss" in traced.graph.output_paths
    assert len(traced.graph.carried) == len(jax.tree.leaves(call.args[0]))
    out = call.restore(jax.jit(call.fn)(*call.args, **call.kwargs))
    assert total.get_value() == out["loss"] > 0


def test_abstract_models_are_planned_from_shapes():
    model, optimizer = nnx.eval_shape(make)
    call = adapt(train_step, (model, optimizer, X, Y), {})
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(call.args[:2]))
    assert "model/head/kernel" in trace(call.fn, call.args, call.kwargs).graph.input_paths


def test_changed_structure_is_refused():
    def step(model, x):
        model.extra = nnx.Param(x)

    model, _ = make()
    call = adapt(step, (model, X), {})
    with pytest.raises(StructureChangedError, match="step changes the structure of model"):
        jax.eval_shape(call.fn, *call.args)
    assert not hasattr(model, "extra")


def test_other_arguments_are_left_alone():
    assert adapt(lambda x, y: x, (X, {"y": [Y]}), {"z": 3}) is None


def test_later_calls_do_not_split_again(monkeypatch):
    model, optimizer = make()
    adapter = NnxAdapter(train_step)
    first = adapter.adapt((model, optimizer, X, Y), {})
    monkeypatch.setattr(nnx, "split", lambda *_: pytest.fail("split again"))
    second = adapter.adapt((model, optimizer, X, Y), {})
    assert second.key is first.key
    assert jax.tree.structure(second.args) == jax.tree.structure(first.args)
    assert all(a is b for a, b in zip(jax.tree.leaves(first.args), jax.tree.leaves(second.args), strict=True))
