"""Models by name. Every entry is the options that make the model; a caller's options come on top.

Sizes: GPT-2 from the released checkpoints; GPT-3 from table 2.1 of arXiv:2005.14165, with 16 heads for 1.3b and a width
of 5120 for 13b, where the table's own numbers do not divide; gpt3-15b and gpt3-39b from the GPT table of
arXiv:2201.12023 (Alpa) with GPT-3's vocabulary and sequence; Llama 3 from table 3 of arXiv:2407.21783.
ResNet-50 from arXiv:1512.03385, wide-resnet-50-2 from arXiv:1605.07146 as released, the larger ones from the
Wide-ResNet table of arXiv:2201.12023 (Alpa) and its suite_wresnet; ViT from table 1 of arXiv:2010.11929; T5
from section 3.7 of arXiv:1910.10683; unet-sd is the released Stable Diffusion 1 (arXiv:2112.10752); DiT from table 1
of arXiv:2212.09748; LSTMs: the large one of arXiv:1409.2329 and the big one of arXiv:1602.02410; Mamba from table 12 of
arXiv:2312.00752 and its released configurations; s5-path-x from the appendix of arXiv:2208.04933.
Mixtral from arXiv:2401.04088 (32k context cut to 4k, where attention without tiling fits), deepseek-moe-16b from
arXiv:2401.06066 and its released configuration; moe-* from the MoE table of arXiv:2201.12023 (Alpa) and its suite,
with this zoo's decoder around the experts (no biases, rotary positions: 0.1 % fewer parameters). DLRM as in MLPerf
Training v0.7 to v2.1 (facebookresearch/dlrm, run_and_time.sh): 187,767,399 rows of 128 numbers. meshgraphnet as for
the airfoil of arXiv:2010.03409 (5233 nodes, 15 steps, 128 wide); GraphCast at 0.25 degrees from arXiv:2212.12794;
FNet from table 1 of arXiv:2105.03824.
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


def _wide_resnet(third: int, base: int, width: int) -> dict[str, Any]:
    return {**_RESNET, "blocks": (3, 4, third, 3), "base": base, "width": width, "classes": 1024, "dtype": "float32"}


def _vit(layers: int, embed: int, heads: int, patch: int) -> dict[str, Any]:
    sizes = {"layers": layers, "embed": embed, "heads": heads, "mlp": 4 * embed, "patch": patch}
    return sizes | {"learning_rate": 1e-3, "dtype": "bfloat16", "remat": "full", "batch": 4096}


def _t5(layers: int, embed: int, heads: int, mlp: int, head_dim: int) -> dict[str, Any]:
    sizes = {"layers": layers, "embed": embed, "heads": heads, "mlp": mlp, "head_dim": head_dim, "sequence": 512}
    return sizes | {"learning_rate": 1e-3, "weight_decay": 0.0, "dtype": "bfloat16", "remat": "full", "batch": 2048}


def _alpa_moe(layers: int, embed: int, experts: int) -> dict[str, Any]:
    sizes = {"layers": layers, "embed": embed, "heads": 16, "kv_heads": 16, "experts": experts, "top_k": 2, "every": 2}
    sizes |= {"expert_mlp": 8 * embed, "dense_mlp": 8 * embed, "gated": False, "tied": True, "sequence": 1024}
    return sizes | {"dispatch": "onehot", "group": 2048, "dtype": "bfloat16", "remat": "full", "batch": 1024}


def _dit(layers: int, embed: int, heads: int) -> dict[str, Any]:
    return {**_DIFFUSION, "layers": layers, "embed": embed, "heads": heads, "batch": 256}


def _mamba(layers: int, embed: int) -> dict[str, Any]:
    sizes = {"layers": layers, "embed": embed, "sequence": 2048}
    return sizes | {"dtype": "bfloat16", "remat": "full", "batch": 256}


def _decode(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's options matters without training."""
    training = ("learning_rate", "b2", "remat")
    return {"family": family, **{k: v for k, v in options.items() if k not in training}}


_BYTES = {"vocab": 256, "learning_rate": 3e-3, "b2": 0.99}

_TOY = {"layers": 2, "embed": 64, "heads": 8, "sequence": 32, "batch": 16, **_BYTES}
# Chosen so that the loss falls visibly within some dozens of steps: without warm-up it rests at the letters' entropy.
_DEMO = {"layers": 4, "embed": 128, "heads": 8, "sequence": 128, "batch": 32, **_BYTES}
_DEMO |= {"learning_rate": 2e-3, "warmup_steps": 10}
_ADAM = {"learning_rate": 1e-2, "weight_decay": 0.0, "clip_norm": None, "b2": 0.999}
_RESNET = {"optimizer": "momentum", "learning_rate": 0.1, "weight_decay": 1e-4, "clip_norm": None, "dtype": "bfloat16"}
_RESNET |= {"batch": 1536}
_TINY_NET = {"blocks": (1, 2), "base": 16, "image": 32, "classes": 16, "batch": 16, "dtype": "float32"}
_DIFFUSION = {"learning_rate": 1e-4, "weight_decay": 0.0, "b2": 0.999, "dtype": "bfloat16", "remat": "full"}
_TOY_UNET = {"base": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 4, "groups": 4, "image": 8}
_TOY_UNET |= {"context": 16, "context_length": 4, "batch": 16}
_LSTM = {"layers": 2, "learning_rate": 2e-3, "batch": 2048}
_S5 = {"learning_rate": 2e-3, "weight_decay": 0.05, "b2": 0.999, "batch": 64}

