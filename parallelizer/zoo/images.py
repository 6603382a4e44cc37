"""The pieces that image models share: convolutions, pooling, batch and group norm, resizing, patches, time embeddings.

Arrays are [b, height, width, channels], kernels [height, width, inputs, outputs]. As in `layers`, parameters are
float32 and are cast where they are used; norms are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parallelizer.zoo import layers as nn

Params = dict[str, Any]
NHWC = ("NHWC", "HWIO", "NHWC")
# The share of the old running statistics that a step keeps; what Keras and Flax examples use for ImageNet.
STATISTICS_DECAY = 0.9


def init_conv(
    key: jax.Array, size: int, inputs: int, outputs: int, bias: bool = True, std: float | None = None
) -> Params:
    """A kernel of `size` x `size`, normal with variance 2 / fan-in (arXiv:1502.01852) unless `std` is given."""
    std = (2 / (size * size * inputs)) ** 0.5 if std is None else std
    return nn.init_dense(key, (size, size, inputs, outputs), (outputs,) if bias else None, std)


def conv(params: Params, x: jax.Array, stride: int = 1, padding: str | Sequence[tuple[int, int]] = "SAME") -> jax.Array:
    """A convolution of [b, h, w, i] to [b, h / stride, w / stride, o], in the type of `x`."""
    y = lax.conv_general_dilated(x, params["kernel"].astype(x.dtype), (stride, stride), padding, dimension_numbers=NHWC)
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def conv_transpose(params: Params, x: jax.Array, stride: int = 2) -> jax.Array:
    """A transposed convolution of [b, h, w, i] to [b, h * stride, w * stride, o]."""
    y = lax.conv_transpose(x, params["kernel"].astype(x.dtype), (stride, stride), "SAME", dimension_numbers=NHWC)
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
    """[b, h, w, c] to [b, factor h, factor w, c] by repeating the nearest element."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, factor * h, factor * w, c), "nearest")


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The largest element of every `size` x `size` window, [b, h / stride, w / stride, c]."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), "SAME")


def init_norm(channels: int, scale: float = 1.0) -> Params:
    """Scale and bias of a norm over channels, both [c]."""
    return {"scale": jnp.full(channels, scale, jnp.float32), "bias": jnp.zeros(channels, jnp.float32)}


def init_statistics(channels: int) -> Params:
    """Running statistics of a batch norm, both [c]."""
    return {"mean": jnp.zeros(channels, jnp.float32), "variance": jnp.ones(channels, jnp.float32)}


def batch_norm(params: Params, statistics: Params, x: jax.Array, eps: float = 1e-5) -> tuple[jax.Array, Params]:
    """Normalisation by the statistics of the whole batch (arXiv:1502.03167), and the running statistics after it.

    The variance is E[x^2] - E[x]^2, so that both sums are taken in one pass over the batch.
    """
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=(0, 1, 2))
    variance = jnp.maximum(jnp.mean(jnp.square(x32), axis=(0, 1, 2)) - jnp.square(mean), 0.0)
    y = (x32 - mean) * (lax.rsqrt(variance + eps) * params["scale"]) + params["bias"]
    keep = STATISTICS_DECAY
    new = {
        "mean": keep * statistics["mean"] + (1 - keep) * lax.stop_gradient(mean),
        "variance": keep * statistics["variance"] + (1 - keep) * lax.stop_gradient(variance),
    }
    return y.astype(x.dtype), new


def group_norm(params: Params, x: jax.Array, groups: int, eps: float = 1e-5) -> jax.Array:
    """Normalisation of [b, ..., c] over positions and the channels of a group (arXiv:1803.08494), in float32."""
    x32 = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    centred = x32 - jnp.mean(x32, axis=(1, 3), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True)
    y = (centred * lax.rsqrt(variance + eps)).reshape(x.shape)
    return (y * params["scale"] + params["bias"]).astype(x.dtype)


def time_embedding(time: jax.Array, size: int, longest: float = 10_000.0) -> jax.Array:
    """[b] times to [b, size] cosines and sines of geometrically spaced frequencies (arXiv:2006.11239)."""
    half = size // 2
    frequencies = jnp.exp(-jnp.log(longest) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """[b, h, w, c] to [b, (h / patch) (w / patch), patch * patch * c], rows of patches first."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def from_patches(x: jax.Array, patch: int, height: int) -> jax.Array:
    """The inverse of `to_patches` for images `height` pixels high."""
    b, n, _ = x.shape
    rows = height // patch
    x = x.reshape(b, rows, n // rows, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height, (n // rows) * patch, -1)


def noised(image: jax.Array, key: jax.Array, steps: int = 1000) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An image [b, ...] with noise of a random time, the noise, and the time [b] (arXiv:2006.11239, algorithm 1).

    The share of the signal falls linearly in beta from 1e-4 to 0.02 over `steps`, as in that paper.
    """
    time_key, noise_key = jax.random.split(key)
    time = jax.random.randint(time_key, image.shape[:1], 0, steps)
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    signal = jnp.cumprod(1.0 - jnp.linspace(1e-4, 0.02, steps, dtype=jnp.float32))[time]
    signal = signal.reshape(-1, *(1,) * (image.ndim - 1))
    return jnp.sqrt(signal) * image + jnp.sqrt(1.0 - signal) * noise, noise, time


def image_shapes(size: int, classes: int, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`image` float32 [batch, size, size, 3] and `label` int32 [batch]."""
    del sequence
    return {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def random_images(size: int, classes: int, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    """Random images with random labels below `classes`."""
    del sequence
    image_key, label_key = jax.random.split(key)
    return {
        "image": jax.random.normal(image_key, (batch, size, size, 3)),
        "label": jax.random.randint(label_key, (batch,), 0, classes, jnp.int32),
    }
