"""Orders of dimensions that cost memory, on small programs: what compiled programs showed."""

import jax
import jax.numpy as jnp

from parallelizer.tracer import trace
from passes.grouping import group_values
from passes.normalize import drop_dead
from passes.orders import major_dims, turned_arguments
from passes.tiling import stored_bytes

F = jnp.float32


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, F)


def _visits(fn, *args):
    graph = drop_dead(trace(fn, args).graph)
    return graph, group_values(graph, (2, 4)).visits


def _major(fn, *args):
    """Major dimensions by the name of the operation that makes the value; inputs by position."""
    graph, visits = _visits(fn, *args)
    found = major_dims(graph, visits)
    made = {r: v.op.primitive for v in visits for r in v.op.outputs}
    names = {v: str(i) for i, v in enumerate(graph.inputs)} | made
    return {names[v]: set(dims) for v, dims in found.items()}


def test_batch_dimensions_of_products_are_major():
    # bf16[4,128,8,16]{1,3,2,0} in compiled programs: batch and heads major, sequence and features minor
    q = shape(4, 128, 8, 16)
    found = _major(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), q, q)
    assert found["0"] == found["1"] == {0, 2}
    assert found["dot_general"] == {0, 1}


def test_other_products_leave_the_choice_open():
    assert _major(lambda x, w: jnp.tanh(x @ w), shape(64, 32), shape(32, 16)) == {}


def test_what_is_sliced_and_reshaped_keeps_them():
    def fused(x):
        parts = (x * 2.0).reshape(4, 128, 8, 3, 16)
        return jnp.einsum("bqhd,bkhd->bhqk", parts[:, :, :, 0], parts[:, :, :, 1])

    found = _major(fused, shape(4, 128, 384))
    assert found["reshape"] == {0, 2}
    assert found["mul"] == {0}, "heads are only a part of the last dimension here"


def test_stacks_of_a_loop_keep_them_behind_the_layers():
    def body(x, w):
        y = jnp.einsum("bqd,bkd->bqk", x, x)
        return jnp.einsum("bqk,bkd->bqd", y, x) @ w, y

    graph, visits = _visits(lambda x, ws: jax.lax.scan(body, x, ws)[1], shape(4, 32, 16), shape(3, 16, 16))
    found = major_dims(graph, visits)
    (stack,) = graph.outputs
    assert graph.values[stack].shape == (3, 4, 32, 32) and found[stack] == {1}
    assert found[graph.inputs[0]] == {0} and graph.inputs[1] not in found


def test_padding_follows_the_order():
    assert stored_bytes((64, 8, 8, 8), 4, "tpu", {0, 1}) == 64 * 8 * 8 * 128 * 4
    assert stored_bytes((64, 8, 8, 8), 4, "tpu") == 64 * 8 * 8 * 128 * 4 // 16 * 2
    assert stored_bytes((64, 8, 8), 4, "tpu", {0, 1}) == 64 * 8 * 128 * 4, "one dimension is left to be minor"
    assert stored_bytes((64, 8), 4, "tpu", {0, 1}) == stored_bytes((64, 8), 4, "tpu"), "none is left"
    assert stored_bytes((64, 8, 8, 8), 4, "gpu", {0, 1}) == 64 * 8 * 8 * 8 * 4


def _update(clip):
    def step(w, m, x):
        g = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)
        if clip:
            g = g / jnp.sqrt(jnp.sum(g * g))
        m = 0.9 * m + g
        return w - 0.1 * m, m

    return _visits(step, shape(32, 16), shape(32, 16), shape(64, 32))


def test_updates_take_the_order_of_a_transposed_gradient():
    graph, visits = _update(clip=False)
    w, m, _ = graph.inputs
    found = turned_arguments(graph, visits)
    assert set(found) == {w, m}
    product = visits[found[m].start].op
    assert product.id == found[m].op and product.primitive == "dot_general"
    assert [v.op.primitive for v in visits[: found[m].start]].count("dot_general") == 1, "the one of the gradient"


def test_updates_that_wait_for_all_gradients_are_turned_at_the_end():
    assert turned_arguments(*_update(clip=True)) == {}
