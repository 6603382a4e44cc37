"""What holds for the vision, diffusion, recurrent and encoder-decoder families: published sizes, FLOP, forms."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import jax
import numpy as np
import pytest

from parallelizer import zoo

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Counted in the released checkpoints (T5, torchvision's ResNets and ViTs, Stable Diffusion 1, Mamba).
EXACT = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "resnet-50": 25_557_032,
    "wide-resnet-50-2": 68_883_240,
    "vit-b": 86_567_656,
    "vit-l": 304_326_632,
    "vit-h": 632_045_800,
    "unet-sd": 859_520_964,
    "mamba-130m": 129_135_360,
    "mamba-2.8b": 2_768_345_600,
}
# Papers' figures, of which the counts differ by less than this share: rounding, and 3 % in Alpa's largest model.
ROUNDED = {
    "wide-resnet-250m": (250e6, 0.02),
    "wide-resnet-1b": (1e9, 0.01),
    "wide-resnet-2b": (2e9, 0.02),
    "wide-resnet-4b": (4e9, 0.01),
    "wide-resnet-6.8b": (6.8e9, 0.015),
    "wide-resnet-13b": (13e9, 0.03),
    "dit-s-2": (33e6, 0.01),
    "dit-b-2": (130e6, 0.01),
    "dit-l-2": (458e6, 0.01),
    "dit-xl-2": (675e6, 0.01),
    "lstm-66m": (66e6, 0.01),
    "lstm-1.8b": (1.8e9, 0.015),
}
# The papers' and torchvision's multiply-adds of one image, forward; some leave smaller products out.
MULTIPLY_ADDS = {
    "resnet-50": 4.09e9,
    "wide-resnet-50-2": 11.40e9,
    "vit-b": 17.56e9,
    "vit-l": 61.55e9,
    "dit-xl-2": 118.6e9,
}


def test_every_name_of_these_families_is_small_or_has_its_published_size() -> None:
    modules = ("t5", "vit", "resnet", "unet", "dit", "lstm", "ssm")
    mine = {n for n in zoo.names() if type(zoo.model(n).config).__module__.rsplit(".", 1)[-1] in modules}
    assert {n for n in mine if "-toy" not in n} == {*EXACT, *ROUNDED}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_of_the_released_checkpoint(name: str) -> None:
    assert zoo.model(name).num_parameters == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    published, share = ROUNDED[name]
    assert zoo.model(name).num_parameters == pytest.approx(published, rel=share)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_flop_are_six_for_every_published_multiply_add(name: str) -> None:
    assert zoo.model(name).flop_per_token == pytest.approx(6 * MULTIPLY_ADDS[name], rel=0.015)


def _product_flop(jaxpr: Any) -> int:
    """2 FLOP per multiply-add of the matrix products and convolutions; loops multiplied, complex products four real."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _product_flop(inner)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval
            real = 4 if np.issubdtype(left.dtype, np.complexfloating) else 1
            total += real * 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left.shape[d] for d in contracted)
        if eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            # Zeros between the elements of a dilated operand are not multiplied.
            zeros = math.prod(eqn.params["lhs_dilation"])
            taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * taps // zeros
    return total


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t5-toy", {}),
        ("vit-toy", {}),
        ("resnet-toy", {}),
        ("resnet-toy", {"width": 2, "wide_reduce": True}),
        ("unet-toy", {}),
        ("unet-toy-transposed", {}),
        ("dit-toy", {}),
        ("lstm-toy", {}),
        ("lstm-toy", {"hidden": 32, "tied": True}),
        ("mamba-toy", {}),
        ("s5-toy", {}),
        ("gpt-toy-decode", {}),
        ("llama-toy-decode", {}),
    ],
)
def test_the_flop_formula_counts_the_products_of_the_program(name: str, options: dict[str, Any]) -> None:
    remat = {} if name.endswith("decode") else {"remat": "none"}
    model = zoo.model(name, **{**options, **remat})
    jaxpr = jax.make_jaxpr(model.step)(model.state_shapes(), model.batch_shapes())
    found = _product_flop(jaxpr.jaxpr) / (model.batch * model.sequence)
    assert found == pytest.approx(model.flop_per_token, rel=1e-3)


@pytest.mark.parametrize("name", ["t5-toy", "vit-toy", "dit-toy", "mamba-toy", "s5-toy"])
def test_scanned_and_unrolled_layers_agree(name: str) -> None:
    scanned, unrolled = zoo.model(name, remat="full"), zoo.model(name, scan=False, remat="none")
    family = import_module(type(scanned.config).__module__)
    params, stacked = (jit(m.init)(jax.random.key(0))["params"] for m in (unrolled, scanned))
    batch, key = scanned.example_batch(jax.random.key(1)), jax.random.key(2)
    loss_a, grads_a = jit(jax.value_and_grad(partial(family.loss, scanned.config)))(stacked, batch, key)
    loss_b, grads_b = jit(jax.value_and_grad(partial(family.loss, unrolled.config)))(params, batch, key)
    assert np.allclose(loss_a, loss_b, rtol=1e-6)
    sides = [(grads_a[s], grads_b[s]) for s in ("encoder", "decoder")] if name == "t5-toy" else [(grads_a, grads_b)]
    for a, b in sides:
        for i in range(scanned.config.layers):
            for x, y in zip(jax.tree.leaves(a["layers"]), jax.tree.leaves(b[f"layers_{i}"]), strict=True):
                assert np.allclose(x[i], y, rtol=1e-4, atol=2e-5)