_MIXTRAL = _llama3(32, 4096, 32, 0) | {"sequence": 4096, "experts": 8, "top_k": 2, "expert_mlp": 14336}
_MIXTRAL = {k: v for k, v in _MIXTRAL.items() if k != "mlp"} | {"rope_base": 1e6}
_DEEPSEEK: dict[str, Any] = {
    "layers": 28,
    "embed": 2048,
    "heads": 16,
    "kv_heads": 16,
    "sequence": 4096,
    "vocab": 102_400,
    "experts": 64,
}
_DEEPSEEK |= {"top_k": 6, "expert_mlp": 1408, "shared_mlp": 2816, "dense_mlp": 10_944, "first_dense": 1}
_DEEPSEEK |= {"normalize": False, "balance": 1e-3, "dtype": "bfloat16", "remat": "full", "batch": 512}
_TOY_MOE = {**_TOY, "kv_heads": 2, "experts": 8, "top_k": 2, "expert_mlp": 64}

# Criteo Terabyte's categories as MLPerf trains on them.
_CRITEO: tuple[int, ...] = (
    39_884_406,
    39_043,
    17_289,
    7_420,
    20_263,
    3,
    7_120,
    1_543,
    63,
    38_532_951,
    2_953_546,
    403_346,
    10,
    2_208,
)
_CRITEO += (11_938, 155, 4, 976, 14, 39_979_771, 25_641_295, 39_664_984, 585_935, 12_972, 108, 36)
_DLRM = {"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": None, "batch": 65_536}

_GRAPH = {"weight_decay": 0.0, "clip_norm": None, "learning_rate": 1e-3}
_TOY_GRAPH = {**_GRAPH, "nodes": 60, "edges": 200, "inputs": 6, "outputs": 3, "latent": 16, "steps": 2, "multiple": 16}
_GRAPHCAST: dict[str, Any] = {
    "nodes": 1_038_240,
    "edges": 327_660,
    "mesh_nodes": 40_962,
    "to_mesh_edges": 1_618_746,
    "steps": 16,
}
_GRAPHCAST |= {"from_mesh_edges": 3_114_720, "inputs": 477, "outputs": 227, "latent": 512, "hidden": 1}
_GRAPHCAST |= {"activation": "silu", "dtype": "bfloat16", "remat": "full", "weight_decay": 0.1, "clip_norm": 32.0}

