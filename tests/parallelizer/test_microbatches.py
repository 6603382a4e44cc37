"""A step whose batch is taken in parts gives what the plain step gives, whatever the loss divides by."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from parallelizer import zoo
from parallelizer.errors import BatchInputsError, MicrobatchCountError, MicrobatchRefusedError, UnknownPathError
from parallelizer.lower import lower
from parallelizer.microbatches import batch_inputs, in_microbatches, microbatched
from parallelizer.planning import make_plan, resolve_topology
from parallelizer.prepared import prepared
from parallelizer.runtime.runner import program_of
from parallelizer.tracer import trace
from passes.batchwise import MicrobatchError
from passes.ir.graph import Graph, Op, walk
from passes.rules import rule_for

KEY = jax.random.key(0)
FAST = {"xla_backend_optimization_level": 0}  # of compiling
FULL = os.environ.get("TESTS") == "full"


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    return [jax.random.normal(jax.random.fold_in(KEY, i), s) for i, s in enumerate(shapes)]


def both(
    fn: Callable[..., Any], args: Sequence[Any], batch: Sequence[int], recompute: bool = False, count: int = 3
) -> tuple[Graph, Graph]:
    """(the traced graph, the one in microbatches), whose inputs `batch` are cut along their first dimension."""
    graph = prepared(trace(fn, args).graph)
    sizes = [len(jax.tree.leaves(a)) for a in args]
    starts = np.cumsum([0, *sizes])
    inputs = [graph.inputs[i] for a in batch for i in range(starts[a], starts[a + 1])]
    return graph, in_microbatches(graph, {v: 0 for v in inputs if graph.values[v].shape}, count, recompute)


def loops(graph: Graph, count: int = 3) -> list[Op]:
    return [
        op for op in graph.ops if op.primitive == "scan" and op.params["length"] == count and not op.params["reverse"]
    ]


def equal(graph: Graph, cut: Graph, args: Sequence[Any], rtol: float = 2e-6) -> list[Any]:
    """Run both; every number within `rtol` of its array's largest."""
    leaves = jax.tree.leaves(args)
    results = []
    for g in (graph, cut):
        compiled = jax.jit(lower(g, None, None)).lower(*leaves).compile(compiler_options=FAST)
        results.append(compiled(*leaves))
    for a, b in zip(*results, strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(1e-3, np.abs(x).max(initial=0)))
    return results[1]


def product_flop(graph: Graph) -> float:
    return sum(
        v.count * rule_for(graph, v.op).flop for v in walk(graph) if not v.op.regions and _multiplies(graph, v.op)
    )


def _multiplies(graph: Graph, op: Op) -> bool:
    return rule_for(graph, op).kind == "contraction"


# ---- losses ----
PARAMS = dict(zip("abc", arrays((8, 16), (16,), (16, 4)), strict=True))
X, Y = arrays((12, 8), (12, 4))
MASK = jnp.array([1.0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1])  # unequal numbers in the three parts
WEIGHTS = jnp.linspace(0.1, 3.0, 12)


def model(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["a"] + p["b"]) @ p["c"]


