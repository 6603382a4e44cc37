"""Programs of kinds that the zoo does not have: each is planned, run on eight devices, and equal to plain `jax.jit`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import parallelizer as pz

RANDOM = np.random.default_rng(0)


def _normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(16, (3, 3))(x)))
        x = nn.max_pool(nn.relu(nn.Conv(16, (3, 3), strides=(2, 2))(nn.avg_pool(x, (2, 2), (2, 2)))), (2, 2), (2, 2))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=False)(x.reshape(x.shape[0], -1)))


def _cnn():
    model, optimizer = Cnn(), optax.sgd(1e-2)
    images, labels = _normal(16, 16, 16, 3), jnp.arange(16) % 10
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, images)

    def step(state, batch):
        params, statistics, opt_state, key = state
        key, dropout = jax.random.split(key)

        def loss(params):
            all_variables = {"params": params, "batch_stats": statistics}
            logits, new = model.apply(all_variables, batch[0], mutable=["batch_stats"], rngs={"dropout": dropout})
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), new["batch_stats"]

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), new, opt_state, key), value

    params = variables["params"]
    return step, ((params, variables["batch_stats"], optimizer.init(params), jax.random.key(3)), (images, labels))


def _lstm():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(64)(nn.RNN(nn.OptimizedLSTMCell(32))(nn.Embed(64, 32)(tokens)))

    model, tokens = Net(), jnp.asarray(RANDOM.integers(0, 64, (8, 12)))

    def step(params, tokens):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, tokens), tokens).mean()

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    return step, (model.init(jax.random.key(0), tokens), tokens)


def _experts():
    def step(state, x):
        def loss(state):
            router, up, down = state
            top, chosen = jax.lax.top_k(jax.nn.softmax(x @ router), 2)
            gates = (jax.nn.one_hot(chosen, 8) * top[..., None]).sum(1)
            hidden = jax.nn.gelu(jnp.einsum("te,td,edf->tef", gates, x, up))
            return (jnp.einsum("tef,efd->td", hidden, down) ** 2).mean()

        return jax.tree.map(lambda p, g: p - 0.1 * g, state, jax.grad(loss)(state))

    return step, ((_normal(16, 8), _normal(8, 16, 32) * 0.1, _normal(8, 32, 16) * 0.1), _normal(64, 16))


def _messages():
    def step(weights, graph):
        senders, receivers, nodes = graph

        def loss(weights):
            sent = (nodes @ weights)[senders]
            return (jax.nn.relu(jax.ops.segment_sum(sent, receivers, num_segments=32)) @ weights.T).var()

        return weights - 0.1 * jax.grad(loss)(weights)

    ends = jnp.asarray(RANDOM.integers(0, 32, (2, 64)))
    return step, (_normal(16, 16), (ends[0], ends[1], _normal(32, 16)))


def _many_primitives():
    def fn(a, b):
        order = jnp.argsort(b, 0)
        looped = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 0.5), (0, a))[1]
        branched = jax.lax.cond(jnp.sum(a) > 0, lambda q: q + 1, lambda q: q - 1, looped)
        numbers = jnp.fft.rfft(a).real.sum() + jnp.argmax(a, 1).sum() + jax.lax.top_k(a, 3)[0].sum()
        return (
            branched + numbers,
            jnp.cumsum(a, 0) + jnp.sort(a, 1),
            jnp.take_along_axis(a, order, 0),
            jnp.concatenate([a, b], 1)[:, ::2],
            jnp.pad(a, ((1, 1), (0, 0))),
            jnp.roll(a, 1, 0),
            a.at[::2].set(0.0),
            jnp.where(a > 0, a, b).T.reshape(-1),
            jax.lax.associative_scan(jnp.add, a, axis=1),
        )

    return fn, (_normal(8, 16), _normal(8, 16))


def _factorisations():
    def fn(p, g):
        q, _ = jnp.linalg.qr(g)
        values, _ = jnp.linalg.eigh(g @ g.mT)
        return p - 0.1 * g @ (g.mT @ g), jnp.abs(q).sum(), values, jnp.linalg.cholesky(p @ p.mT + jnp.eye(8) * 9)

    return fn, (_normal(8, 8, 16) * 0.1, _normal(8, 8, 16) * 0.1)


def _cache():
    def fn(cache, x, position):
        cache = jax.lax.dynamic_update_slice(cache, x[:, None], (0, position, 0))
        weights = jax.nn.softmax(jnp.einsum("bd,btd->bt", x, cache))
        return cache, jnp.einsum("bt,btd->bd", weights, cache)

    return fn, (jnp.zeros((8, 16, 32)), _normal(8, 32), jnp.int32(3))


PROGRAMS = {
    "convolutions, batch norm, dropout": (_cnn, ()),
    "lstm": (_lstm, ()),
    "experts": (_experts, ()),
    "graph network": (_messages, ()),
    "many primitives": (_many_primitives, ()),
    "factorisations": (_factorisations, ()),
    "key-value cache": (_cache, ()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_planned_and_gives_what_jit_gives(name):
    make, unknown = PROGRAMS[name]
    fn, args = make()
    wanted = jax.jit(fn)(*args)
    step = pz.parallelize(fn)
    for got in (step(*args), step(*args)):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            if not jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-4)
    assert {p for p, _, _ in step.plan.unknown} == set(unknown)
