"""Every family's step under a plan: three steps equal those of one device, and the compiled program is as planned.

The tolerances are those of `test_equivalence`, which says why; training runs with eps = 1e-3 for the same reason.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import numpy as np
import pytest

import parallelizer as pz
from parallelizer import zoo
from parallelizer.audit import compare
from parallelizer.compiled.collectives import read_collectives
from parallelizer.compiled.memory import read_memory

STEPS = 3
RATE = 1e-2
RTOL = 1e-5
# Of the distance that a parameter may have moved, and of an array's largest number.
SHARE = 2e-5
ADAM = {"learning_rate": RATE, "eps": 1e-3}
SMALL = {**ADAM, "layers": 1}
SMALL_UNET = {**ADAM, "multipliers": (1, 1), "attention": (), "base": 8}
MODELS: dict[str, dict[str, Any]] = {
    "t5-toy": SMALL,
    "vit-toy": SMALL,
    "resnet-toy": {"learning_rate": RATE, "blocks": (1, 1)},
    "unet-toy": SMALL_UNET,
    "unet-toy-transposed": SMALL_UNET,
    "dit-toy": SMALL,
    "lstm-toy": SMALL,
    "mamba-toy": {**SMALL, "states": 2},
    "s5-toy": SMALL,
    "gpt-toy-decode": {},
    "llama-toy-decode": {},
    "mixtral-toy": SMALL,
    "moe-toy": {**ADAM, "layers": 2},
    "dlrm-toy": {},
    "gnn-toy": {**ADAM, "activation": "silu", "steps": 1},  # ReLU jumps where rounding changes a sign
    "graphcast-toy": {**ADAM, "activation": "silu", "steps": 1},
    "fnet-toy": SMALL,
    "fnet-filter-toy": SMALL,
    "llama-toy-int8": SMALL,
    "gpt-toy muon": {**SMALL, "optimizer": "muon"},
    "gpt-toy shampoo": {**SMALL, "optimizer": "shampoo"},
    "gpt-toy soap": {**SMALL, "optimizer": "soap"},
    "gpt-toy tnt": {**SMALL, "optimizer": "tnt"},
}


def plain(x: Any) -> np.ndarray:
    """An array's numbers; those of a key are its bits."""
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


@functools.cache
def reference(name: str) -> tuple[Any, Any, list[Any], list[Any]]:
    """The model, its initial state, its batches, and [state, metrics] after every step on one device."""
    model = zoo.model(name.partition(" ")[0], **MODELS[name])
    state = jax.jit(model.init)(jax.random.key(0))
    batches = [model.example_batch(jax.random.key(100 + i)) for i in range(STEPS)]
    step, results, now = jax.jit(model.step), [], state
    for batch in batches:
        now, metrics = step(now, batch)
        results.append((now, metrics))
    return model, state, batches, results


# One model of each kind on one of the two by turns: compiling takes its time. `make test-full` takes all on both.
KINDS = ("t5-toy", "resnet-toy", "unet-toy", "lstm-toy", "mamba-toy", "mixtral-toy", "dlrm-toy", "gnn-toy", "fnet-toy")
BOTH: tuple[dict[str, int] | None, ...] = (None, {"x": 2, "y": 4})
FULL = os.environ.get("TESTS") == "full"
CASES = [(name, mesh) for name in MODELS for mesh in BOTH] if FULL else [
    (name, BOTH[i % 2]) for i, name in enumerate(KINDS)
]  # fmt: skip


@pytest.mark.parametrize(("name", "mesh"), CASES, ids=[f"{name} {'2x4' if mesh else 'free'}" for name, mesh in CASES])
def test_three_steps_equal_one_device_and_the_program_is_as_planned(name: str, mesh: dict[str, int] | None) -> None:
    model, state, batches, wanted = reference(name)
    plan = pz.plan(model.step, model.state_shapes(), model.batch_shapes(), topology="cpu:8", mesh=mesh, strict=True)
    assert plan.unknown == ()
    program = plan.compile()
    found = compare(plan, read_collectives(program.as_text()), read_memory(program), plan.mesh.topology)
    assert found.ok, str(found)
    (state_at, batch_at), _ = program.input_shardings
    now = jax.device_put(state, state_at)
    for batch, (_, metrics) in zip(batches, wanted, strict=True):
        now, got = program(now, jax.device_put(batch, batch_at))
        for key, value in metrics.items():
            np.testing.assert_allclose(got[key], value, rtol=RTOL, err_msg=key)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(now), jax.tree.leaves(wanted[-1][0]), strict=True):
        assert len(a.sharding.device_set) == 8
        a, b = plain(a), plain(b)
        atol = SHARE * RATE * STEPS + RTOL * np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))
