"""Models by name. Every entry is the options that make the model; a caller's options come on top.

Sizes: GPT-2 from the released checkpoints; GPT-3 from table 2.1 of arXiv:2005.14165, with 16 heads for 1.3b and a width
of 5120 for 13b, where the table's own numbers do not divide; gpt3-15b and gpt3-39b from the GPT table of
arXiv:2201.12023 (Alpa) with GPT-3's vocabulary and sequence; Llama 3 from table 3 of arXiv:2407.21783.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from parallelizer.zoo.model import UnknownModelError, ZooModel


def _gpt2(layers: int, embed: int, heads: int) -> dict[str, Any]:
    return {"layers": layers, "embed": embed, "heads": heads, "sequence": 1024, "dtype": "bfloat16", "batch": 512}


def _gpt3(layers: int, embed: int, heads: int) -> dict[str, Any]:
    return _gpt2(layers, embed, heads) | {"sequence": 2048, "remat": "full"}


def _llama3(layers: int, embed: int, heads: int, mlp: int) -> dict[str, Any]:
    sizes = {"layers": layers, "embed": embed, "heads": heads, "kv_heads": 8, "mlp": mlp, "sequence": 8192}
    return sizes | {"dtype": "bfloat16", "remat": "full", "batch": 512}


_BYTES = {"vocab": 256, "learning_rate": 3e-3, "b2": 0.99}

_TOY = {"layers": 2, "embed": 64, "heads": 8, "sequence": 32, "batch": 16, **_BYTES}
# Chosen so that the loss falls visibly within some dozens of steps: without warm-up it rests at the letters' entropy.
_DEMO = {"layers": 4, "embed": 128, "heads": 8, "sequence": 128, "batch": 32, **_BYTES}
_DEMO |= {"learning_rate": 2e-3, "warmup_steps": 10}
_ADAM = {"learning_rate": 1e-2, "weight_decay": 0.0, "clip_norm": None, "b2": 0.999}

# Name -> (module of the family, options).
_MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "mlp": ("mlp", {"batch": 256, **_ADAM}),
        "bert": ("bert", {"batch": 8, **_ADAM, "learning_rate": 1e-3}),
        "gpt-toy": ("gpt", _TOY),
        "gpt-toy-linen": ("flax_linen", _TOY),
        "gpt-toy-nnx": ("flax_nnx", {**_TOY, "scan": False}),
        "gpt-demo": ("gpt", _DEMO),
        "gpt2-124m": ("gpt", _gpt2(12, 768, 12)),
        "gpt2-350m": ("gpt", _gpt2(24, 1024, 16)),
        "gpt2-774m": ("gpt", _gpt2(36, 1280, 20)),
        "gpt2-1.5b": ("gpt", _gpt2(48, 1600, 25)),
        "gpt3-1.3b": ("gpt", _gpt3(24, 2048, 16)),
        "gpt3-2.7b": ("gpt", _gpt3(32, 2560, 32)),
        "gpt3-6.7b": ("gpt", _gpt3(32, 4096, 32)),
        "gpt3-13b": ("gpt", _gpt3(40, 5120, 40)),
        "gpt3-15b": ("gpt", _gpt3(48, 5120, 40)),
        "gpt3-39b": ("gpt", _gpt3(48, 8192, 64)),
        "gpt3-175b": ("gpt", _gpt3(96, 12288, 96)),
        "llama-toy": ("llama", {**_TOY, "kv_heads": 2, "mlp": 192}),
        "llama3-8b": ("llama", _llama3(32, 4096, 32, 14336)),
        "llama3-70b": ("llama", _llama3(80, 8192, 64, 28672)),
        "llama3-405b": ("llama", _llama3(126, 16384, 128, 53248)),
    }
)


def names() -> tuple[str, ...]:
    """Every name that `model` knows, small models of a family first."""
    return tuple(_MODELS)


def model(name: str, **options: Any) -> ZooModel:
    """The model of that name, with `options` over its own: sizes, `dtype`, `remat`, `scan`, `learning_rate`, `batch`...

    Raises UnknownModelError for a name that does not exist and ZooOptionError for an option or value that does not.
    Nothing is allocated.
    """
    if name not in _MODELS:
        raise UnknownModelError(name, _MODELS)
    family, own = _MODELS[name]
    # Imported here because the families need optax, and some flax, which a user of the planner may not have.
    build: Callable[[str, Mapping[str, Any]], ZooModel] = import_module(f"parallelizer.zoo.{family}").build
    return build(name, {**own, **options})
