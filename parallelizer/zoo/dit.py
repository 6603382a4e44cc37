"""The diffusion transformer DiT (arXiv:2212.09748): patches, blocks modulated by time and class, as a plain pytree.

Parameters, with L layers stacked in front where they are scanned:

    patch_embedding/{kernel,bias}           [patch^2 channels, embed], [embed]
    time/{first,second}/{kernel,bias}       [256, embed], [embed, embed]
    label_embedding/embedding               [classes + 1, embed]; the last row stands for no class
    layers/{attention,mlp,modulation}/...   modulation is [embed, 6, embed]: shift, scale and gate of both branches
    final_modulation/{kernel,bias}          [embed, 2, embed]
    out/{kernel,bias}                       [embed, patch^2 2 channels]: noise and variance
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import images as im
from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import ZooModel, check_choice, check_divides, check_positive, check_rate
from parallelizer.zoo.training import make_model

Params = dict[str, Any]
FREQUENCIES = 256
STEPS = 1000


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Sizes and options of a DiT on square latents of `image` positions; `drop` is the share of labels left out."""

    layers: int
    embed: int
    heads: int
    patch: int = 2
    image: int = 32
    channels: int = 4
    classes: int = 1000
    drop: float = 0.1
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "channels", "classes")
        check_rate("drop", self.drop)
        check_divides("embed", self.embed, "4 * heads", 4 * self.heads)
        check_divides("image", self.image, "patch", self.patch)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def patch_size(self) -> int:
        return self.patch**2 * self.channels

    @property
    def flop_per_token(self) -> int:
        """Per image: 6 per weight used in a product, 12 L s e for attention; the image and times need no gradient."""
        tokens, embed = self.patches, self.embed
        block = tokens * (12 * embed**2 + 2 * tokens * embed) + 6 * embed**2
        ends = 4 * tokens * self.patch_size * embed + 6 * tokens * embed * 2 * self.patch_size
        return 6 * self.layers * block + ends + 4 * FREQUENCIES * embed + 6 * 3 * embed**2


def init_params(config: DitConfig, key: jax.Array) -> Params:
    """Fresh parameters: modulations and the last layer zero, so that every block starts as the identity."""
    patches, first, second, labels, layers, rest = jax.random.split(key, 6)
    embed = config.embed
    return {
        "patch_embedding": nn.init_dense(patches, (config.patch_size, embed), (embed,), config.patch_size**-0.5),
        "time": {
            "first": nn.init_dense(first, (FREQUENCIES, embed), (embed,)),
            "second": nn.init_dense(second, (embed, embed), (embed,)),
        },
        "label_embedding": {"embedding": nn.normal(labels, (config.classes + 1, embed), 0.02)},
        **nn.init_layers(partial(_init_block, config), layers, config.layers, config.scan),
        "final_modulation": nn.init_dense(rest, (embed, 2, embed), (2, embed), 0.0),
        "out": nn.init_dense(rest, (embed, 2 * config.patch_size), (2 * config.patch_size,), 0.0),
    }


def _init_block(config: DitConfig, key: jax.Array) -> Params:
    attention, mlp, modulation = jax.random.split(key, 3)
    embed = config.embed
    return {
        "attention": nn.init_attention(attention, embed, config.heads),
        "mlp": nn.init_mlp(mlp, embed, 4 * embed),
        "modulation": nn.init_dense(modulation, (embed, 6, embed), (6, embed), 0.0),
    }


