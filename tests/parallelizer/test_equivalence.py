"""Training under a plan gives what training on one device gives, in 20 steps of every model form on every mesh.

How close is close? A planned step adds the same numbers in another order, so a gradient differs by a few units in its
last place, about 1e-6 of its size in float32. Losses are smooth in the parameters and stay that close. Adam divides a
gradient by its own size plus `eps`: with eps = 1e-8, a gradient that is rounding error alone still moves its parameter
by the whole learning rate, either way. The tests therefore train with eps = 1e-3: a gradient of 1e-9 then moves its
parameter by a millionth of the learning rate. What is left is compared with the distance that a parameter may have
moved, learning rate times steps.
"""

from __future__ import annotations

import fnmatch
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import zoo
from parallelizer.zoo import flax_nnx
from parallelizer.zoo.training import TrainingConfig

STEPS = 20
RATE = 1e-2
# Found: losses differ by 8e-7 at the most, norms by 3e-7, parameters by 4e-7, 2e-6 of the distance that they may have
# moved. Allowed is about ten times that.
LOSS_RTOL = 1e-5
NORM_RTOL = 1e-5
PARAMETER_SHARE = 2e-5

MESHES = [{"x": 8}, {"x": 2, "y": 4}, {"x": 2, "y": 2, "z": 2}]
GPT = {"layers": 2, "embed": 32, "heads": 4, "sequence": 16, "batch": 16, "vocab": 64, "vocab_multiple": 64}
TRAINING = {"learning_rate": RATE, "eps": 1e-3}
MODELS = {
    "gpt-scanned": ("gpt-toy", {**GPT, **TRAINING}),
    "gpt-unrolled": ("gpt-toy", {**GPT, **TRAINING, "scan": False}),
    "gpt-dropout-remat": ("gpt-toy", {**GPT, **TRAINING, "dropout": 0.2, "remat": "full", "layers": 3}),
    "gpt-untied-dots": ("gpt-toy", {**GPT, **TRAINING, "tied": False, "remat": "dots", "clip_norm": 0.1}),
    "linen": ("gpt-toy-linen", {**GPT, **TRAINING}),
    "linen-unrolled-dropout": ("gpt-toy-linen", {**GPT, **TRAINING, "scan": False, "dropout": 0.1}),
    "nnx": ("gpt-toy-nnx", {**GPT, **TRAINING}),
    "mlp": ("mlp", {"layers": 3, "hidden": 64, "batch": 32, **TRAINING}),
}


def plain(x: Any) -> np.ndarray:
    """An array's numbers; those of a key are its bits."""
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def compare(state: Any, wanted: Any) -> None:
    """Floats within the tolerance, everything else (keys, counters) equal."""
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(wanted), strict=True):
        a, b = plain(a), plain(b)
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, atol=PARAMETER_SHARE * RATE * STEPS, err_msg=str(path))
        else:
            np.testing.assert_array_equal(a, b, err_msg=str(path))


def train(step: Any, state: Any, batches: list[Any]) -> tuple[Any, list[float], list[float]]:
    losses, norms = [], []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return state, losses, norms


@functools.cache
def reference(name: str) -> tuple[Any, Any, list[Any], Any]:
    """The model, its initial state, its batches, and what one device makes of them; the same for every mesh."""
    zoo_name, options = MODELS[name]
    model = zoo.model(zoo_name, **options)
    batches = [model.example_batch(jax.random.key(100 + i)) for i in range(STEPS)]
    state = jax.jit(model.init)(jax.random.key(0))
    return model, state, batches, train(jax.jit(model.step), state, batches)


