"""Decoding with a cache gives what the whole sequence gives at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import decode, gpt, llama


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_tokens_one_by_one_give_the_logits_of_the_whole_sequence(family: str, scan: bool) -> None:
    model = zoo.model(f"{family}-toy-decode", batch=2, sequence=8, embed=32, heads=4, scan=scan)
    state = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 256, jnp.int32)
    whole = {"gpt": gpt, "llama": llama}[family].apply(model.config, state["params"], tokens)
    one = jax.jit(decode.decode, static_argnums=0)
    cache = state["cache"]
    for i in range(8):
        logits, cache = one(model.config, state["params"], cache, tokens[:, i], jnp.int32(i))
        np.testing.assert_allclose(logits, whole[:, i], atol=2e-5)


def test_a_step_feeds_on_its_own_tokens() -> None:
    model = zoo.model("llama-toy-decode", batch=2)
    state = model.init(jax.random.key(0))
    batch = model.example_batch(jax.random.key(1))
    grown, found = jax.jit(model.step)(state, batch)
    assert int(grown["position"]) == 1
    assert found["tokens"].shape == (2,) and found["tokens"].dtype == jnp.int32
    written = np.asarray(grown["cache"]["key"])
    assert np.any(written[:, :, 0]) and not np.any(written[:, :, 1:])
    assert jax.tree.structure(grown) == jax.tree.structure(state)


def test_the_cache_fixes_the_batch() -> None:
    with pytest.raises(zoo.ZooOptionError, match="holds 16 sequences, a batch of 3 was asked"):
        zoo.model("gpt-toy-decode").batch_shapes(batch=3)
    with pytest.raises(zoo.ZooOptionError, match="family"):
        zoo.model("gpt-toy-decode", family="bert")