def _norm(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Layer norm of [b, s, e] without parameters of its own, shifted and scaled by [b, e]."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
    return y.astype(x.dtype) * (1 + scale[:, None]) + shift[:, None]


def _block(condition: jax.Array, params: Params, x: jax.Array, _: jax.Array | None) -> jax.Array:
    modulation = nn.dense(params["modulation"], jax.nn.silu(condition), "be,emf->bmf")
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (modulation[:, i] for i in range(6))
    x = x + gate[:, None] * nn.attend(params["attention"], _norm(x, shift, scale))
    return x + mlp_gate[:, None] * nn.mlp(params["mlp"], _norm(x, mlp_shift, mlp_scale))


def positions(config: DitConfig) -> jax.Array:
    """[patches, embed] cosines and sines of a patch's row and column, half of the features each."""
    side = config.image // config.patch
    encoded = im.time_embedding(jnp.arange(side), config.embed // 2)
    rows = jnp.broadcast_to(encoded[:, None], (side, side, config.embed // 2))
    columns = jnp.broadcast_to(encoded[None], rows.shape)
    return jnp.concatenate([rows, columns], axis=-1).reshape(config.patches, config.embed)


def apply(config: DitConfig, params: Params, image: jax.Array, time: jax.Array, label: jax.Array) -> jax.Array:
    """Noise and variance, [b, h, w, 2 channels], for noised images, their times [b] and labels [b]."""
    dtype = jnp.dtype(config.dtype)
    x = nn.dense(params["patch_embedding"], im.to_patches(image.astype(dtype), config.patch), "bsp,pe->bse")
    x = x + positions(config).astype(dtype)
    t = nn.dense(params["time"]["first"], im.time_embedding(time, FREQUENCIES).astype(dtype), "bi,io->bo")
    condition = nn.dense(params["time"]["second"], jax.nn.silu(t), "bi,io->bo")
    condition = condition + params["label_embedding"]["embedding"][label].astype(dtype)
    block = partial(_block, condition)
    x = nn.apply_layers(block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)
    modulation = nn.dense(params["final_modulation"], jax.nn.silu(condition), "be,emf->bmf")
    x = nn.dense(params["out"], _norm(x, modulation[:, 0], modulation[:, 1]), "bse,ep->bsp")
    return im.from_patches(x, config.patch, config.image)


def variance_loss(error: jax.Array, variance: jax.Array, time: jax.Array) -> jax.Array:
    """Mean divergence of a denoising step from the true one (arXiv:2102.09672, section 3.1), [b, h, w, c] each.

    `error` of the predicted noise is taken as given; `variance` in [-1, 1] lies between the logarithms of the smallest
    and the largest that are possible. At the first step, where the smallest is zero, that of the second is taken.
    """
    beta = jnp.linspace(1e-4, 0.02, STEPS, dtype=jnp.float32)
    kept = jnp.cumprod(1 - beta)
    before = jnp.concatenate([jnp.ones(1, jnp.float32), kept[:-1]])
    least = beta * (1 - before) / (1 - kept)
    least = jnp.concatenate([least[1:2], least[1:]])

    def at(values: jax.Array) -> jax.Array:
        return values[time].reshape(-1, 1, 1, 1)

    low, high = at(jnp.log(least)), at(jnp.log(beta))
    log_variance = low + (variance + 1) / 2 * (high - low)
    distance = at(beta / jnp.sqrt((1 - beta) * (1 - kept))) * jax.lax.stop_gradient(error)
    divergence = log_variance - low - 1 + jnp.exp(low - log_variance) + jnp.square(distance) * jnp.exp(-log_variance)
    return jnp.mean(divergence) / 2


def loss(config: DitConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
    """Squared error of the noise found in `batch["image"]` given `batch["label"]`, and the divergence by variance."""
    noise_key, drop_key = jax.random.split(key)
    x, noise, time = im.noised(batch["image"], noise_key, STEPS)
    dropped = jax.random.bernoulli(drop_key, config.drop, batch["label"].shape)
    label = jnp.where(dropped, config.classes, batch["label"])
    found, variance = jnp.split(apply(config, params, x, time, label).astype(jnp.float32), 2, axis=-1)
    error = found - noise
    return jnp.mean(jnp.square(error)) + variance_loss(error, variance, time)


def _batch_shapes(config: DitConfig, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    del sequence
    return {
        "image": jax.ShapeDtypeStruct((batch, config.image, config.image, config.channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def _example_batch(config: DitConfig, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    image_key, label_key = jax.random.split(key)
    return {
        "image": jax.random.normal(image_key, _batch_shapes(config, batch, sequence)["image"].shape),
        "label": jax.random.randint(label_key, (batch,), 0, config.classes, jnp.int32),
    }


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The DiT with these fields of `DitConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        DitConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
        random=lambda config: True,
    )