def mean_loss(p: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.mean((model(p, x) - y) ** 2)


def sum_loss(p: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sum((model(p, x) - y) ** 2)


def masked_loss(p: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sum(((model(p, x) - y) ** 2).mean(-1) * (w > 0.5)) / jnp.sum(w > 0.5)


def weighted_loss(p: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sum(((model(p, x) - y) ** 2).mean(-1) * w) / jnp.maximum(jnp.sum(w), 1e-3)


def normalised_weights(p: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sum(((model(p, x) - y) ** 2).mean(-1) * jax.nn.softmax(w))


def logged_mean(p: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.mean(jnp.log1p(((model(p, x) - y) ** 2).sum(-1))) + 0.1 * jnp.sum(p["a"] ** 2)


def training_step(loss: Callable[..., jax.Array]) -> tuple[Callable[..., Any], Any]:
    """A step with global-norm clipping, which reads all gradients before it changes any."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9))

    def step(p: Any, s: Any, *batch: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(p, *batch)
        updates, s = optimizer.update(gradients, s, p)
        return optax.apply_updates(p, updates), s, {"loss": value, "norm": optax.global_norm(gradients)}

    return step, optimizer.init(PARAMS)


# How often the batch is gone through: what divides by a sum over it needs that first; a softmax its maximum as well.
PASSES = {mean_loss: 1, sum_loss: 1, logged_mean: 1, masked_loss: 2, weighted_loss: 2, normalised_weights: 3}


@pytest.mark.parametrize("loss", PASSES, ids=lambda f: f.__name__)
def test_losses_are_scaled_exactly(loss: Callable[..., jax.Array]) -> None:
    step, state = training_step(loss)
    args = (PARAMS, state, X, Y, jnp.where(MASK > 0, WEIGHTS, 0.0))
    graph, cut = both(step, args, (2, 3, 4))
    equal(graph, cut, args)
    assert len(loops(cut)) == PASSES[loss]
    # Products of matrices run once per example, and the optimizer once per step.
    assert product_flop(cut) == product_flop(graph)
    inside = [op for loop in loops(cut) for op in loop.regions[0].ops]
    assert "sqrt" in {op.primitive for op in cut.ops} and "sqrt" not in {op.primitive for op in inside}


def test_one_example_at_a_time() -> None:
    step, state = training_step(weighted_loss)
    args = (PARAMS, state, X, Y, WEIGHTS)
    graph, cut = both(step, args, (2, 3, 4), count=12)
    equal(graph, cut, args)


# ---- what a program may do with its batch ----
def test_results_of_single_examples_come_back_in_order() -> None:
    def run(p: Any, x: jax.Array) -> Any:
        y = model(p, x)
        return y, y.T, jnp.max(y), jnp.argmax(y, axis=-1), x.reshape(2, 6, 8) + 1.0

    args = (PARAMS, X)
    graph, cut = both(run, args, (1,), count=2)
    equal(graph, cut, args)


def test_groups_of_examples_stay_what_they_are() -> None:
    """Four groups of three examples: a microbatch takes neighbouring examples. Without groups it takes every third."""

    def grouped(p: Any, x: jax.Array) -> Any:
        h = model(p, x).reshape(4, 3, 4)
        return jnp.sum(jnp.exp(h - h.max(1, keepdims=True))), h.mean(1)

    graph, cut = both(grouped, (PARAMS, X), (1,), count=2)
    equal(graph, cut, (PARAMS, X))
    assert (2, 6, 8) in {cut.values[o].shape for op in cut.ops for o in op.outputs}
    graph, cut = both(lambda p, x: model(p, x).reshape(24, 2), (PARAMS, X), (1,), count=2)
    equal(graph, cut, (PARAMS, X))
    assert (6, 2, 8) in {cut.values[o].shape for op in cut.ops for o in op.outputs}


def test_random_bits_are_those_of_the_whole_batch() -> None:
    def loss(p: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        def layer(h: jax.Array, each: Any) -> Any:
            w, k = each
            return h * jax.random.bernoulli(k, 0.7, h.shape) + jnp.tanh(h @ w), None

        h = x * jax.random.normal(key, x.shape)
        h, _ = jax.lax.scan(layer, h, (p, jax.random.split(key, 3)))
        return jnp.mean(h**2)

    args = (arrays((3, 8, 8))[0], X, KEY)
    graph, cut = both(jax.value_and_grad(loss), args, (1,))
    equal(graph, cut, args)
    # Within the loop over layers the bits are made whole and sliced.
    assert any(v.op.primitive == "random_bits" and len(v.inside) == 2 for v in walk(cut))


def test_loops_and_branches_on_the_batch() -> None:
    def loss(p: Any, x: jax.Array, n: jax.Array) -> jax.Array:
        def layer(carry: Any, w: jax.Array) -> Any:
            h, total = carry
            h = jax.nn.relu(h @ w) + jnp.arange(8.0)
            return (h, total + jnp.sum(h)), h.mean(-1)

        (h, total), means = jax.lax.scan(jax.checkpoint(layer), (x, 0.0), p)
        h = jax.lax.cond(n > 2, lambda a: a * 2.0, lambda a: a, h)
        h = jax.lax.fori_loop(0, 3, lambda i, a: jnp.sin(a) + 1.0, h)
        return jnp.mean(h**2) + 1e-3 * total + jnp.sum(means[-1]) / x.shape[0]

    args = (arrays((3, 8, 8))[0], X, jnp.int32(3))
    graph, cut = both(jax.value_and_grad(loss), args, (1,))
    equal(graph, cut, args)
    assert len(loops(cut)) == 1


def test_batch_statistics_of_the_input_take_one_more_pass() -> None:
    """Standardising the input needs no product twice, so it is allowed, exactly."""

    def loss(p: Any, x: jax.Array) -> jax.Array:
        x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
        return jnp.mean(model(p, x) ** 2)

    graph, cut = both(jax.value_and_grad(loss), (PARAMS, X), (1,))
    equal(graph, cut, (PARAMS, X))
    assert len(loops(cut)) == 3
    assert product_flop(cut) == product_flop(graph)


def test_sums_of_few_bits_are_added_up_in_many() -> None:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum((x @ p) ** 2)

    p, x = (a.astype(jnp.bfloat16) for a in arrays((8, 4), (256, 8)))
    graph, cut = both(jax.grad(loss), (p, x), (1,), count=256)
    equal(graph, cut, (p, x), rtol=2e-2)
    (loop,) = loops(cut, 256)
    assert [cut.values[v].dtype for v in loop.outputs] == ["float32"]


def test_what_is_recomputed_in_the_backward_pass() -> None:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.checkpoint(lambda p, x: jnp.tanh(jnp.tanh(x @ p) @ p))(p, x))

    args = arrays((8, 8), (12, 8))
    graph, cut = both(jax.grad(loss), args, (1,))
    equal(graph, cut, args)
    assert any(v.op.primitive == "optimization_barrier" for v in walk(cut))


def test_less_is_held_at_once() -> None:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) ** 2)

    args = (arrays((64, 512), (512, 512)), arrays((1024, 64))[0])
    graph, cut = both(jax.grad(loss), args, (1,), count=16)
    leaves = jax.tree.leaves(args)
    held = [
        jax.jit(lower(g, None, None)).lower(*leaves).compile(compiler_options=FAST).memory_analysis().temp_size_in_bytes
        for g in (graph, cut)
    ]
    assert held[1] < held[0] / 2


# ---- asked for by a user ----
def test_which_inputs_are_the_batch() -> None:
    def step(state: Any, batch: Any, table: jax.Array) -> Any:
        grad = jax.grad(lambda w: jnp.mean((batch["x"] @ w - table[0]) ** 2))(state["w"])
        return {"w": state["w"] - grad}, jnp.sum(batch["n"])

    args = ({"w": PARAMS["a"]}, {"x": X, "n": MASK}, jnp.ones((2, 16)))
    graph = prepared(trace(step, args, donate_argnums=0).graph)
    paths = dict(zip(graph.inputs, graph.input_paths, strict=True))
    with pytest.raises(BatchInputsError, match=r"(?s)first dimensions differ.*table: \(2, 16\)"):
        microbatched(graph, 3)
    assert [paths[v] for v in batch_inputs(graph, ("batch",))] == ["batch/n", "batch/x"]
    assert [paths[v] for v in batch_inputs(graph, ("*/x",))] == ["batch/x"]
    equal(graph, microbatched(graph, 3, ("batch",)), args)
    with pytest.raises(UnknownPathError, match="'bach'"):
        microbatched(graph, 3, ("bach",))
    with pytest.raises(MicrobatchCountError, match=r"(?s)12 examples = 5 \* 2 \+ 2.*microbatches=4 "):
        microbatched(graph, 5, ("batch",))
    with pytest.raises(MicrobatchCountError, match="microbatches=1"):
        microbatched(graph, 0, ("batch",))


def test_a_refusal_says_where_and_what_to_do() -> None:
    graph = prepared(trace(lambda x: jnp.sort(x, axis=0), (X,)).graph)
    with pytest.raises(MicrobatchRefusedError, match=r"(?s)all examples.*test_microbatches.py:\d+ .*what to do"):
        microbatched(graph, 3, ("x",))


def test_a_plan_of_a_step_in_microbatches() -> None:
    """Planned and run like any other program; what the loop over microbatches adds up is as without it."""

    def step(p: Any, x: jax.Array) -> Any:
        gradients = jax.grad(lambda p: jnp.mean(jnp.tanh(jnp.tanh(x @ p["a"] + p["b"]) @ p["c"]) ** 2))(p)
        return jax.tree.map(lambda a, g: a - 0.1 * g, p, gradients)

    args = (PARAMS, arrays((64, 8))[0])
    traced = trace(step, args, donate_argnums=0)
    cut = microbatched(prepared(traced.graph), 4)
    pins = {"x": PartitionSpec("x", None)}
    plan = make_plan(replace(traced, graph=cut), resolve_topology("cpu:8"), {"x": 8}, pins=pins)
    # At most what one microbatch reads is moved, never the batch.
    assert all(c.size_bytes <= args[1].nbytes // 4 for c in plan.collectives if c.array == "x")
    want = jax.jit(step)(*args)
    got = program_of(plan)(*jax.tree.map(jnp.copy, args))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# ---- models ----
def moe(p: Any, x: jax.Array, balance: float) -> jax.Array:
    """Two of four experts per token, within groups of one example; `balance` weighs the batch's statistics."""
    probabilities = jax.nn.softmax(jnp.einsum("bsd,de->bse", x, p["router"]))
    weights, chosen = jax.lax.top_k(probabilities, 2)
    picked = jax.nn.one_hot(chosen, 4) * (weights / weights.sum(-1, keepdims=True))[..., None]
    place = jnp.cumsum(picked.sum(2) > 0, axis=1)
    combine = picked.sum(2) * (place <= 4)
    y = jnp.einsum("bse,bsef->bsf", combine, jax.nn.gelu(jnp.einsum("bsd,edf->bsef", x, p["up"])))
    share = jnp.mean(jax.nn.one_hot(chosen, 4), axis=(0, 1, 2))
    loss = jnp.mean(y**2)
    return loss + balance * jnp.sum(share * jnp.mean(probabilities, axis=(0, 1))) if balance else loss


@pytest.mark.parametrize("balance", (0.0, 0.1))
def test_mixture_of_experts(balance: float) -> None:
    """Balance of experts over the whole batch is two sums multiplied: the gradient of one needs the other first."""
    p = dict(zip(("router", "up"), arrays((8, 4), (4, 8, 8)), strict=True))
    args = (p, arrays((6, 5, 8))[0])
    step = jax.value_and_grad(lambda p, x: moe(p, x, balance))
    if balance:
        with pytest.raises(MicrobatchError, match=r"reduce_sum at .*\(moe\)\) feeds back"):
            both(step, args, (1,))
    graph, cut = both(step, args, (1,), recompute=bool(balance))
    equal(graph, cut, args)
    assert len(loops(cut)) == (2 if balance else 1)


def filled(shapes: Any) -> Any:
    """Numbers in these shapes; an initialiser would take longer to compile than the step."""
    rng = np.random.default_rng(0)

    def fill(s: Any) -> Any:
        if jax.dtypes.issubdtype(s.dtype, jax.dtypes.prng_key):
            return KEY
        return np.asarray(rng.normal(0.0, 0.2, s.shape) if s.dtype.kind == "f" else np.zeros(s.shape), s.dtype)

    return jax.tree.map(fill, shapes)


# SGD: where a gradient is almost zero Adam divides it by its size.
SMALL = {"layers": 2, "embed": 16, "heads": 2, "sequence": 8, "optimizer": "sgd", "learning_rate": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "gpt-toy": SMALL,
    "llama-toy": {**SMALL, "kv_heads": 1, "mlp": 32},
    "gpt-toy remat": {**SMALL, "remat": "full", "dropout": 0.1, "metrics": ("loss",)},
    "t5-toy": {"layers": 1, "optimizer": "sgd"},
    "vit-toy": {"layers": 1, "optimizer": "sgd"},
    "unet-toy": {"multipliers": (1, 1), "attention": (), "base": 8, "optimizer": "sgd"},
    "dit-toy": {"layers": 1, "optimizer": "sgd"},
    "lstm-toy": {"layers": 1, "optimizer": "sgd"},
    "mamba-toy": {"layers": 1, "states": 2, "optimizer": "sgd"},
    "dlrm-toy": {},
    "fnet-toy": {"layers": 1, "optimizer": "sgd"},
    "resnet-toy": {"blocks": (1, 1), "optimizer": "sgd"},
}
TRIED = MODELS if FULL else ("gpt-toy remat",)


@pytest.mark.parametrize("name", TRIED)
def test_models(name: str) -> None:
    """GPT with tied embeddings, dropout, a loop over layers that are recomputed, global-norm clipping; `make test-full`
    takes a model of each kind."""
    made = zoo.model(name.partition(" ")[0], **MODELS[name])
    args = (filled(made.state_shapes()), made.example_batch(jax.random.key(1), 6))
    graph, cut = both(made.step, args, (1,), recompute=name.startswith("resnet"))
    equal(graph, cut, args, rtol=2e-5)
