"""A multilayer perceptron: dense layers with bias, ReLU between them, mean squared error, Adam.

Parameters: layers_0/{kernel,bias} [inputs, hidden], ..., the last one [hidden, outputs].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel, check_choice, check_positive
from parallelizer.zoo.training import make_model

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MlpConfig:
    """`layers` dense layers; `inputs` and `outputs` are `hidden` wide where they are not given."""

    layers: int = 6
    hidden: int = 32
    inputs: int | None = None
    outputs: int | None = None
    bias: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "hidden")
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def widths(self) -> tuple[int, ...]:
        """The sizes between layers, inputs first: layers + 1 of them."""
        first = self.hidden if self.inputs is None else self.inputs
        last = self.hidden if self.outputs is None else self.outputs
        return (first, *(self.hidden,) * (self.layers - 1), last)

    @property
    def flop_per_token(self) -> int:
        """Per example: 6 per weight, less 2 for the first layer, whose input needs no gradient."""
        sizes = [a * b for a, b in zip(self.widths, self.widths[1:], strict=False)]
        return 6 * sum(sizes) - 2 * sizes[0]


def init_params(config: MlpConfig, key: jax.Array) -> Params:
    """Kernels normal with variance 2 / inputs (He et al., arXiv:1502.01852), biases zero."""
    keys = jax.random.split(key, config.layers)
    widths = config.widths
    return {
        f"layers_{i}": nn.init_dense(
            keys[i], (widths[i], widths[i + 1]), (widths[i + 1],) if config.bias else None, (2 / widths[i]) ** 0.5
        )
        for i in range(config.layers)
    }


def loss(config: MlpConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean squared error against `batch["y"]`, [b, outputs]."""
    del key
    x = batch["x"].astype(jnp.dtype(config.dtype))
    for i in range(config.layers):
        x = nn.dense(params[f"layers_{i}"], x, "bi,io->bo")
        if i < config.layers - 1:
            x = jax.nn.relu(x)
    return jnp.mean(jnp.square(x.astype(jnp.float32) - batch["y"]))


def _batch_shapes(config: MlpConfig, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    del sequence
    return {
        "x": jax.ShapeDtypeStruct((batch, config.widths[0]), jnp.float32),
        "y": jax.ShapeDtypeStruct((batch, config.widths[-1]), jnp.float32),
    }


def _example_batch(config: MlpConfig, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    del sequence
    x_key, y_key = jax.random.split(key)
    return {
        "x": jax.random.normal(x_key, (batch, config.widths[0])),
        "y": jax.random.normal(y_key, (batch, config.widths[-1])),
    }


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The perceptron with these fields of `MlpConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        MlpConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
    )