UP = "*/mlp/up/kernel*"
ATTENTION = "*/attention/*/kernel"
# (model, mesh, pins): left alone these sizes are cut by batch, so pins bring in tensor parallelism and cut parameters.
CASES: list[tuple[str, dict[str, int], dict[str, P]]] = [
    ("gpt-scanned", MESHES[0], {}),
    ("gpt-scanned", MESHES[1], {UP: P(None, None, "y")}),
    ("gpt-scanned", MESHES[2], {UP: P(None, None, "y"), ATTENTION: P(None, "z")}),
    ("gpt-unrolled", MESHES[0], {"*/mlp/*/kernel": P("x")}),
    ("gpt-unrolled", MESHES[1], {UP: P(None, "y"), ATTENTION: P("x")}),
    ("gpt-unrolled", MESHES[2], {UP: P(None, ("y", "z"))}),
    ("gpt-dropout-remat", MESHES[1], {UP: P(None, None, "y")}),
    ("gpt-untied-dots", MESHES[1], {"*/head/kernel": P(None, "y")}),
    ("linen", MESHES[0], {}),
    ("linen-unrolled-dropout", MESHES[1], {UP: P(None, "y")}),
    ("nnx", MESHES[1], {UP: P(None, "y")}),
    ("mlp", MESHES[0], {"*/layers_1/kernel": P("x")}),
    ("mlp", MESHES[1], {"*/layers_0/kernel": P("x", "y"), "*/layers_1/kernel": P("y", "x")}),
    ("mlp", MESHES[2], {"*/layers_1/kernel": P("x", ("z", "y"))}),
]


def name_of(case: Any) -> str:
    """The identity of a parameter in test names; pins follow from the rest."""
    return case if isinstance(case, str) else "x".join(map(str, case.values())) if set(case) & set("xyz") else "pinned"


@pytest.mark.parametrize("name, mesh, pins", CASES, ids=name_of)
def test_twenty_steps_equal_one_device(name, mesh, pins):
    model, state, batches, (wanted, losses, norms) = reference(name)
    step = pz.parallelize(model.step, mesh=mesh, pins=pins)
    got, got_losses, got_norms = train(step, state, batches)
    assert step.plan.mesh.sizes == mesh
    np.testing.assert_allclose(got_losses, losses, rtol=LOSS_RTOL)
    np.testing.assert_allclose(got_norms, norms, rtol=NORM_RTOL)
    compare(got, wanted)
    # It was really cut, and as pinned.
    for pattern, spec in pins.items():
        pinned = [s for path, s in step.plan.shardings.items() if fnmatch.fnmatch(path, pattern)]
        assert len(pinned) >= 3 and set(pinned) == {spec}  # parameters and both moments
    used = {axis for leaf in jax.tree.leaves(got) for axis in jax.tree.leaves(tuple(leaf.sharding.spec))}
    assert used or step.plan.in_shardings[1]["tokens"] != P()


def test_donated_state_is_gone_and_its_memory_is_reused():
    zoo_name, options = MODELS["gpt-scanned"]
    model = zoo.model(zoo_name, **options)
    step = pz.parallelize(model.step, mesh={"x": 2, "y": 4}, pins={UP: P(None, None, "y")}, donate_argnums=(0,))
    batch = model.example_batch(jax.random.key(1))
    state, _ = step(model.init(jax.random.key(0)), batch)
    before = jax.tree.leaves(state)
    state, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in before)
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert step.plan.compile().memory_analysis().alias_size_in_bytes == local


def test_nnx_objects_in_place_equal_nnx_jit():
    config = zoo.model("gpt-toy-nnx", **GPT).config
    training = TrainingConfig(learning_rate=RATE, eps=1e-3)
    model, optimizer = flax_nnx.create(config, training, jax.random.key(0))
    other, other_optimizer = flax_nnx.create(config, training, jax.random.key(0))
    step = pz.parallelize(flax_nnx.train_step, donate_argnums=(0, 1))
    reference_step = nnx.jit(flax_nnx.train_step)
    for i in range(STEPS):
        batch = zoo.model("gpt-toy-nnx", **GPT).example_batch(jax.random.key(i))
        metrics, wanted = step(model, optimizer, batch), reference_step(other, other_optimizer, batch)
        np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=LOSS_RTOL)
    compare(nnx.state((model, optimizer)), nnx.state((other, other_optimizer)))
    assert len(model.layers[0].mlp.up.kernel[...].sharding.device_set) == 8
