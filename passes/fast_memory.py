"""The fast memory of a TPU, and what its compiler's peak counts.

The compiler keeps intermediate arrays in the chip's vector memory where they fit, the shortest lived first, then
arguments that are read from there; the rest is in main memory. What it reports as peak is the arguments and the larger
of the two memories' own peaks. A loop's stacked result in fast memory counts twice while an iteration writes its part.
(Read off buffer assignments of compiled programs.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MIB = 1 << 20
# Vector memory of one device, of which the compiler leaves 16 MiB to the operations themselves.
# As `jax.experimental.pallas.tpu` lists it per chip.
VECTOR_MEMORY_BYTES: Mapping[str, int] = {
    "v4": 16 * MIB,
    "v5e": 128 * MIB,
    "v5p": 64 * MIB,
    "v6e": 128 * MIB,
    "v7x": 64 * MIB,
}
SCOPED_BYTES = 16 * MIB


def fast_bytes(chip: str) -> int:
    """Bytes of fast memory that arrays may take on a chip of this name; 0 where there is none."""
    return max(0, VECTOR_MEMORY_BYTES.get(chip, 0) - SCOPED_BYTES)


def in_fast_memory(
    spans: Sequence[tuple[int, int, float]], end: int, capacity_bytes: float, first: int | None = None
) -> list[bool]:
    """Which of the arrays (start, stop, bytes) live in fast memory: the shortest lived first, as long as they fit.

    The `first` so many of them (all by default) go before the others.
    """
    level = np.zeros(end + 1)
    fits = [False] * len(spans)
    late = len(spans) if first is None else first
    for i in sorted(range(len(spans)), key=lambda i: (i >= late, spans[i][1] - spans[i][0], spans[i][2])):
        start, stop, size = spans[i]
        if size <= capacity_bytes and level[start:stop].max(initial=0.0) + size <= capacity_bytes:
            level[start:stop] += size
            fits[i] = True
    return fits
