"""Batches of tokens as shapes and as random arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_shapes(batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`tokens` and `targets`, both int32 [batch, sequence].

    The shift by one is made with the data, so that the sequence keeps a size that can be cut.
    """
    shape = jax.ShapeDtypeStruct((batch, sequence), jnp.int32)
    return {"tokens": shape, "targets": shape}


def random_tokens(vocab: int, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    """Random tokens below `vocab`, and as targets the same text one position on."""
    text = jax.random.randint(key, (batch, sequence + 1), 0, vocab, jnp.int32)
    return {"tokens": text[:, :-1], "targets": text[:, 1:]}
