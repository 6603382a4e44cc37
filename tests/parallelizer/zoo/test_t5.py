"""T5's own pieces: relative positions, and what the decoder sees."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import t5


def bucket(ahead: int, both_ways: bool, buckets: int = 32, distance: int = 128) -> int:
    """The published rule for one distance: exact up to half, then logarithmic."""
    offset = 0
    if both_ways:
        buckets //= 2
        offset, away = (buckets if ahead > 0 else 0), abs(ahead)
    else:
        away = max(-ahead, 0)
    exact = buckets // 2
    if away < exact:
        return offset + away
    far = exact + int(math.log(away / exact) / math.log(distance / exact) * (buckets - exact))
    return offset + min(far, buckets - 1)


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_exact_near_by_and_widen_to_the_largest_distance(both_ways: bool) -> None:
    config = zoo.model("t5-toy", sequence=200).config
    found = np.asarray(t5.buckets_of(config, 200, both_ways))
    # At powers of two the logarithm's rounding decides; the released code has the same freedom.
    for query, key in [(0, 0), (0, 5), (5, 0), (100, 91), (91, 100), (150, 130), (199, 0), (0, 199), (180, 80)]:
        assert found[query, key] == bucket(key - query, both_ways)
    assert found.max() == 31


def test_the_decoder_sees_the_past_and_all_of_the_source() -> None:
    model = zoo.model("t5-toy", layers=1, sequence=8)
    params = model.init(jax.random.key(0))["params"]
    batch = model.example_batch(jax.random.key(1), batch=2)
    logits = jax.jit(t5.apply, static_argnums=0)
    before = logits(model.config, params, batch["source"], batch["tokens"])
    later = logits(model.config, params, batch["source"], batch["tokens"].at[:, 5].add(1))
    np.testing.assert_allclose(later[:, :5], before[:, :5], atol=1e-5)
    assert jnp.max(jnp.abs(later[:, 5:] - before[:, 5:])) > 1e-3
    other = logits(model.config, params, batch["source"].at[:, 7].add(1), batch["tokens"])
    assert jnp.min(jnp.max(jnp.abs(other - before), axis=-1)) > 1e-5
