"""Loops, branches and calls: cut inside, one sharding per carry, equal to plain `jax.jit`, and compiled as planned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.errors import BadTripsError, UnknownLoopError
from passes.ir import walk

RANDOM = np.random.default_rng(0)
LINE, GRID = {"x": 8}, {"x": 2, "y": 4}


def _normal(*shape, scale=1.0):
    return jnp.asarray(RANDOM.normal(size=shape) * scale, jnp.float32)


W = (_normal(64, 128, scale=0.1), _normal(128, 64, scale=0.1))
X = _normal(32, 64)


def _layer(w, x):
    return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1])


def _descend(loss, w):
    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), value


def while_loop(w, x):
    def asks(c):
        return (c[0] < 6) & (jnp.abs(c[1]).max() < 9.0)

    return jax.lax.while_loop(asks, lambda c: (c[0] + 1, _layer(w, c[1])), (0, x))[1]


def counted_to_an_argument(w, x):
    return jax.lax.fori_loop(0, jnp.int32(x[0, 0] * 0 + 3), lambda i, v: _layer(w, v) + i, x)


def exchanged_carries(w, x):
    return jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, c[2], _layer(w, c[1])), (0, x, x * 2))


def branches_with_gradients(w, x):
    def loss(w):
        def positive(w):
            return jnp.tanh(x @ w[0]) @ w[1]

        return (jax.lax.cond(x[0, 0] > 9.0, positive, lambda w: jax.nn.relu(x @ w[0]) @ w[1], w) ** 2).mean()

    return _descend(loss, w)


def skipped_update(w, x):
    def keep(state):
        return state[0]

    def update(state):
        return jax.tree.map(lambda p, g: p - 0.1 * g, *state)

    value, grads = jax.value_and_grad(lambda w: (_layer(w, x) ** 2).mean())(w)
    return jax.lax.cond(jnp.isfinite(value), update, keep, (w, grads)), value


def switch_of_three(w, x):
    index = jnp.int32(x[0, 0] * 0 + 2)
    return jax.lax.switch(index, [lambda v: _layer(w, v), lambda v: v * 2, lambda v: jnp.cumsum(v, 0)], x)


def layers_with_checkpoint(w, x):
    @jax.checkpoint
    def layer(h, w):
        return h + _layer(w, h), h.mean()

    def loss(w):
        h, means = jax.lax.scan(layer, x, w)
        return (h**2).mean() + means.sum()

    return _descend(loss, w)


def reversed_recurrence(w, x):
    def loss(w):
        def cell(h, t):
            h = jnp.tanh(t @ w[0] + h @ w[1])
            return h, h @ w[2]

        h, ys = jax.lax.scan(cell, jnp.zeros((x.shape[1], 64)), x, reverse=True)
        return (ys**2).mean() + h.sum()

    return _descend(loss, w)


def loops_within_loops(w, x):
    @jax.checkpoint
    def outer(h, w):
        def inner(h, _):
            h = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, h))[1]
            return jax.lax.cond(h.sum() > 0, lambda v: v @ w, lambda v: v, h), h.mean(0)

        return jax.lax.scan(inner, h, None, length=2)

    return jax.lax.scan(outer, x, w)


def batched_loop(w, x):
    """Each row runs as long as it needs; vmap makes one loop of them."""

    def one(row):
        def body(c):
            return jax.lax.cond(c.sum() > 0, lambda c: jnp.tanh(w @ c) * 0.5, lambda c: c * 0.5, c)

        return jax.lax.while_loop(lambda c: jnp.sum(c**2) > 1.0, body, row)

    return jax.vmap(one)(x)


def scan_over_a_cut_dimension(w, x):
    h = jnp.tanh(x @ w)
    last, ys = jax.lax.scan(lambda c, t: (c * 0.9 + t, c), jnp.zeros(h.shape[1:]), h)
    return jax.nn.softmax(ys @ w.T, -1), last


def scan_over_numbers(x, s):
    doubled = jax.lax.map(lambda t: t * 2.0 + 1, s)
    return jax.lax.scan(lambda c, a: (c * a[1] + a[0], a[1]), jnp.zeros(x.shape[1:]), (x, doubled))


def custom_derivatives(w, x):
    @jax.custom_vjp
    def dense(x, w):
        return jnp.tanh(x @ w)

    def forward(x, w):
        y = dense(x, w)
        return y, (x, w, y)

    def backward(kept, g):
        x, w, y = kept
        d = g * (1 - y * y)
        return d @ w.T, x.T @ d

    dense.defvjp(forward, backward)

    @jax.custom_jvp
    def gate(x):
        return x * jax.nn.sigmoid(x)

    gate.defjvps(lambda t, _, x: t * 2.0)
    evaluated = gate(dense(x, w[0])).mean()  # left as calls in the program
    return *_descend(lambda w: (gate(dense(dense(x, w[0]), w[1])) ** 2).mean(), w), evaluated


def associative_scan(a, x):
    def loss(a):
        def combine(p, q):
            return p[0] * q[0], q[0] * p[1] + q[1]

        gates = jnp.broadcast_to(jax.nn.sigmoid(a), x.shape)
        return (jax.lax.associative_scan(combine, (gates, x), axis=1)[1] ** 2).mean()

    return _descend(loss, a)


def linear_solver(a, b):
    return jax.scipy.sparse.linalg.cg(lambda v: a @ (a.T @ v) + v, b, maxiter=4)[0]


def keys_in_loops(key, x):
    key = jax.lax.cond(x.sum() > 0, lambda k: jax.random.split(k)[0], lambda k: k, key)

    def body(c, _):
        key, noise = jax.random.split(c[0])
        return (key, c[1] + jax.random.normal(noise, x.shape)), key

    return jax.lax.scan(body, (key, x), None, length=3)


STACKED = (_normal(8, 64, 128, scale=0.1), _normal(8, 128, 64, scale=0.1))
RECURRENT = (_normal(32, 64, scale=0.1), _normal(64, 64, scale=0.1), _normal(64, 48, scale=0.1))
TENSOR = {"w/0": P(None, "x"), "w/1": P("x")}
CASES = {
    "while, batch": (while_loop, (W, X), GRID, {"x": P("x")}),
    "while, weights": (while_loop, (W, X), LINE, {"w/0": P("x"), "w/1": P(None, "x")}),
    "fori": (counted_to_an_argument, (W, X), GRID, {"x": P("y", "x")}),
    "exchanged": (exchanged_carries, (W, X), LINE, {"x": P(None, "x")}),
    "cond, tensor": (branches_with_gradients, (W, X), LINE, TENSOR),
    "cond, batch": (branches_with_gradients, (W, X), GRID, {"x": P("y")}),
    "skip": (skipped_update, (W, X), GRID, {}),
    "switch": (switch_of_three, (W, X), LINE, {"x": P(None, "x")}),
    "layers, tensor": (layers_with_checkpoint, (STACKED, X), GRID, {"w/0": P(None, None, "y"), "w/1": P(None, "y")}),
    "layers, stored by layer": (layers_with_checkpoint, (STACKED, X), LINE, {"w/0": P("x"), "w/1": P("x")}),
    "recurrence, batch": (reversed_recurrence, (RECURRENT, _normal(16, 8, 32)), LINE, {"x": P(None, "x")}),
    "recurrence, time": (reversed_recurrence, (RECURRENT, _normal(16, 8, 32)), GRID, {"x": P("y")}),
    "nested": (loops_within_loops, (_normal(4, 64, 64, scale=0.1), X), GRID, {"x": P("x"), "w": P(None, None, "y")}),
    "vmap": (batched_loop, (_normal(64, 64, scale=0.1), X), LINE, {"x": P("x")}),
    "scanned dimension": (scan_over_a_cut_dimension, (_normal(32, 32), _normal(16, 8, 32)), GRID, {"x": P("y")}),
    "numbers": (scan_over_numbers, (_normal(8, 16), _normal(8)), LINE, {"x": P("x"), "s": P("x")}),
    "custom derivatives": (custom_derivatives, ((W[0][:, :64], W[1][:64]), X), GRID, {"x": P("x")}),
    "associative": (associative_scan, (_normal(32), _normal(8, 16, 32)), GRID, {"x": P(None, None, "y")}),
    "solver": (linear_solver, (_normal(64, 32, scale=0.1), _normal(64)), LINE, {"b": P("x")}),
    "keys": (keys_in_loops, (jax.random.key(0), X), GRID, {"x": P("x")}),
}


def _same(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_cut_loop_or_branch_gives_what_jit_gives_and_is_compiled_as_planned(name):
    fn, args, mesh, pins = CASES[name]
    plan = pz.plan(fn, *args, mesh=mesh, pins=pins, strict=True)
    _same(plan.apply()(*args), jax.jit(fn)(*args))
    audit = plan.audit()
    assert audit.ok, str(audit)
    for path, spec in pins.items():
        assert plan.shardings[path] == spec
    assert any(s.axes for v, s in plan.layout.values.items() if v not in plan.graph.inputs), "nothing inside is cut"


def _carries(plan):
    for visit in walk(plan.graph):
        op = visit.op
        if op.primitive == "while":
            n, m = op.params["cond_nconsts"], op.params["body_nconsts"]
            for k, result in enumerate(op.outputs):
                yield op.regions[0].inputs[n + k], op.regions[1].inputs[m + k], result
        elif op.primitive == "scan":
            for k in range(op.params["num_carry"]):
                yield op.regions[0].inputs[op.params["num_consts"] + k], op.outputs[k]


@pytest.mark.parametrize("name", ["while, batch", "exchanged", "nested", "recurrence, time"])
def test_a_carry_has_one_sharding_in_condition_body_and_result(name):
    fn, args, mesh, pins = CASES[name]
    plan = pz.plan(fn, *args, mesh=mesh, pins=pins)
    found = [{plan.layout.values.get(v) for v in alike} for alike in _carries(plan)]
    assert found and all(len(shardings) == 1 for shardings in found)


# ---- how often a loop runs ----
PINNED = {"w/0": P(None, "x"), "w/1": P("x")}
WIDE = (_normal(256, 1024, scale=0.05), _normal(1024, 256, scale=0.05))


def until(w, x, n):
    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, _layer(w, c[1])), (0, x))[1]


def _sums(plan):
    return sum(c.count for c in plan.collectives if c.kind == "all_reduce" and c.size_bytes > 64)


@pytest.mark.parametrize("hint", [None, 7, {"until": 7}, {"*": 3, "until": 7}])
def test_the_users_hint_multiplies_the_cost_of_a_while_loop(hint):
    args = (WIDE, _normal(16, 256), jnp.int32(3))
    once = pz.plan(until, *args, mesh=LINE, pins=PINNED)
    plan = pz.plan(until, *args, mesh=LINE, pins=PINNED, loop_trips=hint)
    trips = 1 if hint is None else 7
    assert _sums(plan) == trips
    assert plan.cost.step_s == pytest.approx(trips * once.cost.step_s, rel=0.05)
    (loop,) = plan.loops
    assert (loop.trips, loop.why) == (trips, "unknown" if hint is None else "user")
    _same(plan.apply()(*args), jax.jit(until)(*args))
    audit = plan.audit()
    assert audit.ok, str(audit)
    summary = plan.summary()
    assert "LOOPS WHOSE LENGTH" in summary and f"{trips} x" in summary and "loop_trips" in summary


def test_a_place_may_be_a_line_and_a_loaded_plan_keeps_its_hints(tmp_path):
    args = (WIDE, _normal(16, 256), jnp.int32(3))
    line = until.__code__.co_firstlineno + 1
    plan = pz.plan(until, *args, mesh=LINE, pins=PINNED, loop_trips={f"test_control_flow.py:{line}": 5})
    assert _sums(plan) == 5
    plan.save(str(tmp_path / "plan.json"))
    loaded = pz.load_plan(str(tmp_path / "plan.json"))
    assert loaded.loops == plan.loops
    _same(loaded.apply(until)(*args), jax.jit(until)(*args))


def test_a_condition_that_counts_needs_no_hint():
    def both(x):
        exact = jax.lax.while_loop(lambda c: c[0] <= 20, lambda c: (c[0] + 3, jnp.tanh(c[1])), (0, x))[1]
        down = jax.lax.while_loop(lambda c: c[0] > 0, lambda c: (c[0] - 2, c[1] * 0.5), (9, exact))[1]
        return jax.lax.while_loop(lambda c: (c[0] < 11) & (c[1].max() < 3), lambda c: (c[0] + 1, c[1] + 1), (1, down))

    plan = pz.plan(both, X, mesh=LINE)
    loops = [op for op in plan.graph.ops if op.primitive == "while"]
    assert [(op.regions[1].trip_count, op.regions[1].known) for op in loops] == [(7, True), (5, True), (10, False)]
    assert [(loop.trips, loop.why) for loop in plan.loops] == [(10, "condition")]


@pytest.mark.parametrize(
    ("hint", "error", "words"),
    [
        ({"untill": 7}, UnknownLoopError, ["'untill'", "did you mean", "test_control_flow.py"]),
        (0, BadTripsError, ["at least 1, not 0"]),
        ({"until": 2.5}, BadTripsError, ["not 2.5 (until)"]),
    ],
)
def test_hints_that_no_loop_answers_to_are_refused(hint, error, words):
    with pytest.raises(error) as refused:
        pz.plan(until, WIDE, _normal(16, 256), jnp.int32(3), mesh=LINE, loop_trips=hint)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_branches_cost_their_mean():
    def chosen(w, x):
        return jax.lax.switch(jnp.int32(x[0, 0]), [lambda v: _layer(w, v)] * 4, x)

    args = (WIDE, _normal(16, 256))
    always = pz.plan(_layer, *args, mesh=LINE, pins=PINNED)
    one_of_four = pz.plan(chosen, *args, mesh=LINE, pins=PINNED)
    assert _sums(one_of_four) == 4 * _sums(always)
    assert one_of_four.cost.step_s == pytest.approx(always.cost.step_s, rel=0.1)


def test_loops_that_run_never_and_operations_with_effects():
    seen = []

    def fn(x):
        y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c), None), x, None, length=0)

        def body(c):
            jax.debug.callback(lambda i: seen.append(int(i)), c[0])
            return c[0] + 1, c[1] * 0.5

        return jax.lax.while_loop(lambda c: c[0] < 3, body, (0, y))

    plan = pz.plan(fn, X, mesh=LINE, pins={"x": P("x")})
    _same(plan.apply()(X), (jnp.int32(3), X * 0.125))
    jax.effects_barrier()
    assert set(seen) == {0, 1, 2}
