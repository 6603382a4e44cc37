"""The U-Net of latent diffusion (arXiv:2112.10752): residual blocks with group norm and the time, attention to a text.

Channels grow and the image shrinks level by level, and back, with skip connections across. Parameters, by block:

    time/{first,second}/{kernel,bias}, conv_in/{kernel,bias}, out_norm/{scale,bias}, conv_out/{kernel,bias}
    {down,up}_LEVEL/res_J, middle/res_J: {in_norm,out_norm}, {conv_in,conv_out,time}, shortcut where channels change
    {down,up}_LEVEL/attention_J, middle/attention_0: norm, {into,out} (1 x 1), {self,cross,mlp}_norm,
        {self,cross}/{query,key,value,out}, mlp/{up,gate,down}
    {down,up}_LEVEL/sample/{kernel,bias}: halves or doubles the image
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
REMAT = ("none", "full")
UPSAMPLE = ("resize", "transposed")


@dataclass(frozen=True, slots=True)
class UnetConfig:
    """Sizes and options of a U-Net.

    Level i has `base * multipliers[i]` channels and `blocks` residual blocks on the way down, one more on the way up;
    those of `attention` levels attend. `context` is the width of the text's [b, context_length, context]. Images grow
    by nearest-neighbour "resize" and a convolution, or by a "transposed" convolution.
    """

    base: int
    multipliers: tuple[int, ...]
    blocks: int = 2
    attention: tuple[int, ...] = (0, 1, 2)
    heads: int = 8
    groups: int = 32
    image: int = 64
    channels: int = 4
    context: int = 768
    context_length: int = 77
    upsample: str = "resize"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "blocks", "channels", "context", "context_length")
        check_divides("base", self.base, "groups", self.groups)
        check_divides("base", self.base, "heads", self.heads)
        check_divides("image", self.image, "the strides", 2 ** (len(self.multipliers) - 1))
        check_choice("upsample", self.upsample, UPSAMPLE)
        check_choice("remat", self.remat, REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def time(self) -> int:
        return 4 * self.base

    def parts(self) -> Iterator[Part]:
        """What the image passes through between the first and the last convolution, in order."""
        channels, height = self.base, self.image
        skips = [channels]
        last = len(self.multipliers) - 1
        for i, multiplier in enumerate(self.multipliers):
            for j in range(self.blocks):
                attends = i in self.attention
                yield Part(f"down_{i}/res_{j}", "res", channels, self.base * multiplier, height, pushes=not attends)
                channels = self.base * multiplier
                if attends:
                    yield Part(f"down_{i}/attention_{j}", "attention", channels, channels, height, pushes=True)
                skips.append(channels)
            if i < last:
                height //= 2
                yield Part(f"down_{i}/sample", "down", channels, channels, height, pushes=True)
                skips.append(channels)
        yield Part("middle/res_0", "res", channels, channels, height)
        yield Part("middle/attention_0", "attention", channels, channels, height)
        yield Part("middle/res_1", "res", channels, channels, height)
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            for j in range(self.blocks + 1):
                inputs = channels + skips.pop()
                channels = self.base * multiplier
                yield Part(f"up_{i}/res_{j}", "res", inputs, channels, height, pops=True)
                if i in self.attention:
                    yield Part(f"up_{i}/attention_{j}", "attention", channels, channels, height)
            if i > 0:
                height *= 2
                yield Part(f"up_{i}/sample", "up", channels, channels, height)

    @property
    def flop_per_token(self) -> int:
        """Per image: 6 per weight and position, 12 per query, key and channel; inputs need no gradient."""
        ends = self.image**2 * 9 * self.channels * self.base
        flop = (4 + 6) * ends + 6 * self.time**2 + 4 * self.base * self.time
        return flop + sum(part.flop(self) for part in self.parts())


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the U-Net: "res", "attention", "down" or "up", its channels, and the height of its result.

    `pushes`: its result is kept for the way up; `pops`: what was kept last is put beside its input.
    """

    path: str
    kind: str
    inputs: int
    outputs: int
    height: int
    pushes: bool = False
    pops: bool = False

    def flop(self, config: UnetConfig) -> int:
        """Of the products of one image, forward and backward."""
        i, o, pixels = self.inputs, self.outputs, self.height**2
        if self.kind == "res":
            shortcut = i * o if i != o else 0
            return 6 * (pixels * (9 * (i * o + o * o) + shortcut) + config.time * o)
        if self.kind == "attention":
            weights = pixels * (2 + 4 + 2 + 12) * o * o
            return 6 * weights + 12 * pixels * o * (pixels + config.context_length) + self._context_flop(config)
        if self.kind == "up" and config.upsample == "transposed":
            return 6 * (pixels // 4) * 16 * i * o
        return 6 * pixels * 9 * i * o

    def _context_flop(self, config: UnetConfig) -> int:
        return 4 * config.context_length * 2 * config.context * self.outputs


def init_params(config: UnetConfig, key: jax.Array) -> Params:
    """Fresh parameters; the last layer of every residual branch starts at zero as in the released code."""
    first, second, conv_in, conv_out, key = jax.random.split(key, 5)
    params: Params = {
        "time": {
            "first": nn.init_dense(first, (config.base, config.time), (config.time,)),
            "second": nn.init_dense(second, (config.time, config.time), (config.time,)),
        },
        "conv_in": im.init_conv(conv_in, 3, config.channels, config.base),
        "out_norm": im.init_norm(config.base),
        "conv_out": im.init_conv(conv_out, 3, config.base, config.channels, std=0.02),
    }
    parts = list(config.parts())
    for part, k in zip(parts, jax.random.split(key, len(parts)), strict=True):
        place, name = part.path.split("/")
        params.setdefault(place, {})[name] = _init_part(config, part, k)
    return params


def _init_part(config: UnetConfig, part: Part, key: jax.Array) -> Params:
    if part.kind == "res":
        return _init_res(config, part.inputs, part.outputs, key)
    if part.kind == "attention":
        return _init_attention(config, part.outputs, key)
    return im.init_conv(
        key, 4 if part.kind == "up" and config.upsample == "transposed" else 3, part.inputs, part.outputs
    )


def _init_res(config: UnetConfig, inputs: int, outputs: int, key: jax.Array) -> Params:
    conv_in, time, conv_out, shortcut = jax.random.split(key, 4)
    params = {
        "in_norm": im.init_norm(inputs),
        "conv_in": im.init_conv(conv_in, 3, inputs, outputs),
        "time": nn.init_dense(time, (config.time, outputs), (outputs,)),
        "out_norm": im.init_norm(outputs),
        "conv_out": im.init_conv(conv_out, 3, outputs, outputs, std=0.0),
    }
    return params if inputs == outputs else params | {"shortcut": im.init_conv(shortcut, 1, inputs, outputs)}


def _init_attention(config: UnetConfig, channels: int, key: jax.Array) -> Params:
    into, own, cross, up, gate, down, out = jax.random.split(key, 7)
    wide = (channels, 4 * channels)
    params: Params = {
        "norm": im.init_norm(channels),
        "into": im.init_conv(into, 1, channels, channels),
        "self": nn.init_attention(own, channels, config.heads, bias=False),
        "cross": nn.init_attention(cross, channels, config.heads, config.context, bias=False),
        "mlp": {
            "up": nn.init_dense(up, wide, wide[1:]),
            "gate": nn.init_dense(gate, wide, wide[1:]),
            "down": nn.init_dense(down, wide[::-1], (channels,)),
        },
        "out": im.init_conv(out, 1, channels, channels, std=0.0),
    }
    for name in ("self", "cross"):
        params[name]["out"]["bias"] = jnp.zeros(channels, jnp.float32)
    return params | {f"{name}_norm": nn.init_layer_norm(channels) for name in ("self", "cross", "mlp")}


def _res(config: UnetConfig, params: Params, x: jax.Array, time: jax.Array) -> jax.Array:
    y = im.conv(params["conv_in"], jax.nn.silu(im.group_norm(params["in_norm"], x, config.groups)))
    y = y + nn.dense(params["time"], jax.nn.silu(time), "bt,tc->bc")[:, None, None, :]
    y = im.conv(params["conv_out"], jax.nn.silu(im.group_norm(params["out_norm"], y, config.groups)))
    return y + (im.conv(params["shortcut"], x) if "shortcut" in params else x)


def _attention(config: UnetConfig, params: Params, image: jax.Array, text: jax.Array) -> jax.Array:
    x = im.conv(params["into"], im.group_norm(params["norm"], image, config.groups, eps=1e-6))
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = x + nn.attend(params["self"], nn.layer_norm(params["self_norm"], x))
    x = x + nn.attend(params["cross"], nn.layer_norm(params["cross_norm"], x), text)
    y = nn.layer_norm(params["mlp_norm"], x)
    y = nn.dense(params["mlp"]["up"], y, "bse,ef->bsf") * jax.nn.gelu(nn.dense(params["mlp"]["gate"], y, "bse,ef->bsf"))
    x = x + nn.dense(params["mlp"]["down"], y, "bsf,fe->bse")
    return image + im.conv(params["out"], x.reshape(image.shape))


def _part(config: UnetConfig, kind: str, params: Params, x: jax.Array, time: jax.Array, text: jax.Array) -> jax.Array:
    if kind == "res":
        return _res(config, params, x, time)
    if kind == "attention":
        return _attention(config, params, x, text)
    if kind == "down":
        return im.conv(params, x, 2, [(1, 1), (1, 1)])
    return im.conv_transpose(params, x) if config.upsample == "transposed" else im.conv(params, im.upsample(x))


def apply(config: UnetConfig, params: Params, image: jax.Array, time: jax.Array, text: jax.Array) -> jax.Array:
    """The predicted noise, as [b, h, w, channels] as the noised image; times [b], text [b, length, context]."""
    dtype = jnp.dtype(config.dtype)
    image, text = image.astype(dtype), text.astype(dtype)
    t = nn.dense(params["time"]["first"], im.time_embedding(time, config.base).astype(dtype), "bi,io->bo")
    t = nn.dense(params["time"]["second"], jax.nn.silu(t), "bi,io->bo")
    x = im.conv(params["conv_in"], image)
    skips = [x]
    for part in config.parts():
        run: Callable[..., jax.Array] = partial(_part, config, part.kind)
        if config.remat == "full":
            run = jax.checkpoint(run)
        if part.pops:
            x = jnp.concatenate([x, skips.pop()], axis=-1)
        place, name = part.path.split("/")
        x = run(params[place][name], x, t, text)
        if part.pushes:
            skips.append(x)
    return im.conv(params["conv_out"], jax.nn.silu(im.group_norm(params["out_norm"], x, config.groups)))


def loss(config: UnetConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
    """Mean squared error of the noise that is found in `batch["image"]`, noised for a random time, given the text."""
    x, noise, time = im.noised(batch["image"], key)
    return jnp.mean(jnp.square(apply(config, params, x, time, batch["text"]).astype(jnp.float32) - noise))


def _batch_shapes(config: UnetConfig, batch: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
    del sequence
    return {
        "image": jax.ShapeDtypeStruct((batch, config.image, config.image, config.channels), jnp.float32),
        "text": jax.ShapeDtypeStruct((batch, config.context_length, config.context), jnp.float32),
    }


def _example_batch(config: UnetConfig, key: jax.Array, batch: int, sequence: int) -> dict[str, jax.Array]:
    keys = jax.random.split(key)
    shapes = _batch_shapes(config, batch, sequence)
    return {name: jax.random.normal(k, shapes[name].shape) for name, k in zip(("image", "text"), keys, strict=True)}


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The U-Net with these fields of `UnetConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        UnetConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: partial(_batch_shapes, config),
        example_batch=lambda config: partial(_example_batch, config),
        random=lambda config: True,
    )
