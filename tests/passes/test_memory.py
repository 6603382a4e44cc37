"""Which values take memory, and when: small programs whose buffers are known from the compiler."""

import jax
import jax.numpy as jnp
import pytest

from parallelizer.tracer import trace
from passes.grouping import group_values
from passes.memory import lives, peak_bytes
from passes.narrow import narrow_values
from passes.normalize import drop_dead

F = jnp.float32
X, W = jax.ShapeDtypeStruct((32, 16), F), jax.ShapeDtypeStruct((16, 16), F)


def _lives(fn, *args):
    graph = drop_dead(trace(fn, args).graph)
    grouping = group_values(graph, (2, 4, 8))
    return graph, grouping, lives(graph, grouping)


def _made_by(grouping, value):
    return next((v.op.primitive for v in grouping.visits if value in v.op.outputs), "input")


def _kept(fn, *args):
    """Primitives whose results take memory and are neither inputs nor results of the program."""
    graph, grouping, found = _lives(fn, *args)
    own = {life.value for life in found.kept} - set(graph.inputs) - set(graph.outputs)
    return sorted(_made_by(grouping, v) for v in own)


def test_element_wise_chains_are_never_stored():
    assert _kept(lambda x: jnp.tanh(x * 2.0) + jnp.exp(x), X) == []


def test_a_product_is_stored_with_what_follows_it():
    # dot -> tanh -> dot: one array of their shape in between.
    assert len(_kept(lambda x, w: jnp.tanh(x @ w) @ w, X, W)) == 1


def test_a_product_that_two_things_read_is_stored_once():
    def both(x, w):
        y = x @ w
        return (jnp.sin(y) @ w) + (jnp.cos(y) @ w)

    assert _kept(both, X, W).count("dot_general") >= 1


def test_a_reduction_is_computed_where_its_operand_is():
    assert _kept(lambda x: jnp.exp(x).sum(axis=1, keepdims=True) * x, X) == ["reduce_sum"]


def test_arguments_live_throughout_and_say_where_they_are_last_read():
    graph, grouping, found = _lives(lambda x, w: jnp.tanh(x @ w) @ w, X, W)
    x, w = (next(life for life in found.kept if life.value == v) for v in graph.inputs)
    assert (x.start, x.end) == (w.start, w.end) == (0, found.end)
    products = [i for i, v in enumerate(grouping.visits) if v.op.primitive == "dot_general"]
    assert products[0] <= x.last_read < products[1] == w.last_read


def test_a_carry_has_one_buffer():
    def steps(x, w):
        y, _ = jax.lax.scan(lambda c, _: (c + jnp.tanh(c), None), x @ w, None, length=4)
        return y @ w

    graph, grouping, found = _lives(steps, X, W)
    own = [life for life in found.kept if life.value not in graph.inputs]
    shape = [life for life in own if graph.values[life.value].shape == (32, 16)]
    assert [_made_by(grouping, life.value) for life in shape].count("scan") == 1
    assert len(shape) == 2, "the carry, which begins as the first product's result, and the result"


def test_stacked_results_are_written_in_place_from_the_loops_start():
    def steps(x, w):
        def body(c, _):
            d = jnp.tanh(c @ w)
            return d, d * 2.0

        return jax.lax.scan(body, x, None, length=4)[1].sum(axis=0)

    graph, grouping, found = _lives(steps, X, W)
    loop = next(i for i, v in enumerate(grouping.visits) if v.op.primitive == "scan")
    stack = grouping.visits[loop].op.outputs[1]
    whole = [life for life in found.kept if life.value == stack and not life.rewritten]
    written = [life for life in found.kept if life.value == stack and life.rewritten]
    assert len(whole) == 1 and whole[0].start == loop
    assert len(written) == 1 and written[0].end == written[0].start + 1
    assert whole[0].start < written[0].start < whole[0].end
    part = grouping.visits[loop].op.regions[0].outputs[1]
    assert part not in found.values()


def test_values_that_only_products_read_are_narrow():
    graph = drop_dead(trace(lambda x, w: (jnp.tanh(x).T @ jnp.sin(x)) @ w, (X, W)).graph)
    narrow = {_producer(graph, v) for v in narrow_values(graph)}
    assert {"tanh", "transpose", "sin", "dot_general"} <= narrow


@pytest.mark.parametrize("precision", [jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH])
def test_asked_for_precision_is_kept(precision):
    graph = drop_dead(trace(lambda x, w: jnp.dot(jnp.tanh(x), w, precision=precision), (X, W)).graph)
    assert "tanh" not in {_producer(graph, v) for v in narrow_values(graph)}


def test_what_element_wise_work_reads_too_is_wide():
    def used_twice(x, w):
        y = jnp.tanh(x)
        return y @ w + y

    graph = drop_dead(trace(used_twice, (X, W)).graph)
    assert "tanh" not in {_producer(graph, v) for v in narrow_values(graph)}


def test_narrow_through_a_loop_and_its_arguments_get_a_copy():
    ws = jax.ShapeDtypeStruct((4, 16, 16), F)

    def layers(x, ws):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0]

    graph, _, found = _lives(layers, X, ws)
    copies = [life for life in found.kept if life.copy]
    assert [life.value for life in copies] == [graph.inputs[1]]
    assert copies[0].narrow and copies[0].end <= found.end


def _producer(graph, value):
    return next((op.primitive for op in graph.ops if value in op.outputs), "input")


def test_peak_is_the_largest_sum():
    assert peak_bytes([(0, 3, 5), (1, 2, 7), (2, 4, 6)], 4) == (12, 1)
    assert peak_bytes([], 4) == (0.0, 0)
    assert peak_bytes([(0, 2, 5), (2, 4, 5)], 4) == (5, 0), "an end is not in the interval"
