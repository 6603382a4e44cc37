"""Dead code: what is dropped, what must stay, and that the rest computes the same."""

import jax
import jax.numpy as jnp
import numpy as np

from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.ir.graph import verify, walk
from passes.normalize import drop_dead


def names(graph):
    return [v.op.primitive for v in walk(graph)]


def test_unused_operations_go():
    def f(x):
        jnp.sin(x)
        return jnp.cos(x)

    graph = drop_dead(trace(f, (jnp.ones(3),)).graph)
    verify(graph)
    assert names(graph) == ["cos"]
    assert set(graph.values) == {graph.inputs[0], graph.ops[0].outputs[0]}


def test_unused_constants_go_and_inputs_stay():
    table = jnp.arange(4.0)

    def f(x, unused):
        table + x
        return x * 2

    graph = drop_dead(trace(f, (jnp.ones(4), jnp.ones(2))).graph)
    verify(graph)
    assert not graph.constants
    assert len(graph.inputs) == 2


def test_effects_stay():
    def f(x):
        jax.debug.print("x is {}", jnp.sin(x)[0])
        return x

    graph = drop_dead(trace(f, (jnp.ones(3),)).graph)
    assert "sin" in names(graph)


def test_scan_loses_unused_parts():
    def f(a, b, xs):
        def body(carry, x):
            a, b, unused = carry
            return (a * x[0], b + 1.0, unused + jnp.sin(b)), (a, jnp.tanh(x[1]))

        carry, ys = jax.lax.scan(body, (a, b, b), xs)
        return carry[0], ys[0]

    args = (jnp.ones(()), jnp.zeros(()), (jnp.arange(1.0, 4.0), jnp.ones(3)))
    traced = trace(f, args)
    graph = drop_dead(traced.graph)
    verify(graph)
    scan = next(op for op in graph.ops if op.primitive == "scan")
    assert scan.params["num_carry"] == 1
    assert len(scan.outputs) == 2
    assert len(scan.inputs) == 2
    assert "tanh" not in names(graph) and "sin" not in names(graph)
    got = lower(graph, None, None)(*jax.tree.leaves(args))
    for x, y in zip(got, jax.tree.leaves(f(*args)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_carry_needed_by_a_later_iteration_stays():
    def f(a, b):
        def body(carry, _):
            a, b, c = carry
            return (a + b, b + c, c * 2), None

        return jax.lax.scan(body, (a, b, b), None, length=3)[0][0]

    traced = trace(f, (jnp.ones(()), jnp.ones(())))
    graph = drop_dead(traced.graph)
    scan = next(op for op in graph.ops if op.primitive == "scan")
    assert scan.params["num_carry"] == 3
    assert lower(graph, None, None)(jnp.ones(()), jnp.ones(())) == [f(jnp.ones(()), jnp.ones(()))]


def test_while_and_cond_lose_what_nobody_reads():
    def f(x, z):
        def body(c):
            return c[0] + 1, jnp.sin(c[1]), jnp.exp(c[2]), c[3] * z

        def asks(c):
            return (c[0] < 10) & (c[3] < 100)

        y, *_ = jax.lax.while_loop(asks, body, (x, x, x, x))
        branch = (lambda v, w: (v + 1, jnp.cos(w)), lambda v, w: (v - z, w))
        return jax.lax.cond(x > 0, *branch, y, x)[0]

    traced = trace(f, (1.0, 3.0))
    graph = drop_dead(traced.graph)
    verify(graph)
    assert not {"sin", "exp", "cos"} & set(names(graph))
    loop = next(op for op in graph.ops if op.primitive == "while")
    assert (len(loop.outputs), loop.params["cond_nconsts"], loop.params["body_nconsts"]) == (2, 0, 1)
    branch = next(op for op in graph.ops if op.primitive == "cond")
    assert (len(branch.inputs), len(branch.outputs)) == (3, 1)
    assert [float(y) for y in lower(graph, None, None)(1.0, 3.0)] == [float(f(1.0, 3.0))]


def test_barrier_keeps_only_what_is_read():
    @jax.checkpoint
    def layer(x, w):
        return jnp.sin(x) @ w

    def f(x, w):
        return layer(x, w).sum()

    graph = drop_dead(trace(jax.grad(f), (jnp.ones((2, 2)), jnp.ones((2, 2)))).graph)
    verify(graph)
    for op in graph.ops:
        if op.primitive == "optimization_barrier":
            read = {o for v in walk(graph) for o in v.op.inputs if isinstance(o, int)}
            assert set(op.outputs) <= read


def test_transposes_that_undo_each_other_are_read_past():
    def f(x, w):
        def body(c, _):
            return (c.T.T @ w).T.T, None

        y = jnp.einsum("ij->ji", jnp.transpose(x, (1, 0)) * 1.0)
        return jax.lax.scan(body, y, None, length=2)[0], jnp.transpose(x, (1, 0)).T

    args = jnp.arange(6.0).reshape(2, 3), jnp.ones((3, 3))
    traced = trace(f, args)
    graph = drop_dead(traced.graph)
    verify(graph)
    assert names(traced.graph).count("transpose") == 8
    assert names(graph).count("transpose") == 2  # other operations are between these
    assert graph.outputs[1] == graph.inputs[0]
    for a, b in zip(lower(graph, None, None)(*args), f(*args), strict=True):
        np.testing.assert_array_equal(a, b)


def test_transposes_that_turn_on_stay():
    def f(x):
        return jnp.transpose(jnp.transpose(x, (1, 2, 0)), (1, 2, 0))

    x = jnp.arange(24.0).reshape(2, 3, 4)
    graph = drop_dead(trace(f, (x,)).graph)
    assert names(graph) == ["transpose", "transpose"]
    np.testing.assert_array_equal(lower(graph, None, None)(x)[0], f(x))
