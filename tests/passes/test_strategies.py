"""Strategies: complete, legal, and reachable one axis at a time."""

import jax
import jax.numpy as jnp
import pytest

from parallelizer import zoo
from parallelizer.tracer import trace
from passes.grouping import group_values
from passes.normalize import drop_dead
from passes.strategies import enumerate_moves, enumerate_strategies, enumerate_tied

F = jnp.float32


def _product_group(m=8, k=8, n=8):
    shapes = jax.ShapeDtypeStruct((m, k), F), jax.ShapeDtypeStruct((k, n), F)
    graph = trace(lambda a, b: jnp.exp(a @ b), shapes).graph
    return next(g for g in group_values(graph, (2, 4)).groups.values() if g.kind == "op")


def test_one_axis_of_a_product_has_seven_places():
    """Nowhere, rows, columns, and the contracted dimension summed or scattered onto rows or columns."""
    found = {
        (s.classes, s.factors, tuple((r.axes, r.dim) for r in s.reductions))
        for s in enumerate_strategies(_product_group(), {"x": 2}, False)
    }
    x = ("x",)
    assert found == {
        (((), ()), (), ()),
        ((x, ()), (("m0", x),), ()),
        (((), x), (("n0", x),), ()),
        (((), ()), (("k0", x),), ((x, None),)),
        ((x, ()), (("k0", x),), ((x, 0),)),
        (((), x), (("k0", x),), ((x, 1),)),
    }


def test_cuts_divide():
    for s in enumerate_strategies(_product_group(m=2, k=6, n=4), {"x": 2, "y": 4}, False):
        for axes, size in zip(s.classes, (2, 4), strict=True):
            cut = 1
            for a in axes:
                cut *= {"x": 2, "y": 4}[a]
            assert size % cut == 0
        assert "y" not in dict(s.factors).get("k0", ())


def test_shared_copies_gather_one_axis_or_all_or_move_one_axis():
    plain = enumerate_strategies(_product_group(), {"x": 2, "y": 2}, False)
    shared = enumerate_strategies(_product_group(), {"x": 2, "y": 2}, True)
    assert {s for s in shared if s.shared is None} == set(plain)
    gathered = moved = 0
    for s in shared:
        if s.shared is None:
            continue
        own, copy = ([(c, a) for c, on in enumerate(form) for a in on] for form in (s.classes, s.shared))
        new = set(copy) - set(own)
        gathered += not new
        if new:
            moved += 1
            ((_, axis),) = new
            assert sorted(a for _, a in own) == sorted(a for _, a in copy)
            assert [x for x in own if x[1] != axis] == [x for x in copy if x[1] != axis]
    assert gathered and moved
    cut = [s.shared for s in shared if s.classes == (("x",), ()) and not s.reductions and s.shared is not None]
    assert cut == [((), ()), ((), ("x",))]


def test_a_copy_is_not_moved_to_where_it_does_not_divide():
    for s in enumerate_strategies(_product_group(m=4, k=8, n=3), {"x": 2}, True):
        assert s.shared is None or s.shared[1] == ()


def _key(s):
    reductions = frozenset((frozenset(r.axes), r.dim) for r in s.reductions)
    return s.classes, tuple(sorted(s.factors)), reductions, frozenset(s.partial)


@pytest.mark.parametrize("sizes", [{"x": 2, "y": 4}, {"x": 4, "y": 2}])
def test_placing_axes_one_after_the_other_reaches_every_strategy(sizes):
    model = zoo.model("gpt-toy")
    graph = drop_dead(trace(model.step, (model.state_shapes(), model.batch_shapes())).graph)
    for group in group_values(graph, (2, 4, 8)).groups.values():
        full = enumerate_strategies(group, sizes, False)
        reached = {
            _key(t)
            for s in enumerate_moves(group, full[0], "x", sizes, False)
            for t in enumerate_moves(group, s, "y", sizes, False)
        }
        assert {_key(s) for s in full} <= reached


def test_tied_axes_go_together():
    for s in enumerate_tied(_product_group(), {"x": 2, "y": 2, "z": 2}, ("x", "z"), False):
        for axes in (*s.classes, *(a for _, a in s.factors)):
            assert ("x" in axes) == ("z" in axes)
            assert "x" not in axes or axes[axes.index("x") + 1] == "z"
