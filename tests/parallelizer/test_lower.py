"""Replaying a graph without a layout is bitwise the original program."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.normalize import drop_dead

KEY = jax.random.key(0)
FAST = {"xla_backend_optimization_level": 0}  # of compiling


def arrays(*shapes):
    return [jax.random.normal(jax.random.fold_in(KEY, i), s) for i, s in enumerate(shapes)]


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def filled(shapes):
    """Numbers in these shapes; an initialiser would take longer to compile than the step."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: np.asarray(rng.uniform(0.1, 0.5, s.shape), s.dtype), shapes)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        h = nn.LayerNorm()(x)
        h = nn.Dense(32)(h)
        h = nn.Dropout(0.2, deterministic=not train)(nn.gelu(h))
        return x + nn.Dense(16)(h)


class Model(nn.Module):
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(self, ids, train=True):
        x = nn.Embed(11, 16)(ids)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        if self.scan:
            layers = nn.scan(
                lambda m, c, _: (m(c, train), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=3,
            )
            x, _ = layers(block(name="layers"), x, None)
        else:
            for i in range(2):
                x = block(name=f"layers_{i}")(x, train)
        return nn.Dense(11)(nn.LayerNorm()(x))


def linen_step(remat, scan):
    model = Model(remat, scan)
    ids = jax.random.randint(KEY, (4, 6), 0, 11)
    params = filled(jax.eval_shape(model.init, {"params": KEY, "dropout": KEY}, ids))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))

    def step(params, opt, ids, key):
        def loss(p):
            logits = model.apply(p, ids, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    return step, (params, filled(jax.eval_shape(tx.init, params)), ids, KEY)


def scan_layers():
    def loss(ws, x):
        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
        def layer(h, w):
            return jnp.tanh(h @ w) + h

        h, seen = jax.lax.scan(lambda h, w: (layer(h, w), h.mean()), x, ws, unroll=2)
        return (h**2).mean() + seen.sum()

    return jax.value_and_grad(loss, argnums=(0, 1)), arrays((4, 8, 8), (3, 8))


def custom_rules():
    @jax.custom_vjp
    def clip(x):
        return x

    clip.defvjp(lambda x: (x, x), lambda x, g: (jnp.clip(g, -0.1, 0.1) * x,))

    @jax.custom_jvp
    def safe_log(x):
        return jnp.log(jnp.abs(x))

    safe_log.defjvps(lambda t, out, x: t / (x + 0.1))

    def f(x, w):
        h = jax.nn.gelu(x @ w) + jax.nn.relu(x) + jax.nn.softmax(x) + jax.nn.silu(x) + jax.nn.logsumexp(x)
        return jnp.mean(clip(safe_log(h)))

    return lambda x, w: (f(x, w), jax.grad(f, argnums=(0, 1))(x, w)), arrays((4, 4), (4, 4))


def control_flow():
    def f(x, n):
        y, i = jax.lax.while_loop(lambda c: c[1] < n, lambda c: (jnp.sin(c[0]) * 2, c[1] + 1), (x, 0))
        y = jax.lax.cond(i > 2, lambda v: v + 1, lambda v: v * 3, y)
        z = jax.lax.fori_loop(0, 3, lambda i, v: v + y[i], x)
        return jax.lax.map(jnp.cumsum, z), jnp.sort(y), jax.lax.switch(i, [jnp.sin, jnp.cos], y)

    return f, [*arrays((5, 5)), jnp.int32(3)]


def random_numbers():
    def f(key, x):
        a, b = jax.random.split(key)
        keys = jax.random.split(b, 3)
        draws = jax.vmap(lambda k: jax.random.normal(k, (4,)))(keys)

        def body(k, _):
            k, use = jax.random.split(k)
            return k, jax.random.uniform(use)

        k, ys = jax.lax.scan(body, a, None, length=3)
        return k, ys, draws, jax.random.permutation(a, x), jax.random.categorical(b, x, axis=-1)

    return f, [KEY, *arrays((6, 3))]


def mixed_types():
    table = jnp.arange(12.0).reshape(3, 4)

    def f(x, ids, scale):
        y = jnp.einsum("ij,kj->ik", x.astype(jnp.bfloat16), table.astype(jnp.bfloat16))
        z = jax.lax.conv_general_dilated(x[None, None], jnp.ones((2, 1, 2, 2)), (1, 1), "SAME")
        return y * scale, table[ids], z, 3, ids, x.at[ids].add(1.0), jnp.linalg.norm(x, axis=0)

    return f, [*arrays((4, 4)), jnp.array([0, 2, 1, 2]), 2.0]


def weak_carry():
    return lambda x: jax.lax.scan(lambda c, v: (c + v, c * 2), 0.0, x), arrays((4,))


def rare_operations():
    @jax.custom_batching.custom_vmap
    def wave(x):
        return jnp.sin(x)

    wave.def_vmap(lambda size, batched, x: (jnp.cos(x), True))

    def f(x):
        ref = jax.new_ref(x)

        def body(c, _):
            ref[0] += c.sum()
            return c * 2, None

        c, _ = jax.lax.scan(body, x, None, length=3)
        called = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        where = jax.lax.platform_dependent(x, cpu=lambda v: v * 2, default=lambda v: v * 3)
        slope = jax.grad(lambda a: jnp.linalg.solve(a, a[0]).sum())(x)
        return ref[...], c, called, where, slope, jax.vmap(wave)(x), wave(x), jnp.fft.fft(x)

    return f, [jnp.eye(4) * 9 + jnp.arange(16.0).reshape(4, 4)]


PROGRAMS = {
    "linen remat": lambda: linen_step(True, False),
    "linen scan remat": lambda: linen_step(True, True),
    "scan layers": scan_layers,
    "custom rules": custom_rules,
    "control flow": control_flow,
    "random numbers": random_numbers,
    "mixed types": mixed_types,
    "weak carry": weak_carry,
    "rare operations": rare_operations,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_replay_is_bitwise_equal(name):
    fn, args = PROGRAMS[name]()
    traced = trace(fn, args)
    want = jax.jit(fn, compiler_options=FAST)(*args)
    same(jax.jit(traced.with_body(lower(drop_dead(traced.graph), None, None)), compiler_options=FAST)(*args), want)


def test_effects_still_happen(capfd):
    def f(x):
        jax.debug.print("outside {}", x)
        return jax.lax.scan(lambda c, _: (jax.debug.print("inside {}", c), (c + 1, None))[1], x, None, length=2)[0]

    traced = trace(f, (jnp.float32(1),))
    out = jax.jit(traced.with_body(lower(drop_dead(traced.graph), None, None)))(jnp.float32(1))
    jax.effects_barrier()
    assert out == 3
    printed = capfd.readouterr().out.split("\n")
    assert sorted(printed) == ["", "inside 1.0", "inside 2.0", "outside 1.0"]


def test_compiled_program_keeps_lines_names_and_tags():
    def f(x, w):
        with jax.named_scope("mine"):
            return jnp.tanh(x @ w)

    args = arrays((4, 4), (4, 4))
    traced = trace(f, args)
    text = jax.jit(lower(traced.graph, None, None)).lower(*args).compile().as_text()
    dot = next(line for line in text.splitlines() if "dot_general" in line and "op_name" in line)
    op = next(op for op in traced.graph.ops if op.primitive == "dot_general")
    assert f"pz{op.id}/mine/dot_general" in dot
    assert op.source.line == f.__code__.co_firstlineno + 2
