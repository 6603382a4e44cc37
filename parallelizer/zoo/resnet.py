"""ResNet (arXiv:1512.03385) and Wide-ResNet (arXiv:1605.07146): convolutions, batch norm, pooling, as a plain pytree.

State: params, batch_stats (running means and variances), opt_state, step. Parameters:

    stem/{kernel} [7, 7, 3, base], stem_norm/{scale,bias}
    stage_i/block_j/{reduce,spatial,expand,shortcut}/kernel, each with a norm; `shortcut` where the shape changes
    head/{kernel,bias} [8 * 4 * base, classes]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from parallelizer.zoo import images as im
from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import Step, ZooModel, check_choice, check_divides, check_positive, split_options
from parallelizer.zoo.training import TrainingConfig, decayed, global_norm, make_optimizer

Params = dict[str, Any]
REMAT = ("none", "full")


@dataclass(frozen=True, slots=True)
class ResNetConfig:
    """Sizes and options of a ResNet with bottleneck blocks.

    `blocks` are those of each stage, `base` the channels after the stem. A block of a stage with c channels inside has
    width * c of them in its 3 x 3 convolution and 4 c at its end; `wide_reduce` widens the 1 x 1 convolution before it
    as well (as in the released wide_resnet50_2; Alpa's models widen the 3 x 3 convolution alone).
    """

    blocks: tuple[int, ...]
    base: int = 64
    width: int = 1
    wide_reduce: bool = False
    image: int = 224
    classes: int = 1000
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "base", "width", "classes")
        check_divides("image", self.image, "the strides", 2 ** (len(self.blocks) + 1))
        check_choice("remat", self.remat, REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    def convolutions(self) -> Iterator[tuple[str, str, int, int, int, int, int]]:
        """Every convolution of the blocks: block path, name, size, inputs, outputs, stride, height of the result."""
        inputs, height = self.base, self.image // 4
        for i, count in enumerate(self.blocks):
            inner = self.base * 2**i
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                path, wide = f"stage_{i}/block_{j}", self.width * inner
                middle = wide if self.wide_reduce else inner
                yield path, "reduce", 1, inputs, middle, 1, height
                before, height = height, height // stride
                yield path, "spatial", 3, middle, wide, stride, height
                yield path, "expand", 1, wide, 4 * inner, 1, height
                if inputs != 4 * inner or before != height:
                    yield path, "shortcut", 1, inputs, 4 * inner, stride, height
                inputs = 4 * inner

    @property
    def features(self) -> int:
        return 4 * self.base * 2 ** (len(self.blocks) - 1)

    @property
    def flop_per_token(self) -> int:
        """Per image: 6 per weight and position of its result, less 2 for the stem, whose input needs no gradient."""
        weights = sum(size**2 * i * o * height**2 for _, _, size, i, o, _, height in self.convolutions())
        return 6 * (weights + self.features * self.classes) + 4 * 49 * 3 * self.base * (self.image // 2) ** 2


def init_params(config: ResNetConfig, key: jax.Array) -> tuple[Params, Params]:
    """Fresh parameters and running statistics; the last norm of every block starts at zero (arXiv:1706.02677)."""
    stem_key, head_key, key = jax.random.split(key, 3)
    params: Params = {
        "stem": im.init_conv(stem_key, 7, 3, config.base, bias=False),
        "stem_norm": im.init_norm(config.base),
        "head": nn.init_dense(head_key, (config.features, config.classes), (config.classes,)),
    }
    statistics: Params = {"stem_norm": im.init_statistics(config.base)}
    convolutions = list(config.convolutions())
    keys = jax.random.split(key, len(convolutions))
    for (path, name, size, inputs, outputs, _, _), k in zip(convolutions, keys, strict=True):
        block = params.setdefault(path, {})
        block[name] = im.init_conv(k, size, inputs, outputs, bias=False)
        block[f"{name}_norm"] = im.init_norm(outputs, 0.0 if name == "expand" else 1.0)
        statistics.setdefault(path, {})[f"{name}_norm"] = im.init_statistics(outputs)
    return _nested(params), _nested(statistics)


def _nested(flat: Params) -> Params:
    """{"a/b": x} as {"a": {"b": x}}."""
    out: Params = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        place = out
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return out


def _block(stride: int, params: Params, statistics: Params, x: jax.Array) -> tuple[jax.Array, Params]:
    new: Params = {}

    def part(name: str, x: jax.Array, stride: int) -> jax.Array:
        y, new[f"{name}_norm"] = im.batch_norm(
            params[f"{name}_norm"], statistics[f"{name}_norm"], im.conv(params[name], x, stride)
        )
        return y

    y = jax.nn.relu(part("reduce", x, 1))
    y = jax.nn.relu(part("spatial", y, stride))
    y = part("expand", y, 1)
    shortcut = part("shortcut", x, stride) if "shortcut" in params else x
    return jax.nn.relu(shortcut + y), new


def apply(config: ResNetConfig, params: Params, statistics: Params, image: jax.Array) -> tuple[jax.Array, Params]:
    """Logits [b, classes] for images [b, h, w, 3], and the new running statistics."""
    x = im.conv(params["stem"], image.astype(jnp.dtype(config.dtype)), 2, [(3, 3), (3, 3)])
    new: Params = {}
    x, new["stem_norm"] = im.batch_norm(params["stem_norm"], statistics["stem_norm"], x)
    x = im.max_pool(jax.nn.relu(x), 3, 2)
    for i, count in enumerate(config.blocks):
        stage = f"stage_{i}"
        new[stage] = {}
        for j in range(count):
            block: Callable[..., tuple[jax.Array, Params]] = partial(_block, 2 if i > 0 and j == 0 else 1)
            if config.remat == "full":
                block = jax.checkpoint(block)
            name = f"block_{j}"
            x, new[stage][name] = block(params[stage][name], statistics[stage][name], x)
    x = jnp.mean(x.astype(jnp.float32), axis=(1, 2)).astype(x.dtype)
    return nn.dense(params["head"], x, "bf,fc->bc"), new


def loss(
    config: ResNetConfig, params: Params, statistics: Params, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, Params]:
    """Mean cross-entropy of `batch["label"]` [b] for `batch["image"]` [b, h, w, 3], and the running statistics."""
    logits, new = apply(config, params, statistics, batch["image"])
    return nn.cross_entropy(logits, batch["label"]), new


def make_init(config: ResNetConfig, training: TrainingConfig) -> Callable[[jax.Array], dict[str, Any]]:
    """`init(key) -> {"params", "batch_stats", "opt_state", "step"}`."""
    optimizer = make_optimizer(training, decayed)

    def init(key: jax.Array) -> dict[str, Any]:
        params, statistics = init_params(config, key)
        opt_state = optimizer.init(params)
        return {"params": params, "batch_stats": statistics, "opt_state": opt_state, "step": jnp.zeros((), jnp.int32)}

    return init


def make_step(config: ResNetConfig, training: TrainingConfig) -> Step:
    """The training step: that of `training.make_step`, with running statistics beside the parameters."""
    optimizer = make_optimizer(training, decayed)

    def train_step(state: Mapping[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        params = state["params"]
        value_and_grad = jax.value_and_grad(partial(loss, config), has_aux=True)
        (value, statistics), gradients = value_and_grad(params, state["batch_stats"], batch)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], params)
        new_params = optax.apply_updates(params, updates)
        new_state = {"params": new_params, "batch_stats": statistics, "opt_state": opt_state, "step": state["step"] + 1}
        found = {"loss": lambda: value, "grad_norm": lambda: global_norm(gradients)}
        return new_state, {name: found[name]() for name in training.metrics}

    return train_step


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The ResNet with these fields of `ResNetConfig` and `TrainingConfig`, and `batch`."""
    sizes, training_options = split_options(name, options, ResNetConfig, TrainingConfig)
    config, training = ResNetConfig(**sizes), TrainingConfig(**training_options)
    return ZooModel(
        name=name,
        config=config,
        step=make_step(config, training),
        init=make_init(config, training),
        batch=options["batch"],
        sequence=1,
        flop_per_token=config.flop_per_token,
        make_batch_shapes=partial(im.image_shapes, config.image, config.classes),
        make_example_batch=partial(im.random_images, config.image, config.classes),
        params_of=lambda state: state["params"],
    )
