"""S5: complex diagonal state spaces by an associative scan, classifying long signals (arXiv:2208.04933).

Parameters, with L layers stacked in front where they are scanned; P complex states, stored as real and imaginary parts:

    encoder/{kernel,bias}          [inputs, embed]
    layers/norm/{scale,bias}       [embed]
    layers/eigenvalues             [P, 2]
    layers/write                   [P, embed, 2]
    layers/read                    [embed, P, 2]
    layers/skip                    [embed]
    layers/step                    [P], logarithms of the time steps
    layers/gate/{kernel,bias}      [embed, embed]
    head/{kernel,bias}             [embed, classes]
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
from parallelizer.zoo.ssm import STEP_RANGE, linear_recurrence
from parallelizer.zoo.training import make_model

Params = dict[str, Any]
# Keeping products alone ("dots") is not for complex numbers: JAX rounds what it keeps, and cannot round them.
REMAT = ("none", "full")


@dataclass(frozen=True, slots=True)
class S5Config:
    """Sizes and options of an S5; `states` counts one of each conjugate pair. Everything is computed in float32."""

    layers: int
    embed: int
    states: int
    sequence: int
    inputs: int = 1
    classes: int = 2
    scan: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "embed", "states", "sequence", "inputs", "classes")
        check_choice("remat", self.remat, REMAT)

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product, 8 in place of 2 per complex multiply-add; less the encoder's input gradient.

        The head runs once per signal and is left out.
        """
        return self.layers * (6 * self.embed**2 + 2 * 24 * self.states * self.embed) + 4 * self.inputs * self.embed


def init_params(config: S5Config, key: jax.Array) -> Params:
    """Fresh parameters; eigenvalues -1/2 + pi i n, the diagonal called S4D-Lin in arXiv:2206.11893."""
    encoder, layers, head = jax.random.split(key, 3)
    return {
        "encoder": nn.init_dense(encoder, (config.inputs, config.embed), (config.embed,), config.inputs**-0.5),
        **nn.init_layers(partial(_init_layer, config), layers, config.layers, config.scan),
        "head": nn.init_dense(head, (config.embed, config.classes), (config.classes,), config.embed**-0.5),
    }


def _init_layer(config: S5Config, key: jax.Array) -> Params:
    write, read, step, gate = jax.random.split(key, 4)
    embed, states = config.embed, config.states
    low, high = (jnp.log(limit) for limit in STEP_RANGE)
    index = jnp.arange(states, dtype=jnp.float32)
    return {
        "norm": nn.init_layer_norm(embed),
        "eigenvalues": jnp.stack([jnp.full(states, -0.5), jnp.pi * index], axis=-1),
        "write": nn.normal(write, (states, embed, 2), (2 * embed) ** -0.5),
        "read": nn.normal(read, (embed, states, 2), (2 * states) ** -0.5),
        "skip": jnp.ones(embed, jnp.float32),
        "step": low + (high - low) * jax.random.uniform(step, (states,), jnp.float32),
        "gate": nn.init_dense(gate, (embed, embed), (embed,), embed**-0.5),
    }


def _complex(pair: jax.Array) -> jax.Array:
    """[..., 2] real and imaginary parts as complex numbers [...]."""
    return jax.lax.complex(pair[..., 0], pair[..., 1])


def state_space(params: Params, x: jax.Array) -> jax.Array:
    """x' = A x + B u, y = 2 Re(C x) + D u on u = [b, s, e], discretised by zero-order hold (section 2.1)."""
    eigenvalues = _complex(params["eigenvalues"])
    decay = jnp.exp(eigenvalues * jnp.exp(params["step"]))
    write = ((decay - 1) / eigenvalues)[:, None] * _complex(params["write"])
    given = jnp.einsum("bse,pe->bsp", x.astype(jnp.complex64), write)
    states = linear_recurrence(jnp.broadcast_to(decay, given.shape), given)
    return 2 * jnp.einsum("bsp,ep->bse", states, _complex(params["read"])).real + params["skip"] * x


def _block(params: Params, x: jax.Array, _: jax.Array | None) -> jax.Array:
    y = jax.nn.gelu(state_space(params, nn.layer_norm(params["norm"], x)))
    return x + y * jax.nn.sigmoid(nn.dense(params["gate"], y, "bse,ef->bsf"))


def apply(config: S5Config, params: Params, signal: jax.Array) -> jax.Array:
    """Logits [b, classes] for signals [b, s, inputs]."""
    x = nn.dense(params["encoder"], signal, "bsi,ie->bse")
    x = nn.apply_layers(_block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)
    return nn.dense(params["head"], jnp.mean(x, axis=1), "be,ec->bc")


def loss(config: S5Config, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean cross-entropy of `batch["label"]` [b] for `batch["signal"]` [b, s, inputs]."""
    del key
    return nn.cross_entropy(apply(config, params, batch["signal"]), batch["label"])


def _batch_shapes(config: S5Config, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "signal": jax.ShapeDtypeStruct((batch, sequence, config.inputs), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def _example_batch(config: S5Config, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    signal_key, label_key = jax.random.split(key)
    return {
        "signal": jax.random.normal(signal_key, (batch, sequence, config.inputs)),
        "label": jax.random.randint(label_key, (batch,), 0, config.classes, jnp.int32),
    }


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The S5 with these fields of `S5Config` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        S5Config,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
    )
