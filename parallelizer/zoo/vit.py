"""Vision Transformer (arXiv:2010.11929): patches by a convolution, a class token, a pre-norm encoder; a plain pytree.

Parameters, with L layers stacked in front where they are scanned:

    patch_embedding/{kernel,bias}  [patch, patch, 3, embed], [embed]
    class_token                    [1, 1, embed]
    position_embedding/embedding   [1 + patches, embed]
    layers/{attention_norm,mlp_norm}/{scale,bias}, layers/attention/..., layers/mlp/{up,down}/...
    final_norm/{scale,bias}        [embed]
    head/{kernel,bias}             [embed, classes]
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
from parallelizer.zoo.model import ZooModel, check_choice, check_divides, check_positive
from parallelizer.zoo.training import make_model

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class VitConfig:
    """Sizes and options of a Vision Transformer for square images of `image` pixels."""

    layers: int
    embed: int
    heads: int
    mlp: int
    patch: int
    image: int = 224
    classes: int = 1000
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "mlp", "classes")
        check_divides("embed", self.embed, "heads", self.heads)
        check_divides("image", self.image, "patch", self.patch)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def flop_per_token(self) -> int:
        """Per image: 6 per weight used in a product, 12 L s e for attention; pixels need no gradient."""
        tokens, embed = self.patches + 1, self.embed
        block = 4 * embed**2 + 2 * embed * self.mlp + 2 * tokens * embed
        return 6 * (self.layers * tokens * block + embed * self.classes) + 4 * self.patches * 3 * self.patch**2 * embed


def init_params(config: VitConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal with deviation 0.02, the class token and the head zero as in the released code."""
    patches, positions, layers = jax.random.split(key, 3)
    embed = config.embed
    return {
        "patch_embedding": im.init_conv(patches, config.patch, 3, embed, std=(3 * config.patch**2) ** -0.5),
        "class_token": jnp.zeros((1, 1, embed), jnp.float32),
        "position_embedding": {"embedding": nn.normal(positions, (1 + config.patches, embed), 0.02)},
        **nn.init_layers(partial(_init_block, config), layers, config.layers, config.scan),
        "final_norm": nn.init_layer_norm(embed),
        "head": nn.init_dense(layers, (embed, config.classes), (config.classes,), std=0.0),
    }


def _init_block(config: VitConfig, key: jax.Array) -> Params:
    attention, mlp = jax.random.split(key)
    return {
        "attention_norm": nn.init_layer_norm(config.embed),
        "attention": nn.init_attention(attention, config.embed, config.heads),
        "mlp_norm": nn.init_layer_norm(config.embed),
        "mlp": nn.init_mlp(mlp, config.embed, config.mlp),
    }


def _block(params: Params, x: jax.Array, _: jax.Array | None) -> jax.Array:
    x = x + nn.attend(params["attention"], nn.layer_norm(params["attention_norm"], x, eps=1e-6))
    return x + nn.mlp(params["mlp"], nn.layer_norm(params["mlp_norm"], x, eps=1e-6))


def apply(config: VitConfig, params: Params, image: jax.Array) -> jax.Array:
    """Logits [b, classes] for images [b, h, w, 3]."""
    x = im.conv(params["patch_embedding"], image.astype(jnp.dtype(config.dtype)), config.patch, "VALID")
    b, embed = x.shape[0], config.embed
    token = jnp.broadcast_to(params["class_token"].astype(x.dtype), (b, 1, embed))
    x = jnp.concatenate([token, x.reshape(b, config.patches, embed)], axis=1)
    x = x + params["position_embedding"]["embedding"].astype(x.dtype)
    x = nn.apply_layers(_block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)
    x = nn.layer_norm(params["final_norm"], x[:, 0], eps=1e-6)
    return nn.dense(params["head"], x, "be,ec->bc")


def loss(config: VitConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean cross-entropy of `batch["label"]` [b] for `batch["image"]` [b, h, w, 3]."""
    del key
    return nn.cross_entropy(apply(config, params, batch["image"]), batch["label"])


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The transformer with these fields of `VitConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        VitConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(im.image_shapes, config.image, config.classes),
        example_batch=lambda config: partial(im.random_images, config.image, config.classes),
    )
