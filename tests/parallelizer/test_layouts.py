"""A layout changes where things are computed, never what: random layouts against the uncut program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.ir.graph import Literal, walk
from passes.ir.sharding import Layout, OpDecision, Reduction, Sharding
from passes.normalize import drop_dead

SIZES = {"a": 2, "b": 2, "c": 2}
ELEMENTWISE = {
    "add",
    "add_any",
    "sub",
    "mul",
    "div",
    "tanh",
    "exp",
    "neg",
    "max",
    "select_n",
    "integer_pow",
    "gt",
    "log",
}
SUMS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min"}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), tuple(SIZES))


def random_form(shape, rng, taken=()):
    """Each axis on a random dimension that it divides, or on none."""
    dims = [[] for _ in shape]
    for axis in rng.permutation([a for a in SIZES if a not in taken]):
        d = rng.integers(-1, len(shape)) if shape else -1
        if d >= 0 and shape[d] % (2 ** (len(dims[d]) + 1)) == 0:
            dims[d].append(str(axis))
    return Sharding(tuple(tuple(d) for d in dims))


def decide_dot(graph, op, rng):
    """A contraction by factors: each axis cuts one of them everywhere; contracted axes are reduced or scattered."""
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    left, right = (graph.shape_of(o) for o in op.inputs)
    form = random_form(left, rng)
    lf = [d for d in range(len(left)) if d not in (*lc, *lb)]
    rf = [d for d in range(len(right)) if d not in (*rc, *rb)]
    right_dims = [()] * len(right)
    for ld, rd in zip((*lc, *lb), (*rc, *rb), strict=True):
        right_dims[rd] = form.dims[ld]
    out = [form.dims[d] for d in lb] + [form.dims[d] for d in lf] + [()] * len(rf)
    shape = graph.values[op.outputs[0]].shape
    reductions = []
    for d in lc:
        for axis in form.dims[d]:
            onto = int(rng.integers(-1, len(out))) if out else -1
            if onto >= 0 and shape[onto] % (2 ** (len(out[onto]) + 1)) == 0:
                out[onto] = (*out[onto], axis)
                reductions.append(Reduction((axis,), onto))
            else:
                reductions.append(Reduction((axis,), None))
    return OpDecision((form, Sharding(tuple(right_dims))), (Sharding(tuple(out)),), tuple(reductions), manual=True)


def repeated(form, shape):
    """The form of an operand whose dimensions of size 1 are repeated, or which is a scalar."""
    return Sharding(tuple(f if n > 1 else () for f, n in zip(form.dims, shape, strict=False)))


def decide(graph, op, values, rng):
    shape = graph.values[op.outputs[0]].shape if op.outputs else ()
    if op.primitive == "dot_general":
        return decide_dot(graph, op, rng)
    if op.primitive in ELEMENTWISE and rng.integers(2):
        form = random_form(shape, rng)
        operands = tuple(repeated(form, graph.shape_of(o)) for o in op.inputs)
        return OpDecision(operands, (form,), manual=True)
    if op.primitive in SUMS and rng.integers(2):
        form = random_form(graph.shape_of(op.inputs[0]), rng)
        axes = op.params["axes"]
        cut = tuple(a for d in axes for a in form.dims[d])
        out = Sharding(tuple(f for d, f in enumerate(form.dims) if d not in axes))
        reductions = (Reduction(cut, None, SUMS[op.primitive]),) if cut else ()
        return OpDecision((form,), (out,), reductions, manual=True)
    if op.regions or rng.integers(3) == 0:
        return None
    operands = tuple(
        None if isinstance(o, Literal) or o not in values else random_form(graph.shape_of(o), rng) for o in op.inputs
    )
    return OpDecision(operands, tuple(values.get(v) for v in op.outputs))


def random_layout(graph, seed):
    rng = np.random.default_rng(seed)
    floats = {i: v for i, v in graph.values.items() if v.dtype == "float32"}
    values = {i: random_form(v.shape, rng) for i, v in floats.items()}
    ops = {}
    for visit in walk(graph):
        if any(o.primitive != "scan" for o in visit.inside):
            continue
        decision = decide(graph, visit.op, values, rng)
        if decision is not None and (decision.manual or visit.op.primitive != "optimization_barrier"):
            ops[visit.op.id] = decision
            values.update({v: f for v, f in zip(visit.op.outputs, decision.results, strict=True) if f is not None})
    shared = {i: random_form(floats[i].shape, rng) for i in floats if rng.integers(3) == 0}
    return Layout(tuple(SIZES.items()), values, shared, ops)


def scanned_step():
    tx = optax.sgd(1e-2, momentum=0.9)
    key = jax.random.key(1)
    params = {
        "emb": jax.random.normal(key, (16, 8)),
        "w": jax.random.normal(key, (4, 8, 16)) / 4,
        "v": jax.random.normal(key, (4, 16, 8)) / 4,
    }

    def step(params, opt, ids):
        def loss(p):
            @jax.checkpoint
            def layer(h, wv):
                w, v = wv
                return h + jnp.tanh((h / (1e-3 + jnp.abs(h).max(-1, keepdims=True))) @ w) @ v, (h**2).mean()

            h, seen = jax.lax.scan(layer, p["emb"][ids], (p["w"], p["v"]))
            logits = h @ p["emb"].T
            return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean() + 1e-3 * seen.sum()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    ids = jax.random.randint(key, (8, 4), 0, 16)
    return step, (params, tx.init(params), ids)


def convolutions():
    def f(w, v, x):
        h = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = jnp.max(jax.nn.relu(h), axis=(1, 2)) @ v
        return jnp.sort(jnp.cumsum(h, 0), 1).sum(0)

    key = jax.random.key(2)
    shapes = ((3, 3, 4, 8), (8, 8), (8, 4, 4, 4))
    return lambda *a: jax.vjp(f, *a)[1](jnp.ones(8)), [jax.random.normal(key, s) for s in shapes]


PROGRAMS = {"scanned step": scanned_step, "convolutions": convolutions}


@pytest.mark.parametrize("name, seed", [("scanned step", 0), ("convolutions", 0), ("convolutions", 1)])
def test_random_layouts_compute_the_same(mesh, name, seed):
    fn, args = PROGRAMS[name]()
    traced = trace(fn, args)
    graph = drop_dead(traced.graph)
    layout = random_layout(graph, seed)
    assert sum(d.manual for d in layout.ops.values()) > 3
    got = jax.jit(traced.with_body(lower(graph, layout, mesh)))(*args)
    want = jax.jit(fn)(*args)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2e-4, atol=2e-5)
