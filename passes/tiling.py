"""Bytes that an array really takes in a device's memory.

A TPU stores the two minor dimensions of an array in tiles of 8 x 128 words of four bytes; narrower elements share a
word between rows. Fewer than eight rows take tiles of 1, 2 or 4 rows. The compiler chooses which dimensions are minor;
arrays are laid out to waste little, so the least padded choice is taken here. Seen in the layouts of compiled programs:
f32[4,64]{1,0:T(4,128)}, bf16[4,128,8,16]{1,3,2,0:T(8,128)(2,1)}, f32[768]{0:T(1024)}, s32[]{:T(128)}.
CPUs and GPUs store elements densely.
"""

from __future__ import annotations

import math
from collections.abc import Collection

LANES = 128
SUBLANES = 8
WORD_BYTES = 4


def stored_bytes(shape: tuple[int, ...], itemsize: int, platform: str, major: Collection[int] = frozenset()) -> int:
    """Bytes of an array of this (local) shape on a "tpu", "gpu" or "cpu"; `itemsize` in bytes.

    Dimensions in `major` are minor only where no others are left.
    """
    elements = math.prod(shape)
    if platform != "tpu" or elements == 0 or itemsize == 0:
        return elements * itemsize
    if itemsize > WORD_BYTES:  # kept as several arrays of words
        return itemsize // WORD_BYTES * stored_bytes(shape, WORD_BYTES, platform, major)
    packing = WORD_BYTES // itemsize
    dims = [(n, i in major) for i, n in enumerate(shape) if n > 1]
    if len(dims) < 2:
        tile = min(max(_power_of_two(elements), LANES * packing), LANES * SUBLANES * packing)
        return _up(elements, tile) * itemsize
    least = math.inf
    free = sum(not held for _, held in dims)
    for i, (minor, lanes_held) in enumerate(dims):
        for j, (rows, rows_held) in enumerate(dims):
            if i != j and not (lanes_held and free) and not (rows_held and free > 1):
                tile = min(max(_power_of_two(rows), packing), SUBLANES)
                padded = elements // (minor * rows) * _up(minor, LANES) * _up(rows, tile)
                least = min(least, padded)
    return int(least) * itemsize


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
