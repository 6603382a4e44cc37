"""What leaves loops, what stays in them, and that a plan moves an invariant once, as the compiled program does."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

import parallelizer as pz
from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.hoist import hoist
from passes.ir import verify, walk
from passes.normalize import drop_dead

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(64, 64)) * 0.1, "float32")
X = jnp.asarray(RNG.normal(size=(32, 64)), "float32")


def _kinds(graph):
    """(primitive, how deep in loops) of every operation."""
    return Counter((v.op.primitive, len(v.inside)) for v in walk(graph))


def _nested(w, x):
    def outer(c, _):
        turned = w.T.astype(jnp.bfloat16)

        def inner(_, z):
            return z + jnp.exp(-jnp.abs(w[0])) + turned[0]

        return jax.lax.fori_loop(0, 2, inner, jnp.tanh(c @ turned.astype(c.dtype))), None

    return jax.lax.scan(outer, x, None, length=3)[0]


def _until(w, x):
    return jax.lax.while_loop(lambda c: c[0] < w[0, 0] + 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w.T)), (0.0, x))[1]


def _same(fn, *args):
    traced = trace(fn, args)
    before = drop_dead(traced.graph)
    after = hoist(before)
    verify(after)
    got, want = jax.jit(traced.with_body(lower(after, None, None)))(*args), jax.jit(fn)(*args)
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-5, atol=1e-6)
    return before, after


def test_invariants_leave_nested_loops_altogether():
    before, after = _same(_nested, W, X)
    assert _kinds(before)["exp", 2] == _kinds(before)["transpose", 1] == 1
    found = _kinds(after)
    assert found["exp", 0] == found["abs", 0] == found["neg", 0] == found["transpose", 0] == 1
    assert {k for k in found if k[1] == 2} == {("add", 2), ("broadcast_in_dim", 2)}
    assert {k for k in found if k[1] == 1} == {("dot_general", 1), ("scan", 1), ("tanh", 1)}


def test_conditions_and_carries_stay():
    before, after = _same(_until, W, X)
    assert _kinds(after) - _kinds(before) == Counter({("transpose", 0): 1})
    loops = [v.op for v in walk(after) if v.op.primitive == "while"]
    assert [op.params["body_nconsts"] for op in loops] == [1]


def test_programs_without_invariants_are_the_same_graph():
    def fn(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0]

    graph = drop_dead(trace(fn, (X,)).graph)
    assert hoist(graph) is graph


def test_a_pinned_invariant_is_gathered_once():
    """The kernel is read turned and rounded in every iteration; what is gathered is gathered before the loop."""

    def fn(w, x):
        def body(c, _):
            return jnp.tanh(c @ w.T.astype(jnp.bfloat16).astype(c.dtype)), None

        return jax.lax.scan(body, x, None, length=5)[0]

    plan = pz.plan(fn, W, X, mesh={"x": 8}, pins={"w": ("x", None), "x": ("x", None)})
    assert [(c.kind, c.count) for c in plan.collectives] == [("all_gather", 1)]
    assert plan.audit().ok
    np.testing.assert_allclose(plan.apply()(W, X), jax.jit(fn)(W, X), rtol=1e-4, atol=1e-4)
