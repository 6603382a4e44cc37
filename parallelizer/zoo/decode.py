"""One decoding step of the GPT or the Llama: every sequence of a batch grows by the likeliest next token.

State: params, as in training but in the type of the activations; cache/{key,value} [layers, b, sequence, kv heads,
head_dim]; position, how many tokens of every sequence are in the cache. A step takes the token at that position for
every sequence and returns the next one; keys and values are written into the cache in place where it is donated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.zoo import decoder, gpt, llama
from parallelizer.zoo import layers as nn
from parallelizer.zoo.model import Step, ZooModel, ZooOptionError, check_choice, split_options

Params = dict[str, Any]
Config = gpt.GptConfig | llama.LlamaConfig
FAMILIES = ("gpt", "llama")


def init_cache(config: Config, batch: int) -> dict[str, jax.Array]:
    """An empty cache for `batch` sequences."""
    heads = config.kv_heads if isinstance(config, llama.LlamaConfig) else config.heads
    shape = (config.layers, batch, config.sequence, heads, config.head_dim)
    return {name: jnp.zeros(shape, jnp.dtype(config.dtype)) for name in ("key", "value")}


def cached_attention(query: jax.Array, key: jax.Array, value: jax.Array, position: jax.Array) -> jax.Array:
    """Attention of one query [b, 1, h, d] to the cache [b, s, kv, d] up to and including `position`."""
    b, _, _, d = query.shape
    grouped = query.reshape(b, key.shape[2], -1, d)
    logits = jnp.einsum("bkgd,btkd->bkgt", grouped, key).astype(jnp.float32) * d**-0.5
    logits = jnp.where(jnp.arange(key.shape[1]) <= position, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgt,btkd->bkgd", weights, value).reshape(query.shape)


def _grown(cache: jax.Array, new: jax.Array, position: jax.Array) -> jax.Array:
    """The cache [b, s, kv, d] with `new` [b, 1, kv, d] at `position`."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new, position, axis=1)


Layer = tuple[Params, jax.Array, jax.Array]


def _gpt_layer(
    config: gpt.GptConfig, position: jax.Array, x: jax.Array, layer: Layer
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    params, keys, values = layer
    y = nn.layer_norm(params["attention_norm"], x)
    query, key, value = (nn.project(params["attention"][n], y, config.heads) for n in ("query", "key", "value"))
    keys, values = _grown(keys, key, position), _grown(values, value, position)
    x = x + nn.merge(params["attention"]["out"], cached_attention(query, keys, values, position))
    return x + nn.mlp(params["mlp"], nn.layer_norm(params["mlp_norm"], x)), (keys, values)


def _llama_layer(
    config: llama.LlamaConfig, position: jax.Array, x: jax.Array, layer: Layer
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    params, keys, values = layer
    attention = params["attention"]
    angles = llama.rotary_angles(config.sequence, config.head_dim, config.rope_base)
    angles = jax.lax.dynamic_slice_in_dim(angles, position, 1, axis=0)
    y = llama.rms_norm(params["attention_norm"], x, config.norm_eps)
    query = llama.rotate(nn.project(attention["query"], y, config.heads), angles)
    key = llama.rotate(nn.project(attention["key"], y, config.kv_heads), angles)
    keys = _grown(keys, key, position)
    values = _grown(values, nn.project(attention["value"], y, config.kv_heads), position)
    x = x + nn.merge(attention["out"], cached_attention(query, keys, values, position))
    return x + llama.swiglu(params["mlp"], llama.rms_norm(params["mlp_norm"], x, config.norm_eps)), (keys, values)


def decode(
    config: Config, params: Params, cache: Mapping[str, jax.Array], tokens: jax.Array, position: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits [b, padded vocab] after the tokens [b] at `position` (a scalar), and the cache with them."""
    x = params["token_embedding"]["embedding"][tokens][:, None].astype(jnp.dtype(config.dtype))
    one_layer: Callable[..., Any]
    if isinstance(config, llama.LlamaConfig):
        one_layer = partial(_llama_layer, config, position)
    else:
        one_layer = partial(_gpt_layer, config, position)
        table = params["position_embedding"]["embedding"].astype(x.dtype)
        x = x + jax.lax.dynamic_slice_in_dim(table, position, 1, axis=0)
    if config.scan:
        x, (keys, values) = jax.lax.scan(one_layer, x, (params["layers"], cache["key"], cache["value"]))
    else:
        grown = []
        for i in range(config.layers):
            x, both = one_layer(x, (params[f"layers_{i}"], cache["key"][i], cache["value"][i]))
            grown.append(both)
        keys, values = (jnp.stack(part) for part in zip(*grown, strict=True))
    if isinstance(config, gpt.GptConfig):
        x = nn.layer_norm(params["final_norm"], x)
    else:
        x = llama.rms_norm(params["final_norm"], x, config.norm_eps)
    return decoder.logits(config, params, x)[:, 0], {"key": keys, "value": values}


def make_step(config: Config) -> Step:
    """`step(state, {"tokens": [b]}) -> (state, {"tokens": [b], "logit": [b]})`: the likeliest tokens, their logits."""

    def decode_step(state: Mapping[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        logits, cache = decode(config, state["params"], state["cache"], batch["tokens"], state["position"])
        found = {"tokens": jnp.argmax(logits, axis=-1).astype(jnp.int32), "logit": jnp.max(logits, axis=-1)}
        return {"params": state["params"], "cache": cache, "position": state["position"] + 1}, found

    return decode_step


def _init(config: Config, batch: int, key: jax.Array) -> dict[str, Any]:
    params = (gpt if isinstance(config, gpt.GptConfig) else llama).init_params(config, key)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(config.dtype)), params)
    return {"params": params, "cache": init_cache(config, batch), "position": jnp.zeros((), jnp.int32)}


def _checked(name: str, batch: int, asked: int) -> int:
    if asked != batch:
        raise ZooOptionError(
            f"the cache of {name} holds {batch} sequences, a batch of {asked} was asked; make it with "
            f"zoo.model({name!r}, batch={asked})",
            "batch",
        )
    return batch


def build(name: str, options: Mapping[str, Any]) -> ZooModel:
    """The decoding step of the `family` "gpt" or "llama" with these fields of its config, and `batch`."""
    check_choice("family", options.get("family"), FAMILIES)
    config_type = gpt.GptConfig if options["family"] == "gpt" else llama.LlamaConfig
    (sizes,) = split_options(name, {k: v for k, v in options.items() if k != "family"}, config_type)
    config: Config = config_type(**sizes)
    batch = options["batch"]

    def batch_shapes(asked: int, sequence: int) -> dict[str, jax.ShapeDtypeStruct]:
        del sequence
        return {"tokens": jax.ShapeDtypeStruct((_checked(name, batch, asked),), jnp.int32)}

    def example_batch(key: jax.Array, asked: int, sequence: int) -> dict[str, jax.Array]:
        del sequence
        return {"tokens": jax.random.randint(key, (_checked(name, batch, asked),), 0, config.vocab, jnp.int32)}

    return ZooModel(
        name=name,
        config=config,
        step=make_step(config),
        init=partial(_init, config, batch),
        batch=batch,
        sequence=1,
        # The forward third of training, with the whole cache attended to.
        flop_per_token=config.flop_per_token // 3,
        make_batch_shapes=batch_shapes,
        make_example_batch=example_batch,
        params_of=lambda state: state["params"],
    )
