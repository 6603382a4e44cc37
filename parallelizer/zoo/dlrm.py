"""DLRM: embedding tables for categories, perceptrons for numbers, and products of each with each (arXiv:1906.00091).

Parameters, numbered from 0:

    tables/table_0/embedding  [rows, dim], one table per category
    bottom_0/{kernel,bias}    the perceptron of the dense features; its last layer is `dim` wide
    top_0/{kernel,bias}       the perceptron on the products and the bottom's result, down to one logit
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel, ZooOptionError, check_choice, check_positive
from parallelizer.zoo.training import make_model

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DlrmConfig:
    """`rows` of each table, `dim` of all, and the widths of both perceptrons.

    Tables of at least `rows_multiple` rows are padded to a multiple of it: odd sizes cannot be cut. A batch holds
    `dense` numbers and, for every table, `lookups` indices whose rows are added.
    """

    rows: tuple[int, ...]
    dim: int = 128
    dense: int = 13
    bottom: tuple[int, ...] = (512, 256, 128)
    top: tuple[int, ...] = (1024, 1024, 512, 256, 1)
    lookups: int = 1
    rows_multiple: int = 512
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "dim", "dense", "lookups", "rows_multiple")
        check_choice("dtype", self.dtype, nn.DTYPES)
        if not self.rows or min(self.rows) < 1:
            raise ZooOptionError(f"rows={self.rows}: at least one table, each with at least one row", "rows")
        if not self.bottom or self.bottom[-1] != self.dim:
            raise ZooOptionError(f"bottom={self.bottom} must end in dim={self.dim}", "bottom", (self.dim,))
        if not self.top or self.top[-1] != 1:
            raise ZooOptionError(f"top={self.top} must end in 1, the logit", "top", (1,))

    @property
    def padded_rows(self) -> tuple[int, ...]:
        m = self.rows_multiple
        return tuple(n if n < m else -(-n // m) * m for n in self.rows)

    @property
    def pairs(self) -> int:
        """Products of two different vectors: one vector per table and the bottom's result."""
        return math.comb(len(self.rows) + 1, 2)

    @property
    def bottom_widths(self) -> tuple[int, ...]:
        return (self.dense, *self.bottom)

    @property
    def top_widths(self) -> tuple[int, ...]:
        return (self.pairs + self.dim, *self.top)

    @property
    def flop_per_token(self) -> int:
        """Per example: 6 per weight of the perceptrons, less 2 for the first, whose input needs no gradient, and 6 per
        product of two vectors; all (tables + 1)^2 of them are computed."""
        bottom, top = (_products(w) for w in (self.bottom_widths, self.top_widths))
        vectors = len(self.rows) + 1
        return 6 * (bottom + top + vectors**2 * self.dim) - 2 * self.dense * self.bottom[0]


def _products(widths: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def init_params(config: DlrmConfig, key: jax.Array) -> Params:
    """Tables uniform in +-1 / sqrt(rows), perceptrons with variance 2 / (inputs + outputs), as the paper's code."""
    tables, bottom, top = jax.random.split(key, 3)
    keys = jax.random.split(tables, len(config.rows))
    bounds = [n**-0.5 for n in config.rows]
    padded = config.padded_rows
    return {
        "tables": {
            f"table_{i}": {"embedding": jax.random.uniform(keys[i], (n, config.dim), jnp.float32, -bound, bound)}
            for i, (n, bound) in enumerate(zip(padded, bounds, strict=True))
        },
        **_init_perceptron(bottom, "bottom", config.bottom_widths),
        **_init_perceptron(top, "top", config.top_widths),
    }


def _init_perceptron(key: jax.Array, name: str, widths: tuple[int, ...]) -> Params:
    keys = jax.random.split(key, len(widths) - 1)
    sizes = enumerate(zip(widths, widths[1:], strict=False))
    return {f"{name}_{i}": nn.init_dense(keys[i], (a, b), (b,), (2 / (a + b)) ** 0.5) for i, (a, b) in sizes}


def _perceptron(params: Params, name: str, layers: int, x: jax.Array) -> jax.Array:
    """ReLU between layers, none after the last."""
    for i in range(layers):
        x = nn.dense(params[f"{name}_{i}"], x if i == 0 else jax.nn.relu(x), "bi,io->bo")
    return x


def apply(config: DlrmConfig, params: Params, dense: jax.Array, sparse: jax.Array) -> jax.Array:
    """Logits [b], float32, for numbers [b, dense] and indices [b, tables, lookups]."""
    dtype = jnp.dtype(config.dtype)
    x = jax.nn.relu(_perceptron(params, "bottom", len(config.bottom), dense.astype(dtype)))
    vectors = [x]
    for i in range(len(config.rows)):
        found = params["tables"][f"table_{i}"]["embedding"][sparse[:, i]]
        vectors.append(jnp.sum(found, axis=1).astype(dtype))
    stacked = jnp.stack(vectors, axis=1)
    products = jnp.einsum("bid,bjd->bij", stacked, stacked)
    left, right = jnp.tril_indices(len(vectors), -1)
    joined = jnp.concatenate([x, products[:, left, right]], axis=-1)
    return _perceptron(params, "top", len(config.top), joined)[:, 0].astype(jnp.float32)


def loss(config: DlrmConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean binary cross-entropy of the clicks `batch["click"]` [b], 0 or 1."""
    del key
    logits = apply(config, params, batch["dense"], batch["sparse"])
    return jnp.mean(jnp.logaddexp(0.0, logits) - batch["click"] * logits)


def _batch_shapes(config: DlrmConfig, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    del sequence
    return {
        "dense": jax.ShapeDtypeStruct((batch, config.dense), jnp.float32),
        "sparse": jax.ShapeDtypeStruct((batch, len(config.rows), config.lookups), jnp.int32),
        "click": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }


def _example_batch(config: DlrmConfig, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    """Indices spread evenly over each table's own rows (real ones are far from even; the program is the same)."""
    del sequence
    dense, sparse, click = jax.random.split(key, 3)
    rows = jnp.array(config.rows, jnp.int32)[None, :, None]
    return {
        "dense": jax.random.normal(dense, (batch, config.dense)),
        "sparse": jax.random.randint(sparse, (batch, len(config.rows), config.lookups), 0, rows, jnp.int32),
        "click": jax.random.bernoulli(click, 0.3, (batch,)).astype(jnp.float32),
    }


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The recommender with these fields of `DlrmConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        DlrmConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
    )
