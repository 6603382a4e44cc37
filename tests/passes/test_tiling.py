"""Padded sizes against layouts seen in compiled TPU programs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.tiling import stored_bytes


@pytest.mark.parametrize(
    ("shape", "itemsize", "size"),
    [
        ((), 4, 512),  # s32[]{:T(128)}
        ((64,), 4, 512),  # f32[64]{0:T(128)}
        ((512,), 4, 2048),  # f32[512]{0:T(512)}
        ((768,), 4, 4096),  # f32[768]{0:T(1024)}
        ((128,), 1, 512),  # pred[128]{0:T(512)(128)(4,1)}
        ((4, 64), 4, 4 * 128 * 4),  # f32[4,64]{1,0:T(4,128)}
        ((2, 64), 4, 2 * 128 * 4),  # f32[2,64]{1,0:T(2,128)}
        ((256, 16), 4, 256 * 16 * 4),  # f32[256,16]{0,1:T(8,128)}: the long dimension is minor
        ((4, 128, 8, 16), 2, 4 * 128 * 8 * 16 * 2),  # bf16[4,128,8,16]{1,3,2,0:T(8,128)(2,1)}
        ((16, 8, 16), 4, 16 * 8 * 128 * 4),  # f32[16,8,16]{2,1,0:T(8,128)}
        ((128, 128), 1, 128 * 128),  # pred[128,128]{0,1:T(8,128)(4,1)}
    ],
)
def test_tiles_of_a_tpu(shape: tuple[int, ...], itemsize: int, size: int) -> None:
    assert stored_bytes(shape, itemsize, "tpu") == size


@given(st.lists(st.integers(1, 300), max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_padding_never_shrinks_and_whole_tiles_are_free(shape: list[int], itemsize: int) -> None:
    dense = stored_bytes(tuple(shape), itemsize, "gpu")
    assert stored_bytes(tuple(shape), itemsize, "tpu") >= dense
    whole = (*shape, 32, 128)
    assert stored_bytes(whole, itemsize, "tpu") == stored_bytes(whole, itemsize, "cpu")


def test_order_of_dimensions_does_not_matter() -> None:
    assert stored_bytes((3, 200, 7), 4, "tpu") == stored_bytes((200, 7, 3), 4, "tpu")


def test_nothing_takes_nothing() -> None:
    assert stored_bytes((0, 8), 4, "tpu") == 0
