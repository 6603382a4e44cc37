"""What is refused, with the reason and the user's line, and where the operations of a program end up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from parallelizer.microbatches import in_microbatches
from parallelizer.prepared import prepared
from parallelizer.tracer import trace
from passes.batchwise import SAME, Batchwise, Cut, MicrobatchError, Part
from passes.ir.graph import Graph, verify
from passes.microbatch import MicrobatchDivisionError, batch_of

W = jax.ShapeDtypeStruct((8, 8), "float32")
X = jax.ShapeDtypeStruct((12, 8), "float32")


def graph_of(fn: Callable[..., Any], *args: Any) -> Graph:
    return prepared(trace(fn, args).graph)


def batch_norm(w: jax.Array, x: jax.Array) -> jax.Array:
    h = x @ w
    return jnp.mean(jnp.tanh((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)) @ w)


def balanced_layers(w: jax.Array, x: jax.Array) -> jax.Array:
    def layer(h: jax.Array, _: None) -> Any:
        p = jax.nn.softmax(h @ w)
        return h + p, jnp.sum(p.mean(0) * jnp.sign(p - 0.1).mean(0))

    h, balance = jax.lax.scan(layer, x, None, length=2)
    return jnp.mean(h) + jnp.sum(balance)


def over_examples(w: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda h, row: (jnp.tanh(h @ w + row), h), jnp.zeros(8), x)[0]


def until_small(w: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.while_loop(lambda h: jnp.max(jnp.abs(h)) > 0.1, lambda h: 0.5 * jnp.tanh(h @ w), x)


def branching(w: jax.Array, x: jax.Array) -> jax.Array:
    def layer(h: jax.Array, _: None) -> Any:
        return jax.lax.cond(jnp.sum(h) > 0, lambda a: a @ w, lambda a: a, h), None

    return jax.lax.scan(layer, x, None, length=2)[0]


def counted(w: jax.Array, x: jax.Array) -> jax.Array:
    def layer(h: jax.Array, _: None) -> Any:
        return h @ w, jnp.sum(h).astype(jnp.int32)

    return jax.lax.scan(layer, x, None, length=2)[1]


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "batch norm": (batch_norm, r"a statistic of the whole batch \(reduce_sum at .*batch_norm\).* feeds back"),
    "balance of experts within layers": (balanced_layers, r"reduce_sum at .*\) is not complete inside a loop"),
    "a sum that is truncated": (counted, r"reduce_sum at .*\) is not complete inside a loop"),
    "sorting": (lambda w, x: jnp.sort(x @ w, axis=0), "all examples of the batch are needed at once"),
    "the largest ones": (lambda w, x: jax.lax.top_k((x @ w).sum(-1), 3)[0], "all examples"),
    "the first of the largest": (lambda w, x: jnp.argmax(x, axis=0), "all examples"),
    "all with all": (lambda w, x: jax.nn.softmax((x @ w) @ x.T), "every example of the batch meets every other one"),
    "running sums": (lambda w, x: jnp.cumsum(x, axis=0), "from their neighbours in the batch"),
    "shifts": (lambda w, x: x - jnp.roll(x, 1, axis=0), "neighbours|all examples"),
    "one example": (lambda w, x: x[3] @ w, "position in the batch|all examples"),
    "picked examples": (lambda w, x: x[jnp.array([1, 2])] @ w, "position in the batch"),
    "reversed": (lambda w, x: x[::-1], "all examples"),
    "a loop over examples": (over_examples, "a loop goes over the examples"),
    "a loop that the batch ends": (until_small, r"reduce_max at .*\) is not complete inside a loop"),
    "a branch that the batch chooses": (branching, "not complete inside a loop"),
    "foreign code": (
        lambda w, x: jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((12, 8), "float32"), x),
        "needed at once|told the size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_reason_and_line(what: str) -> None:
    fn, reason = REFUSED[what]
    graph = graph_of(fn, W, X)
    with pytest.raises(MicrobatchError, match=reason) as caught:
        in_microbatches(graph, {graph.inputs[1]: 0}, 3)
    assert caught.value.source is not None
    assert caught.value.source.file == __file__
    assert str(caught.value.source.line) in str(caught.value)


def test_counts_that_do_not_divide_say_which_do() -> None:
    graph = graph_of(lambda w, x: x @ w, W, X)
    with pytest.raises(MicrobatchDivisionError, match=r"12 / 5 is not whole; 4 or 6 would do") as caught:
        in_microbatches(graph, batch_of(graph, [1]), 5)
    assert caught.value.possible == (4, 6)
    with pytest.raises(MicrobatchDivisionError, match="12 would do"):
        in_microbatches(graph, batch_of(graph, [1]), 24)
    # Positions and examples merged in one dimension still count as whole examples.
    merged = graph_of(lambda w, x: x.reshape(4, 3, 8).sum(1) @ w, W, X)
    with pytest.raises(MicrobatchError, match="6 microbatches do not divide 4 of the batch"):
        in_microbatches(merged, batch_of(merged, [1]), 6)


def test_states() -> None:
    def fn(w: jax.Array, x: jax.Array) -> Any:
        h = x @ w
        return h.T, h.sum(), h.max(), w.T @ w

    graph = graph_of(fn, W, X)
    found = Batchwise(graph, 3)
    found.run(batch_of(graph, [1]))
    assert [found.state(o) for o in graph.outputs] == [Cut(1), Part("sum"), Part("max"), None]


def test_barriers_hand_on_what_is_the_same_for_all() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.checkpoint(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w))(w, x))

    graph = graph_of(jax.grad(loss), W, X)
    found = Batchwise(graph, 3)
    found.run(batch_of(graph, [1]))
    (barrier,) = [op for op in graph.ops if op.primitive == "optimization_barrier"]
    assert sorted(str(found.state(o)) for o in barrier.inputs) == ["Cut(dim=0)", "None", "None"]
    for operand, result in zip(barrier.inputs, barrier.outputs, strict=True):
        assert found.states[result] == (found.state(operand) or SAME)
    # The third operand is the gradient of the sum, ones for all examples: each microbatch makes its own.
    verify(in_microbatches(graph, batch_of(graph, [1]), 3))


def test_what_does_not_contain_the_batch_runs_once() -> None:
    def fn(w: jax.Array, x: jax.Array) -> Any:
        v = jnp.exp(w)  # before
        total = jnp.sum(jnp.tanh(x @ v))
        return w - total * jnp.cos(w)  # after

    graph = graph_of(fn, W, X)
    cut = in_microbatches(graph, batch_of(graph, [1]), 3)
    verify(cut)
    order = [op.primitive for op in cut.ops]
    loop = order.index("scan")
    assert order.index("exp") < loop < len(order) - 1
    assert {op.primitive for op in cut.ops[loop].regions[0].ops} == {"dot_general", "tanh", "reduce_sum", "add"}
    assert (cut.inputs, cut.outputs, cut.carried) == (graph.inputs, graph.outputs, graph.carried)
    body = cut.ops[loop].regions[0]
    assert {cut.values[o].shape for op in body.ops for o in op.outputs} == {(4, 8), ()}


def test_one_microbatch_changes_nothing() -> None:
    graph = graph_of(lambda w, x: x @ w, W, X)
    assert in_microbatches(graph, batch_of(graph, [1]), 1) is graph


def test_a_batch_along_another_dimension() -> None:
    graph = graph_of(lambda w, x: jnp.sum(w @ x, axis=1), W, jax.ShapeDtypeStruct((8, 12), "float32"))
    cut = in_microbatches(graph, batch_of(graph, [1], dim=1), 4)
    (loop,) = [op for op in cut.ops if op.primitive == "scan"]
    assert [cut.values[v].shape for v in loop.regions[0].inputs[-1:]] == [(8, 3)]
