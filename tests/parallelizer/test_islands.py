"""Local programs of single operations: the result of every rule, and the collectives of whole cut programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh

from parallelizer.lower import lower
from parallelizer.moves import named
from parallelizer.tracer import trace
from passes.ir.graph import walk
from passes.ir.sharding import Layout, OpDecision, Reduction, Sharding
from passes.normalize import drop_dead

SIZES = {"a": 2, "b": 4}
KINDS = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), tuple(SIZES))


def cut(*dims, partial=""):
    """ "a - b*a" style: one word per dimension."""
    return Sharding(tuple(() if d == "-" else tuple(d.split("*")) for d in dims), tuple(partial))


def compiled(fn, args, layout, mesh):
    """The result of the cut program, and (kind, operation id) of its collectives."""
    traced = trace(fn, args)
    graph = drop_dead(traced.graph)
    flat = lower(graph, layout(graph) if callable(layout) else layout, mesh)
    program = jax.jit(traced.with_body(flat)).lower(*args).compile()
    found = []
    for line in program.as_text().splitlines():
        kind = re.search(rf" ({KINDS})(?:-start)?\(", line)
        if kind:
            tags = re.findall(r"pz(\w+)", line)
            found.append((kind[1], tags[-1] if tags else None))
    return program(*args), sorted(found)


def one(primitive, decision):
    """A layout that decides all operations of one primitive."""

    def layout(graph):
        ops = {v.op.id: decision for v in walk(graph) if v.op.primitive == primitive}
        assert ops
        return Layout(tuple(SIZES.items()), {}, {}, ops)

    return layout


def check(mesh, fn, args, primitive, decision, kinds=None):
    got, found = compiled(fn, args, one(primitive, decision), mesh)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(fn)(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-5)
    if kinds is not None:
        assert [k for k, tag in found if tag != "None"] == kinds


def manual(operands, result, *reductions):
    return OpDecision(tuple(operands), (result,), tuple(reductions), manual=True)


A = jax.random.normal(jax.random.key(0), (16, 8))
B = jax.random.normal(jax.random.key(1), (8, 24))
IDS = jnp.array([0, 3, 15, 7, 7, 9, 2, 1])


@pytest.mark.parametrize(
    "decision, kinds",
    [
        (manual([cut("a", "b"), cut("b", "-")], cut("a", "-"), Reduction(("b",), None)), ["all-reduce"]),
        (manual([cut("-", "b"), cut("b", "-")], cut("-", "b"), Reduction(("b",), 1)), ["reduce-scatter"]),
        (
            manual([cut("-", "a*b"), cut("a*b", "-")], cut("b", "a"), Reduction(("a",), 1), Reduction(("b",), 0)),
            ["reduce-scatter", "reduce-scatter"],
        ),
        (manual([cut("b*a", "-"), cut("-", "-")], cut("b*a", "-")), []),
    ],
)
def test_contraction_reduces_as_planned(mesh, decision, kinds):
    got, found = compiled(lambda x, y: x @ y, (A, B), one("dot_general", decision), mesh)
    np.testing.assert_allclose(got, A @ B, rtol=1e-5, atol=1e-5)
    assert [k for k, _ in found] == kinds
    assert all(tag == "0" for _, tag in found)


def test_shapes_in_parameters(mesh):
    whole = cut("-", "-")
    check(mesh, lambda x: lax.broadcast(x, (4,)), (A,), "broadcast_in_dim",
          manual([cut("a", "-")], cut("b", "a", "-")))  # fmt: skip
    check(mesh, lambda x: x.reshape(4, 4, 8), (A,), "reshape", manual([cut("b", "a")], cut("b", "-", "a")))
    check(mesh, lambda x: x.reshape(128), (A,), "reshape", manual([cut("b", "-")], cut("b")))
    check(mesh, lambda x: x + lax.broadcasted_iota(jnp.float32, (16, 8), 0), (A,), "iota",
          manual([], cut("b*a", "-")))  # fmt: skip
    check(mesh, lambda x: x[:, 2:5] * 2, (A,), "slice", manual([cut("b*a", "-")], cut("b*a", "-")))
    check(mesh, lambda x: jnp.pad(x, ((0, 0), (1, 2))), (A,), "pad", manual([cut("b", "-"), cut()], cut("b", "-")))
    check(mesh, lambda x, i: lax.dynamic_slice_in_dim(x, i, 3, 1), (A, 2), "dynamic_slice",
          manual([cut("b", "-"), cut(), cut()], cut("b", "-")))  # fmt: skip
    check(mesh, lambda x: jnp.cumsum(x, 1), (A,), "cumsum", manual([cut("a*b", "-")], cut("a*b", "-")))
    check(mesh, lambda x: x.T, (A,), "transpose", manual([cut("a", "b")], cut("b", "a")))
    check(mesh, lambda x: jnp.max(x, 1), (A,), "reduce_max",
          manual([cut("a", "b")], cut("a"), Reduction(("b",), None, "max")), ["all-reduce"])  # fmt: skip
    check(mesh, lambda x: jnp.all(x > -9, 0), (A,), "reduce_and",
          manual([cut("a", "-")], cut("-"), Reduction(("a",), None, "and")), ["all-reduce"])  # fmt: skip
    check(mesh, lambda x: jnp.any(x > 2, 0), (A,), "reduce_or",
          manual([cut("a", "-")], cut("-"), Reduction(("a",), None, "or")), ["all-reduce"])  # fmt: skip
    check(mesh, lambda x: jnp.min(x), (A,), "reduce_min",
          manual([cut("a", "b")], cut(), Reduction(("a", "b"), None, "min")), ["all-reduce"])  # fmt: skip
    summed = Reduction(("b",), None)
    check(mesh, lambda x: x[2:5], (A,), "slice", manual([cut("b", "-")], whole, summed), ["all-reduce"])
    with pytest.raises(ValueError, match="which is cut"):
        compiled(lambda x: x[1:9:3], (A,), one("slice", manual([cut("b", "-")], whole)), mesh)


@pytest.mark.parametrize("mode", ["fill", "clip", "promise_in_bounds"])
def test_embedding_cut_by_rows_and_columns(mesh, mode):
    ids = IDS if mode == "promise_in_bounds" else IDS.at[2].set(99)
    look_up = lambda t, i: t.at[i].get(mode=mode, wrap_negative_indices=False)  # noqa: E731
    decision = manual([cut("b", "a"), cut("-", "-")], cut("-", "a"), Reduction(("b",), None))
    check(mesh, look_up, (A, ids), "gather", decision, ["all-reduce"])
    scattered = manual([cut("a*b", "-"), cut("-", "-")], cut("a*b", "-"), Reduction(("a", "b"), 0))
    check(mesh, look_up, (A, ids), "gather", scattered, ["reduce-scatter"])
    check(mesh, look_up, (A, ids), "gather", manual([cut("-", "a"), cut("b", "-")], cut("b", "a")), [])


def test_integer_rows_are_filled_as_jax_fills(mesh):
    table = jnp.arange(16, dtype=jnp.int32)
    look_up = lambda t, i: t.at[i].get(mode="fill", wrap_negative_indices=False)  # noqa: E731
    decision = manual([cut("b"), cut("-", "-")], cut("-"), Reduction(("b",), None))
    check(mesh, look_up, (table, IDS.astype(jnp.uint8).at[0].set(200)), "gather", decision)


@pytest.mark.parametrize("mode", ["drop", "clip"])
def test_embedding_gradient(mesh, mode):
    rows = jax.random.normal(jax.random.key(2), (8, 8))
    ids = IDS.at[1].set(77)
    add = lambda t, i, r: t.at[i].add(r, mode=mode, wrap_negative_indices=False)  # noqa: E731
    args = (A, ids, rows)
    batch = [cut("-", "a"), cut("b", "-"), cut("b", "a")]
    check(mesh, add, args, "scatter-add", manual(batch, cut("-", "a"), Reduction(("b",), None)), ["all-reduce"])
    check(mesh, add, args, "scatter-add", manual(batch, cut("b", "a"), Reduction(("b",), 0)), ["reduce-scatter"])
    by_rows = [cut("b", "a"), cut("-", "-"), cut("-", "a")]
    check(mesh, add, args, "scatter-add", manual(by_rows, cut("b", "a")), [])
    both = [cut("b", "-"), cut("a", "-"), cut("a", "-")]
    check(mesh, add, args, "scatter-add", manual(both, cut("b", "-"), Reduction(("a",), None)), ["all-reduce"])


def test_convolutions(mesh):
    x, w = jax.random.normal(jax.random.key(3), (8, 6, 6, 8)), jax.random.normal(jax.random.key(4), (3, 3, 8, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, w, g=1: lax.conv_general_dilated(  # noqa: E731
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=g
    )
    p = "conv_general_dilated"
    none = cut("-", "-", "-", "-")
    check(mesh, conv, (x, w), p, manual([cut("a", "-", "-", "-"), none], cut("a", "-", "-", "-")), [])
    check(mesh, conv, (x, w), p, manual([none, cut("-", "-", "-", "b")], cut("-", "-", "-", "b")), [])
    features = [cut("-", "-", "-", "b"), cut("-", "-", "b", "-")]
    check(mesh, conv, (x, w), p, manual(features, none, Reduction(("b",), None)), ["all-reduce"])
    depthwise = jax.random.normal(jax.random.key(5), (3, 3, 1, 16))
    groups = manual([cut("-", "-", "-", "b"), cut("-", "-", "-", "b")], cut("-", "-", "-", "b"))
    check(mesh, lambda x, w: conv(x, w, 8), (x, depthwise), p, groups, [])


def test_partial_sums_flow_through_additions(mesh):
    """(x @ w + y) + z with the product's sum finished once, after the additions."""

    def fn(x, w, y, z):
        return (x @ w + y) + z

    y, z = jax.random.normal(jax.random.key(6), (2, 16, 24))
    graph = trace(fn, (A, B, y, z)).graph
    dot, first, second = graph.ops
    open_sum = cut("-", "-", partial="b")
    layout = Layout(
        tuple(SIZES.items()),
        {},
        {},
        {
            dot.id: manual([cut("-", "b"), cut("b", "-")], open_sum),
            first.id: manual([open_sum, cut("-", "-")], open_sum),
            second.id: manual([open_sum, cut("-", "-")], cut("b", "-"), Reduction(("b",), 0)),
        },
    )
    got, found = compiled(fn, (A, B, y, z), layout, mesh)
    np.testing.assert_allclose(got, fn(A, B, y, z), rtol=1e-5, atol=1e-5)
    assert found == [("reduce-scatter", str(second.id))]