_FNET = {"sequence": 512, "dtype": "bfloat16", "batch": 256, "learning_rate": 1e-4}
_TOY_FNET = {"layers": 2, "embed": 32, "mlp": 64, "sequence": 32, "batch": 16, **_BYTES}

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
        "llama-toy-int8": ("llama", {**_TOY, "kv_heads": 2, "mlp": 192, "products": "int8"}),
        "llama-toy-fp8": ("llama", {**_TOY, "kv_heads": 2, "mlp": 192, "products": "fp8"}),
        "llama3-8b": ("llama", _llama3(32, 4096, 32, 14336)),
        "llama3-70b": ("llama", _llama3(80, 8192, 64, 28672)),
        "llama3-405b": ("llama", _llama3(126, 16384, 128, 53248)),
        "resnet-toy": ("resnet", {**_RESNET, **_TINY_NET}),
        "resnet-50": ("resnet", {**_RESNET, "blocks": (3, 4, 6, 3)}),
        "wide-resnet-50-2": ("resnet", {**_RESNET, "blocks": (3, 4, 6, 3), "width": 2, "wide_reduce": True}),
        "wide-resnet-250m": ("resnet", _wide_resnet(6, 160, 2)),
        "wide-resnet-1b": ("resnet", _wide_resnet(6, 320, 2)),
        "wide-resnet-2b": ("resnet", _wide_resnet(6, 448, 2)),
        "wide-resnet-4b": ("resnet", _wide_resnet(6, 640, 2)),
        "wide-resnet-6.8b": ("resnet", _wide_resnet(6, 320, 16)),
        "wide-resnet-13b": ("resnet", _wide_resnet(23, 320, 16)),
        "vit-toy": ("vit", {**_vit(2, 64, 4, 8), "image": 32, "classes": 16, "batch": 16, "dtype": "float32"}),
        "vit-b": ("vit", _vit(12, 768, 12, 16)),
        "vit-l": ("vit", _vit(24, 1024, 16, 16)),
        "vit-h": ("vit", _vit(32, 1280, 16, 14)),
        "t5-toy": ("t5", {**_t5(2, 64, 8, 128, 8), "sequence": 32, "batch": 16, "dtype": "float32", "vocab": 256}),
        "t5-small": ("t5", _t5(6, 512, 8, 2048, 64)),
        "t5-base": ("t5", _t5(12, 768, 12, 3072, 64)),
        "t5-large": ("t5", _t5(24, 1024, 16, 4096, 64)),
        "t5-3b": ("t5", _t5(24, 1024, 32, 16384, 128)),
        "t5-11b": ("t5", _t5(24, 1024, 128, 65536, 128)),
        "unet-toy": ("unet", _TOY_UNET),
        "unet-toy-transposed": ("unet", {**_TOY_UNET, "upsample": "transposed"}),
        "unet-sd": ("unet", {**_DIFFUSION, "base": 320, "multipliers": (1, 2, 4, 4), "batch": 2048}),
        "dit-toy": ("dit", {**_dit(2, 64, 4), "image": 8, "classes": 10, "batch": 16, "dtype": "float32"}),
        "dit-s-2": ("dit", _dit(12, 384, 6)),
        "dit-b-2": ("dit", _dit(12, 768, 12)),
        "dit-l-2": ("dit", _dit(24, 1024, 16)),
        "dit-xl-2": ("dit", _dit(28, 1152, 16)),
        "lstm-toy": ("lstm", {**_LSTM, "embed": 32, "hidden": 64, "vocab": 256, "sequence": 16, "batch": 16}),
        "lstm-66m": ("lstm", {**_LSTM, "embed": 1500, "hidden": 1500, "sequence": 35, "batch": 640}),
        "lstm-1.8b": ("lstm", {**_LSTM, "embed": 1024, "hidden": 8192, "vocab": 793_471, "sequence": 20}),
        "mamba-toy": ("ssm", {**_mamba(2, 32), "sequence": 16, "states": 4, "batch": 16, "dtype": "float32", **_BYTES}),
        "mamba-130m": ("ssm", _mamba(24, 768)),
        "mamba-2.8b": ("ssm", _mamba(64, 2560)),
        "s5-toy": ("s5", {**_S5, "layers": 2, "embed": 32, "states": 16, "sequence": 32, "batch": 16}),
        "s5-path-x": ("s5", {**_S5, "layers": 6, "embed": 128, "states": 128, "sequence": 16_384, "remat": "full"}),
        "gpt-toy-decode": ("decode", _decode("gpt", _TOY)),
        "gpt3-175b-decode": ("decode", _decode("gpt", _gpt3(96, 12288, 96)) | {"batch": 256}),
        "llama-toy-decode": ("decode", _decode("llama", {**_TOY, "kv_heads": 2, "mlp": 192})),
        "llama3-8b-decode": ("decode", _decode("llama", _llama3(32, 4096, 32, 14336)) | {"batch": 64}),
        "llama3-70b-decode": ("decode", _decode("llama", _llama3(80, 8192, 64, 28672)) | {"batch": 64}),
        "mixtral-toy": ("moe", _TOY_MOE),
        "mixtral-8x7b": ("moe", _MIXTRAL),
        "deepseek-moe-toy": (
            "moe",
            {**_TOY_MOE, "layers": 3, "first_dense": 1, "dense_mlp": 192, "shared_mlp": 128, "normalize": False},
        ),
        "deepseek-moe-16b": ("moe", _DEEPSEEK),
        "moe-toy": (
            "moe",
            {**_TOY_MOE, "dispatch": "onehot", "group": 64, "gated": False, "every": 2, "dense_mlp": 128, "tied": True},
        ),
        "moe-380m": ("moe", _alpa_moe(8, 768, 8)),
        "moe-1.3b": ("moe", _alpa_moe(16, 768, 16)),
        "moe-2.4b": ("moe", _alpa_moe(16, 1024, 16)),
        "moe-10b": ("moe", _alpa_moe(16, 1536, 32)),
        "moe-27b": ("moe", _alpa_moe(16, 2048, 48)),
        "moe-70b": ("moe", _alpa_moe(32, 2048, 64)),
        "dlrm-toy": (
            "dlrm",
            {**_DLRM, "rows": (2048, 1024, 512, 37, 8), "dim": 16, "bottom": (32, 16), "top": (64, 1), "batch": 64},
        ),
        "dlrm-criteo": ("dlrm", {**_DLRM, "rows": _CRITEO, "metrics": ("loss",)}),
        "gnn-toy": ("gnn", {**_TOY_GRAPH, "batch": 8}),
        "meshgraphnet": ("gnn", {**_GRAPH, "nodes": 5233, "edges": 30_898, "inputs": 12, "outputs": 3, "batch": 8}),
        "graphcast-toy": (
            "gnn",
            {**_TOY_GRAPH, "mesh_nodes": 20, "to_mesh_edges": 90, "from_mesh_edges": 180, "hidden": 1, "batch": 8},
        ),
        "graphcast": ("gnn", {**_GRAPHCAST, "batch": 32}),
        "fnet-toy": ("fnet", _TOY_FNET),
        "fnet-filter-toy": ("fnet", {**_TOY_FNET, "mixing": "filter"}),
        "fnet-base": ("fnet", {**_FNET, "layers": 12, "embed": 768, "mlp": 3072}),
        "fnet-large": ("fnet", {**_FNET, "layers": 24, "embed": 1024, "mlp": 4096}),
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
