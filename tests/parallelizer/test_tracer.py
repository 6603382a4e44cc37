"""What the tracer keeps: paths, sources, regions, barriers, effects, weak types, carried state."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer.tracer import trace
from passes.ir.graph import verify, walk

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)


class State(NamedTuple):
    params: dict
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclass
class Batch:
    x: jax.Array
    y: list


def names(graph):
    return [v.op.primitive for v in walk(graph)]


def test_paths_of_inputs_and_outputs():
    def step(state, batch, *rest, rate):
        grads = state.params["w"] * rate
        return State({"w": grads}, state.step + 1), {"loss": batch.x.sum() + rest[1]}

    args = (State({"w": W}, jnp.zeros((), int)), Batch(X, [X, X]), X, 2.0)
    traced = trace(step, args, {"rate": 0.5})
    assert traced.graph.input_paths == (
        "state/params/w",
        "state/step",
        "batch/x",
        "batch/y/0",
        "batch/y/1",
        "rest/0",
        "rest/1",
        "rate",
    )
    assert traced.graph.output_paths == ("0/params/w", "0/step", "1/loss")
    verify(traced.graph)


def test_weak_types_and_types_follow_jit():
    traced = trace(lambda x, s, n: x * s + n, (np.ones(3, np.float32), 2.0, jax.ShapeDtypeStruct((), jnp.int32)))
    assert [a.weak_type for a in traced.in_avals] == [False, True, False]
    assert traced.out_avals[0].dtype == jnp.float32
    assert trace(lambda s: s * 2, (3.0,)).out_avals[0].weak_type


def test_carried_whole_arguments_donated_first():
    def step(a, b, lr):
        return {"w": a["w"] + b["w"]}, lr * 2

    args = ({"w": W}, {"w": W}, jnp.ones(()))
    assert trace(step, args).graph.carried == {0: 0}
    assert trace(step, args, donate_argnums=1).graph.carried == {0: 1}
    assert trace(step, args, donate_argnums=(1, 2)).graph.carried == {0: 1, 1: 2}
    assert trace(step, args, donate_argnums=(1, 2)).graph.donated == {1, 2}


def test_carried_root_and_each_argument_once():
    assert trace(lambda s: State(s.params, s.step + 1), (State({"w": W}, X),)).graph.carried == {0: 0, 1: 1}
    twice = trace(lambda p: (p, jax.tree.map(jnp.sin, p)), ({"w": W},))
    assert twice.graph.carried == {0: 0}
    assert trace(lambda p: {"w": p["w"][:4]}, ({"w": W},)).graph.carried == {}


def test_static_arguments_by_name_and_number():
    def f(x, n, mode):
        return x * n if mode == "mul" else x + n

    traced = trace(f, (X, 3, "mul"), static_argnums=1, static_argnames="mode")
    assert traced.graph.input_paths == ("x",)
    assert names(traced.graph) == ["mul"]
    by_key = trace(f, (X,), {"n": 3, "mode": "add"}, static_argnames=("n", "mode"))
    assert names(by_key.graph) == ["add"]
    run = traced.with_body(lambda x: [x])
    assert run(1.5, 3, "mul") == 1.5


def test_call_with_other_structure_is_refused():
    traced = trace(lambda p: p["w"], ({"w": W},))
    with pytest.raises(ValueError, match="traced with arguments"):
        traced.flatten(({"v": W},), {})


def test_sources_are_the_users_lines():
    def loss(w, x):
        y = jax.nn.softmax(x @ w)  # the line of interest
        return jnp.var(y)

    graph = trace(jax.grad(loss), (W, X)).graph
    first = loss.__code__.co_firstlineno
    dots = [op for op in graph.ops if op.primitive == "dot_general"]
    assert dots
    for op in dots:
        assert op.source.file == __file__
        assert op.source.line == first + 1
        assert op.source.function == "loss"
    assert all(op.source and op.source.file == __file__ for op in graph.ops)


def test_calls_are_inlined_and_checkpoints_keep_their_barrier():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (double(x), None), lambda _, g: (g * 2,))

    def f(x, w):
        h = jax.checkpoint(lambda x, w: jax.nn.relu(jnp.sin(x @ w)))(x, w)
        return jax.jit(double)(h).sum()

    plain = trace(f, (X, W)).graph
    assert "optimization_barrier" not in names(plain)
    graph = trace(jax.grad(f, argnums=1), (X, W)).graph
    found = set(names(graph))
    assert "optimization_barrier" in found
    assert not found & {"jit", "pjit", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}
    verify(graph)


def test_scan_is_normalised():
    def f(x, ws):
        h, ys = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum()), x, ws, reverse=True)
        return h, ys

    graph = trace(f, (X, jax.ShapeDtypeStruct((5, 8, 8), jnp.float32))).graph
    (op,) = [op for op in graph.ops if op.primitive == "scan"]
    assert (op.params["num_consts"], op.params["num_carry"], op.params["length"]) == (0, 1, 5)
    assert op.params["reverse"]
    (region,) = op.regions
    assert region.trip_count == 5 and region.known
    assert [graph.values[v].shape for v in region.inputs] == [(4, 8), (8, 8)]
    assert [graph.shape_of(v) for v in region.outputs] == [(4, 8), ()]
    assert [v.count for v in walk(graph) if v.op.primitive == "dot_general"] == [5]


def test_while_and_cond_have_regions():
    def f(x):
        y = jax.lax.while_loop(lambda c: c.sum() < 3, lambda c: c * 2, x)
        return jax.lax.cond(y.sum() > 0, jnp.sin, jnp.cos, y)

    graph = trace(f, (X,)).graph
    verify(graph)
    by_name = {op.primitive: op for op in graph.ops}
    assert [r.known for r in by_name["while"].regions] == [False, False]
    assert [len(r.ops) for r in by_name["cond"].regions] == [1, 1]


def test_a_batched_while_asks_once_and_leaves_finished_rows_alone():
    def f(x, limit):
        return jax.vmap(lambda r: jax.lax.while_loop(lambda c: c.sum() < limit, lambda c: c * 2, r))(x)

    graph = trace(f, (X, 3.0)).graph
    verify(graph)
    (loop,) = [op for op in graph.ops if op.primitive == "while"]
    test, body = loop.regions
    assert [graph.shape_of(o) for o in test.outputs] == [()] and "reduce_or" in [op.primitive for op in test.ops]
    assert "select_n" in [op.primitive for op in body.ops]
    assert (loop.params["cond_nconsts"], loop.params["body_nconsts"], len(loop.inputs)) == (1, 1, 3)


def test_solvers_composites_and_placement_are_no_operations_of_their_own():
    def f(a, x):
        moved = jax.device_put(jax.lax.composite(lambda v: jnp.sin(v) * 2, "my.sine")(x))
        return jax.scipy.sparse.linalg.cg(lambda v: a @ v, moved, maxiter=3)[0]

    graph = trace(f, (jnp.eye(8), jnp.ones(8))).graph
    verify(graph)
    names = {v.op.primitive for v in walk(graph)}
    assert {"sin", "while", "dot_general"} <= names
    assert not {"composite", "device_put", "custom_linear_solve"} & names
    (loop,) = [op for op in graph.ops if op.primitive == "while"]
    assert [(r.trip_count, r.known) for r in loop.regions] == [(3, False), (3, False)], "its condition allows three"


def test_keys_and_constants():
    table = np.arange(8.0, dtype=np.float32)

    def f(x, key):
        return x * table + jax.random.normal(key, x.shape), x + table

    graph = trace(f, (X, jax.random.key(0))).graph
    key = graph.values[graph.inputs[1]]
    assert key.dtype == "key<fry>" and key.itemsize == 8
    assert len(graph.constants) == 1
    ((value, array),) = graph.constants.items()
    assert graph.values[value].shape == (8,)
    np.testing.assert_array_equal(array, table)


def test_effects_are_marked():
    def f(x):
        jax.debug.print("{}", x[0, 0])
        return jax.lax.scan(lambda c, _: (jax.debug.print("{}", c[0, 0]), (c, None))[1], x, None, length=2)[0]

    graph = trace(f, (X,)).graph
    marked = [v.op.primitive for v in walk(graph) if v.op.params.get("has_effects")]
    assert "scan" in marked and len(marked) == 3


def test_nested_jit_shardings_become_constraints():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("a",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    inner = jax.jit(jnp.sin, in_shardings=sharding, out_shardings=sharding)
    graph = trace(lambda x: inner(x) + 1, (X,)).graph
    assert names(graph) == ["sharding_constraint", "sin", "sharding_constraint", "add"]


def test_user_errors_pass_through():
    with pytest.raises(jax.errors.TracerBoolConversionError):
        trace(lambda x: x if x.sum() > 0 else -x, (X,))
    with pytest.raises(ValueError, match="static and donated"):
        trace(lambda x, n: x * n, (X, 2), static_argnums=1, donate_argnums=1)
