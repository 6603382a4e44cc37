"""FLOP of compiled programs: exact products of their dimensions, on every backend, loops multiplied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from parallelizer.aot import devices_for
from parallelizer.compiled import read_flop
from parallelizer.compiled.flop import _meetings

HLO = Path(__file__).resolve().parent / "hlo"
PRODUCT = 2 * 32 * 1024 * 1024


def _compiled(topology: str, run: Callable[..., Any], *shapes: tuple[int, ...]) -> str:
    device = devices_for(topology)[0]
    args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=SingleDeviceSharding(device)) for s in shapes]
    return jax.jit(run).lower(*args).compile().as_text() or ""


@pytest.mark.parametrize(
    "name", ["0.10.2-cpu_8-training", "0.11.2-cpu_8-training", "0.10.2-v5e_2x4-training", "0.11.2-v5e_2x4-training"]
)
def test_three_recomputed_layers_of_two_products(name: str) -> None:
    found = read_flop((HLO / f"{name}.txt").read_text(encoding="utf-8"))
    # Forward 2, recomputed 1 (the last product of a layer is not needed again), backward 2 for each product.
    assert found.flop == 3 * (2 + 1 + 4) * PRODUCT
    assert found.known


@pytest.mark.parametrize("topology", ["cpu:1", "v5e:1x1"])
def test_batched_products_in_a_loop(topology: str) -> None:
    def run(x: Any, w: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(jnp.einsum("bij,bjk->bik", c, w)), None), x, None, length=7)[0]

    found = read_flop(_compiled(topology, run, (6, 64, 128), (6, 128, 128)))
    assert found.flop == 7 * 2 * 6 * 64 * 128 * 128


# With few images the TPU compiler moves a part of the rows into the batch, and pads that.
@pytest.mark.parametrize(("topology", "batch"), [("cpu:1", 4), ("v5e:1x1", 64)])
def test_padding_of_a_convolution_is_not_work(topology: str, batch: int) -> None:
    def run(x: Any, k: Any) -> Any:
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = read_flop(_compiled(topology, run, (batch, 16, 16, 64), (3, 3, 64, 128)))
    # Of the 3 x 16 places along each side two fall outside.
    assert found.flop == 2 * batch * (3 * 16 - 2) ** 2 * 64 * 128


def test_a_loop_that_data_ends_is_marked() -> None:
    def run(x: Any) -> Any:
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 1.0, lambda c: c @ c, x)

    found = read_flop(_compiled("cpu:1", run, (64, 64)))
    assert (found.flop, found.known) == (2 * 64**3, False)


def test_products_that_a_library_runs() -> None:
    text = (
        "HloModule m\n\nENTRY %main (p: f32[8,16]) -> f32[8,4] {\n  %p = f32[8,16]{1,0} parameter(0)\n"
        "  %w = f32[16,4]{1,0} parameter(1)\n"
        '  ROOT %g = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%p, %w), custom_call_target="__cublas$lt$matmul", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
        '"rhs_contracting_dimensions":["0"]}}}\n}\n'
    )
    assert read_flop(text).flop == 2 * 8 * 16 * 4


@given(
    size=st.integers(1, 6),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_meetings_against_counting(
    size: int, window: int, stride: int, pads: tuple[int, int], dilations: tuple[int, int]
) -> None:
    base, rhs = dilations
    padded = [None] * pads[0] + [i // base if i % base == 0 else None for i in range((size - 1) * base + 1)]
    padded += [None] * pads[1]
    out = max(0, (len(padded) - (window - 1) * rhs - 1) // stride + 1)
    counted = sum(padded[o * stride + k * rhs] is not None for o in range(out) for k in range(window))
    assert _meetings(size, window, out, stride, pads[0], base, rhs) == counted