def test_unfinished_sum_is_finished_for_others(mesh):
    graph = trace(lambda x, w: jnp.tanh(x @ w), (A, B)).graph
    dot, tanh = graph.ops
    open_sum = manual([cut("-", "b"), cut("b", "-")], cut("-", "-", partial="b"))
    layout = Layout(tuple(SIZES.items()), {}, {}, {dot.id: open_sum})
    got, found = compiled(lambda x, w: jnp.tanh(x @ w), (A, B), layout, mesh)
    np.testing.assert_allclose(got, jnp.tanh(A @ B), rtol=1e-5, atol=1e-5)
    assert found == [("all-reduce", str(tanh.id))]
    automatic = OpDecision((None, None), (cut("-", "-", partial="b"),))
    with pytest.raises(ValueError, match="needs a local program"):
        compiled(lambda x, w: x @ w, (A, B), one("dot_general", automatic), mesh)


def two_uses(shared):
    """Three products with w, which is cut by rows over b and needed whole."""

    def fn(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w) @ w

    def layout(graph):
        whole, rows, batch = cut("-", "-"), cut("b", "-"), cut("a", "-")
        decision = manual([batch, whole], batch)
        ops = {op.id: decision for op in graph.ops if op.primitive == "dot_general"}
        x, w = graph.inputs
        return Layout(tuple(SIZES.items()), {x: batch, w: rows}, {w: whole} if shared else {}, ops)

    return fn, layout


