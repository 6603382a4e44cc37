"""Rules of primitives: whatever factor is cut over two devices, the lowered operation computes what the whole one does.

A rule is a claim about what cutting a factor means; here each factor of each rule is cut on a real mesh of two CPU
devices, operands and results in the shardings that the rule says, partial sums finished, and compared.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh

from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.ir import Layout, Literal, OpDecision, Reduction, Sharding
from passes.rules import known_primitives, rule_for

_F = jnp.float32


def _array(*shape, dtype=_F, seed=0):
    values = np.random.default_rng(seed).integers(-4, 5, size=shape)
    return jnp.asarray(values, dtype)


def _convolve(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _pool(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 2, 1), "VALID")


CASES = {
    "add": (lambda a, b: a + b, (_array(4, 6), _array(4, 6, seed=1))),
    "exp": (jnp.exp, (_array(4, 6),)),
    "select_n": (lambda a, b: jnp.where(a > 0, a, b), (_array(4, 6), _array(4, 6, seed=1))),
    "dot_general": (lambda a, b: jnp.einsum("bmk,bkn->bmn", a, b), (_array(2, 4, 6), _array(2, 6, 8, seed=1))),
    "dot_general two contracted": (
        lambda a, b: jnp.einsum("bsd,bsf->df", a, b), (_array(2, 4, 6), _array(2, 4, 8, seed=1)),
    ),
    "reduce_sum": (lambda a: a.sum(1), (_array(4, 6, 2),)),
    "reduce_max": (lambda a: a.max(0), (_array(4, 6),)),
    "transpose": (lambda a: jnp.transpose(a, (2, 0, 1)), (_array(4, 6, 2),)),
    "broadcast_in_dim": (lambda a: lax.broadcast_in_dim(a, (4, 6, 2), (1,)), (_array(6),)),
    "slice": (lambda a: a[:, 1:3], (_array(4, 6),)),
    "pad": (lambda a: jnp.pad(a, ((0, 0), (1, 2))), (_array(4, 6),)),
    "concatenate": (lambda a, b: jnp.concatenate([a, b], 1), (_array(4, 6), _array(4, 2, seed=1))),
    "rev": (lambda a: lax.rev(a, (1,)), (_array(4, 6),)),
    "cumsum": (lambda a: jnp.cumsum(a, 0), (_array(4, 6),)),
    "sort": (lambda a: jnp.sort(a, axis=-1), (_array(4, 6),)),
    "argmax": (lambda a: jnp.argmax(a, axis=1), (_array(4, 6),)),
    "top_k": (lambda a: lax.top_k(a, 2)[0], (_array(4, 6),)),
    "reshape split": (lambda a: a.reshape(4, 2, 3), (_array(4, 6),)),
    "reshape merge": (lambda a: a.reshape(24), (_array(4, 6),)),
    "reshape of a transposed array": (lambda a: lax.reshape(a, (6, 8), (2, 0, 1)), (_array(2, 4, 6),)),
    "conv_general_dilated": (_convolve, (_array(4, 6, 6, 2), _array(3, 3, 2, 4, seed=1))),
    "reduce_window_sum": (_pool, (_array(4, 6, 2),)),
    "cholesky": (lambda a: lax.linalg.cholesky(a), (jnp.stack([jnp.eye(3) * k for k in (1.0, 4.0)]),)),
    "fft": (lambda a: jnp.fft.fft(a).real, (_array(4, 8),)),
    "squeeze": (lambda a: lax.squeeze(a, (1,)), (_array(4, 1, 6),)),
    "gather": (lambda t, i: t.at[i].get(mode="promise_in_bounds"), (_array(8, 6), _array(4, dtype=jnp.int32) + 4)),
    "dynamic_slice": (lambda a: lax.dynamic_slice(a, (0, 1), (4, 2)), (_array(4, 6),)),
}  # fmt: skip


def _decided(graph, op, rule, factor):
    """The layout in which `op` alone is decided, with `factor` cut over axis x."""

    def form(dims):
        return Sharding(tuple(("x",) if d and d[0] == factor else () for d in dims))

    operands = tuple(None if isinstance(o, Literal) else form(d) for o, d in zip(op.inputs, rule.operands, strict=True))
    results = tuple(form(d) for d in rule.results)
    combine = rule.reduced.get(factor)
    reductions = (Reduction(("x",), None, combine),) if combine else ()
    manual = rule.kind in ("contraction", "reduction", "indexing")
    return Layout((("x", 2),), {}, {}, {op.id: OpDecision(operands, results, reductions, manual)})


@pytest.mark.parametrize("name", sorted(CASES))
def test_cutting_any_factor_gives_the_same_result(name):
    fn, args = CASES[name]
    graph = trace(fn, args).graph
    whole = jax.tree.leaves(fn(*args))
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    primitive = name.split()[0]
    op = next(op for op in graph.ops if op.primitive == primitive)
    rule = rule_for(graph, op)
    factors = [f for f in rule.cuttable() if rule.sizes[f] % 2 == 0]
    for factor in factors:
        run = jax.jit(lower(graph, _decided(graph, op, rule, factor), mesh))
        for got, want in zip(run(*args), whole, strict=True):
            np.testing.assert_allclose(np.asarray(got), np.asarray(want), err_msg=f"{name}: factor {factor}")
    assert factors


def test_element_wise_rules_cover_what_training_steps_use():
    common = (
        "mul add div sub neg exp log tanh pow max min select_n lt gt eq convert_element_type rsqrt sqrt integer_pow"
    )
    assert set(common.split()) <= set(known_primitives())


def test_indexed_rows_are_reduced_in_a_gather_and_local_in_a_scatter():
    table, ids, updates = _array(8, 6), jnp.zeros((4,), jnp.int32), _array(4, 6, seed=1)
    graph = trace(lambda t, i: t.at[i].get(mode="promise_in_bounds"), (table, ids)).graph
    gather = next(op for op in graph.ops if op.primitive == "gather")
    rule = rule_for(graph, gather)
    assert rule.reduced == {"v": "sum"} and rule.indexed == {"v"}
    graph = trace(lambda t, i, u: t.at[i].add(u, mode="promise_in_bounds"), (table, ids, updates)).graph
    scatter = next(op for op in graph.ops if op.primitive.startswith("scatter"))
    rule = rule_for(graph, scatter)
    assert set(rule.reduced) == {"i0"}
    assert rule.results[0][0] == ("v",)


def test_an_unknown_primitive_is_whole_everywhere():
    graph = trace(lambda a: lax.while_loop(lambda s: s.sum() < 1, lambda s: s + 1, a), (jnp.zeros(4),)).graph
    op = next(op for op in graph.ops if op.primitive == "while")
    rule = rule_for(graph, op)
    assert rule.kind == "opaque"
    assert not rule.cuttable()


@pytest.mark.parametrize(("m", "k", "n"), list(itertools.product((4, 6), (8,), (2, 10))))
def test_flop_of_a_product_are_xlas(m, k, n):
    fn = lambda a, b: a @ b  # noqa: E731 - a named function would be traced as a call
    args = (_array(m, k), _array(k, n))
    graph = trace(fn, args).graph
    op = next(op for op in graph.ops if op.primitive == "dot_general")
    counted = jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]
    assert rule_for(graph, op).flop == counted


def test_groups_that_are_cut_have_their_rows_brought_to_the_front():
    """The price counts the blocks once more written and read, for what devices do not have from the beginning."""

    def products(rows, kernels, counts):
        return jax.lax.ragged_dot(rows, kernels, counts)

    args = jnp.ones((16, 8)), jnp.ones((4, 8, 6)), jnp.full(4, 4, jnp.int32)
    graph = trace(products, args).graph
    rule = rule_for(graph, graph.ops[-1])
    (group,) = rule.copied
    assert rule.sizes[group] == 4 and group in rule.cuttable()
    graph = trace(lambda x, y: x @ y, args[:1] + (jnp.ones((8, 6)),)).graph
    assert not rule_for(graph, graph.ops[-1]).copied
