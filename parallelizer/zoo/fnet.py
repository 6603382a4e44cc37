"""FNet: an encoder that mixes positions by Fourier transforms (arXiv:2105.03824), or by learned filters on frequencies.

With `mixing="fourier"` a layer takes the real part of the transform over features and positions, without parameters;
with `mixing="filter"` it transforms along the positions, multiplies every frequency by a complex weight and transforms
back (global filter networks, arXiv:2107.00645). Parameters, with L layers stacked in front where they are scanned:

    token_embedding/embedding, position_embedding/embedding, type_embedding/embedding   [.., embed]
    embedding_norm, projection/{kernel,bias}     [embed, embed]
    layers/filter/{real,imaginary}               [sequence / 2 + 1, embed], filters only
    layers/mixing_norm, layers/mlp/{up,down}/{kernel,bias}, layers/mlp_norm
    head/{kernel,bias}, head_norm, logits_bias   [embed, embed], [vocab]; logits are products with the table
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
from parallelizer.zoo.tokens import random_tokens, token_shapes
from parallelizer.zoo.training import make_model

Params = dict[str, Any]
MIXING = ("fourier", "filter")
TYPES = 4


@dataclass(frozen=True, slots=True)
class FnetConfig:
    """Sizes and options of an FNet; norms come after the residual, as in BERT."""

    layers: int
    embed: int
    mlp: int
    sequence: int
    vocab: int = 32_000
    mixing: str = "fourier"
    scan: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "layers", "embed", "mlp", "sequence", "vocab")
        check_choice("mixing", self.mixing, MIXING)
        check_choice("remat", self.remat, nn.REMAT)
        check_choice("dtype", self.dtype, nn.DTYPES)

    @property
    def frequencies(self) -> int:
        """Of a transform of real numbers along the positions."""
        return self.sequence // 2 + 1

    @property
    def flop_per_token(self) -> int:
        """6 per weight used in a product; Fourier transforms are no matrix products and not counted."""
        return 6 * (2 * self.layers * self.embed * self.mlp + 2 * self.embed**2 + self.vocab * self.embed)


def init_params(config: FnetConfig, key: jax.Array) -> Params:
    """Fresh parameters, normal with deviation 0.02; filters start near the identity."""
    tokens, positions, types, projection, layers, head = jax.random.split(key, 6)
    embed = config.embed
    return {
        "token_embedding": {"embedding": nn.normal(tokens, (config.vocab, embed), 0.02)},
        "position_embedding": {"embedding": nn.normal(positions, (config.sequence, embed), 0.02)},
        "type_embedding": {"embedding": nn.normal(types, (TYPES, embed), 0.02)},
        "embedding_norm": nn.init_layer_norm(embed),
        "projection": nn.init_dense(projection, (embed, embed), (embed,)),
        **nn.init_layers(partial(_init_block, config), layers, config.layers, config.scan),
        "head": nn.init_dense(head, (embed, embed), (embed,)),
        "head_norm": nn.init_layer_norm(embed),
        "logits_bias": jnp.zeros(config.vocab, jnp.float32),
    }


def _init_block(config: FnetConfig, key: jax.Array) -> Params:
    up, down, real, imaginary = jax.random.split(key, 4)
    embed, shape = config.embed, (config.frequencies, config.embed)
    params: Params = {
        "mixing_norm": nn.init_layer_norm(embed),
        "mlp": {
            "up": nn.init_dense(up, (embed, config.mlp), (config.mlp,)),
            "down": nn.init_dense(down, (config.mlp, embed), (embed,)),
        },
        "mlp_norm": nn.init_layer_norm(embed),
    }
    if config.mixing == "filter":
        params["filter"] = {"real": 1.0 + nn.normal(real, shape, 0.02), "imaginary": nn.normal(imaginary, shape, 0.02)}
    return params


def fourier_mix(x: jax.Array) -> jax.Array:
    """The real part of the discrete Fourier transform over features and positions of [b, s, e], in complex64."""
    return jnp.fft.fft(jnp.fft.fft(x.astype(jnp.float32), axis=-1), axis=-2).real.astype(x.dtype)


def filter_mix(params: Params, x: jax.Array) -> jax.Array:
    """[b, s, e] with every frequency along the positions multiplied by its complex weight."""
    weights = jax.lax.complex(params["real"], params["imaginary"])
    spectrum = jnp.fft.rfft(x.astype(jnp.float32), axis=1) * weights[None]
    return jnp.fft.irfft(spectrum, n=x.shape[1], axis=1).astype(x.dtype)


def _block(config: FnetConfig, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    del key
    mixed = filter_mix(params["filter"], x) if config.mixing == "filter" else fourier_mix(x)
    x = nn.layer_norm(params["mixing_norm"], x + mixed, eps=1e-12)
    y = jax.nn.gelu(nn.dense(params["mlp"]["up"], x, "bse,ef->bsf"))
    return nn.layer_norm(params["mlp_norm"], x + nn.dense(params["mlp"]["down"], y, "bsf,fe->bse"), eps=1e-12)


def apply(config: FnetConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Logits [b, s, vocab] in `config.dtype` for tokens [b, s], all of the first type; filters need whole sequences."""
    table = params["token_embedding"]["embedding"]
    x = table[tokens] + params["position_embedding"]["embedding"][: tokens.shape[1]]
    x = nn.layer_norm(params["embedding_norm"], x + params["type_embedding"]["embedding"][0], eps=1e-12)
    x = nn.dense(params["projection"], x.astype(jnp.dtype(config.dtype)), "bse,ef->bsf")
    block = partial(_block, config)
    x = nn.apply_layers(block, params, x, None, layers=config.layers, scan=config.scan, remat=config.remat)
    x = jax.nn.gelu(nn.dense(params["head"], x, "bse,ef->bsf"))
    x = nn.layer_norm(params["head_norm"], x, eps=1e-12)
    return jnp.einsum("bse,ve->bsv", x, table.astype(x.dtype)) + params["logits_bias"].astype(x.dtype)


def loss(config: FnetConfig, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """Mean cross-entropy of `batch["targets"]` [b, s]; masking is left to the data."""
    del key
    return nn.cross_entropy(apply(config, params, batch["tokens"]), batch["targets"])


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The FNet with these fields of `FnetConfig` and `TrainingConfig`, and `batch`."""
    return make_model(
        name,
        options,
        FnetConfig,
        init_params=init_params,
        loss=loss,
        batch_shapes=lambda config: token_shapes,
        example_batch=lambda config: partial(random_tokens, config.vocab),
    )
