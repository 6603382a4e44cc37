"""How often a `while` runs: by its condition, by the user, or unknown."""

import jax
import jax.numpy as jnp
import pytest

from parallelizer.tracer import trace
from passes.ir import walk
from passes.ir.text import graph_hash
from passes.trips import TripError, hinted, unknown_loops

X = jnp.ones(4)
COMPARE = {"<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
COMPARE |= {"!=": lambda a, b: a != b}


def _loop(start, asks, step):
    return trace(lambda x: jax.lax.while_loop(asks, lambda c: (step(c[0]), jnp.sin(c[1])), (start, x)), (X,)).graph


def _trips(graph):
    (op,) = [op for op in graph.ops if op.primitive == "while"]
    return op.regions[1].trip_count, op.regions[1].known


@pytest.mark.parametrize("limit", [-2, 1, 2, 3, 7])
@pytest.mark.parametrize("step", [1, 3, -1, -2])
@pytest.mark.parametrize("relation", list(COMPARE))
def test_the_arithmetic_of_a_counter_is_that_of_python(relation, step, limit):
    runs, i = 0, 2
    while COMPARE[relation](i, limit) and runs < 50:
        runs, i = runs + 1, i + step
    graph = _loop(2, lambda c: COMPARE[relation](c[0], limit), lambda i: i + step)
    assert _trips(graph) == ((runs, True) if runs < 50 else (1, False))


def test_the_counter_may_be_on_the_right_and_count_down():
    assert _trips(_loop(0, lambda c: jnp.int32(7) > c[0], lambda i: 2 + i)) == (4, True)
    assert _trips(_loop(9, lambda c: c[0] > 0, lambda i: i - 2)) == (5, True)


def test_a_further_condition_makes_the_count_a_limit():
    assert _trips(_loop(0, lambda c: (c[0] < 6) & (c[1].sum() < 3), lambda i: i + 1)) == (6, False)
    assert _trips(_loop(0, lambda c: (c[0] < 6) & (c[0] < 4), lambda i: i + 1)) == (4, False)


@pytest.mark.parametrize(
    ("asks", "step"),
    [
        (lambda c: c[1].sum() < 3, lambda i: i + 1),
        (lambda c: c[0] < 9, lambda i: i * 2),
        (lambda c: c[0] < c[1].sum().astype(int), lambda i: i + 1),
        (lambda c: (c[0] < 6) | (c[1].sum() < 3), lambda i: i + 1),
    ],
)
def test_what_is_no_counter_is_unknown(asks, step):
    assert _trips(_loop(1, asks, step)) == (1, False)


def _nested(x):
    def inner(c):
        return jax.lax.while_loop(lambda v: v.sum() < 5, lambda v: v * 2, c)

    return jax.lax.while_loop(lambda v: v.max() < 3, lambda v: inner(v) + 1, x)


def test_hints_by_function_line_and_all():
    graph = trace(_nested, (X,)).graph
    assert len(unknown_loops(graph)) == 2
    line = _nested.__code__.co_firstlineno + 4

    def counts(hints):
        found, loops = hinted(graph, hints)
        sines = [v.count for v in walk(found) if v.op.primitive == "mul"]
        return sines, [loop.trips for loop in loops], found

    assert counts(None)[:2] == ([1], [1, 1])
    assert counts(5)[:2] == ([25], [5, 5])
    assert counts({"inner": 3})[:2] == ([3], [1, 3])
    assert counts({"*": 2, f"test_trips.py:{line}": 7, "_nested": 4})[:2] == ([14], [7, 2])
    assert graph_hash(counts(5)[2]) == graph_hash(graph), "a guess is no part of the program"


@pytest.mark.parametrize("hints", [{"outer": 2}, {"test_trips.py:1": 2}])
def test_hints_for_no_loop_are_refused(hints):
    with pytest.raises(TripError, match="no loop of unknown length"):
        hinted(trace(_nested, (X,)).graph, hints)
