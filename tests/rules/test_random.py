"""Random numbers made in pieces are those that one device makes, bit for bit, whatever the plan cuts.

JAX's partitionable threefry (its default) makes every number from the key and the number's own position. The generators
"rbg" and "unsafe_rbg" make a whole array from one state: compilers may make it whole on every device (slower, the same
bits), and what they make differs between backends and compiler versions; JAX promises no more for them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parallelizer as pz
from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.ir import Layout, OpDecision, Sharding
from tests.rules.harness import MESHES, communicated, mesh_of

DRAWS = {
    "bits": lambda k: jax.random.bits(k, (8, 12)),
    "normal": lambda k: jax.random.normal(k, (8, 12)),
    "bytes": lambda k: jax.random.bits(k, (8, 12), "uint8"),
    "uniform": lambda k: jax.random.uniform(k, (8, 12), "bfloat16"),
    "bernoulli": lambda k: jax.random.bernoulli(k, 0.3, (8, 12)),
    "categorical": lambda k: jax.random.categorical(k, jnp.zeros((8, 12, 5))),
    "one key per row": lambda k: jax.vmap(lambda q: jax.random.normal(q, (12,)))(jax.random.split(k, 8)),
    "folded": lambda k: jax.random.randint(jax.random.fold_in(k, 7), (8, 12), 0, 1000),
}
FORMS = (
    Sharding((("x",), ("y",))),
    Sharding((("y", "x"), ())),
    Sharding(((), ("x", "y"))),
    Sharding(((), ())),
)


@pytest.mark.parametrize(("impl", "draws"), [("threefry2x32", len(DRAWS)), ("rbg", 2), ("unsafe_rbg", 2)])
def test_every_draw_is_the_same_in_every_cut(impl, draws):
    assert jax.config.jax_threefry_partitionable
    sizes = MESHES[0]
    mesh = mesh_of(sizes)
    key = jax.random.key(3, impl=impl)
    programs, wanted = [], []
    for draw in list(DRAWS.values())[:draws]:
        graph = trace(draw, (key,)).graph
        (out,) = graph.outputs
        maker = next(op for op in graph.ops if out in op.outputs)
        for form in FORMS:
            decision = OpDecision((None,) * len(maker.inputs), (form,))
            programs.append(lower(graph, Layout(tuple(sizes.items()), {}, {}, {maker.id: decision}), mesh))
        wanted.append(draw)

    def together(k):
        out = []
        for i, program in enumerate(programs):
            with jax.named_scope(f"case{i}_"):
                out.append(program(k)[0])
        return out

    compiled = jax.jit(together).lower(key).compile()
    whole = jax.jit(lambda k: [draw(k) for draw in wanted])(key)
    for i, got in enumerate(compiled(key)):
        np.testing.assert_array_equal(
            np.asarray(got), np.asarray(whole[i // len(FORMS)]), err_msg=list(DRAWS)[i // len(FORMS)]
        )
    assert communicated(compiled.as_text(), len(programs)) == [{}] * len(programs)


def _step(w, x, seed):
    """Dropout and noise in a training step whose batch and weights are cut by the plan."""
    key = jax.random.fold_in(jax.random.key(0), seed)
    drop, noise = jax.random.split(key)

    def loss(w):
        hidden = jnp.tanh(x @ w[0])
        keep = jax.random.bernoulli(drop, 0.9, hidden.shape)
        hidden = jnp.where(keep, hidden / 0.9, 0.0)
        return ((hidden @ w[1] + 0.01 * jax.random.normal(noise, x.shape)) ** 2).mean(), keep

    grads, keep = jax.grad(loss, has_aux=True)(w)
    return [a - 0.1 * g for a, g in zip(w, grads, strict=True)], keep, jax.random.normal(noise, x.shape)


@pytest.mark.parametrize("mesh", [{"x": 8}, {"x": 2, "y": 4}])
def test_a_planned_step_draws_what_one_device_draws(mesh):
    rng = np.random.default_rng(0)
    w = [jnp.asarray(rng.normal(size=s), "float32") for s in ((64, 256), (256, 64))]
    x = jnp.asarray(rng.normal(size=(512, 64)), "float32")
    step = pz.parallelize(_step, mesh=mesh)
    got, want = step(w, x, jnp.int32(5)), jax.jit(_step)(w, x, jnp.int32(5))
    np.testing.assert_array_equal(np.asarray(got[1]), np.asarray(want[1]))
    np.testing.assert_array_equal(np.asarray(got[2]), np.asarray(want[2]))
    for a, b in zip(got[0], want[0], strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    (batch,) = (c.sharding for c in step.plan.choices if c.arrays == ("x",))
    assert batch.axes, "the plan cuts the batch, and with it what is drawn"