@pytest.mark.parametrize("shared, gathers", [(True, 1), (False, 3)])
def test_shared_copies_are_made_once_and_others_stay_apart(mesh, shared, gathers):
    fn, layout = two_uses(shared)
    w = jax.random.normal(jax.random.key(7), (8, 8))
    got, found = compiled(fn, (A, w), layout, mesh)
    np.testing.assert_allclose(got, fn(A, w), rtol=1e-5, atol=1e-5)
    assert [k for k, _ in found] == ["all-gather"] * gathers


def scanned(ws, x):
    def body(h, w):
        return jnp.tanh(h @ w), h.sum(1)

    return jax.lax.scan(body, x, ws)


def scanned_layout(graph):
    (scan,) = graph.ops
    region = scan.regions[0]
    h, w = region.inputs
    dot = next(op for op in region.ops if op.primitive == "dot_general")
    batch, rows = cut("b", "-"), cut("-", "a")
    return Layout(
        tuple(SIZES.items()),
        {graph.inputs[0]: cut("-", "-", "a"), graph.inputs[1]: batch, h: batch, w: rows, scan.outputs[0]: batch},
        {},
        {dot.id: manual([batch, rows], cut("b", "a"))},
    )


def test_loops_gather_inside_and_keep_their_carry(mesh):
    ws = jax.random.normal(jax.random.key(8), (3, 8, 8))
    got, found = compiled(scanned, (ws, A), scanned_layout, mesh)
    for x, y in zip(got, scanned(ws, A), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert [k for k, _ in found if k == "all-gather"] == ["all-gather"]
    assert got[0].sharding.is_equivalent_to(named(cut("b", "-"), mesh), 2)


def test_carried_outputs_leave_as_they_came(mesh):
    def step(w, x):
        return w - 0.1 * (x.T @ (x @ w))

    w = jax.random.normal(jax.random.key(9), (8, 8))

    def layout(graph):
        last = graph.ops[-1]
        whole = cut("-", "-")
        return Layout(
            tuple(SIZES.items()),
            {graph.inputs[0]: cut("b", "-"), last.outputs[0]: whole},
            {},
            {last.id: manual([whole, whole], whole)},
        )

    traced = trace(step, (w, A))
    assert traced.graph.carried == {0: 0}
    got, _ = compiled(step, (w, A), layout, mesh)
    np.testing.assert_allclose(got, step(w, A), rtol=1e-5, atol=1e-5)
    assert got.sharding.is_equivalent_to(named(cut("b", "-"), mesh), 2)


def test_layout_without_mesh_is_refused():
    graph = trace(lambda x: x * 2, (A,)).graph
    with pytest.raises(ValueError, match="needs a mesh"):
        lower(graph, Layout((), {}, {}, {}), None)
