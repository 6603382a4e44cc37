"""Time of an operation on one device from its FLOP and the bytes it moves: roofline times an efficiency by size.

A matrix product that would take t at the chip's sustained rate takes t + ramp^0.75 * t^0.25: small products reach
little of the peak, smoothly. One constant (the ramp) meets the published v7x curve, 105, 350, 679, 893, 956 TFLOP/s at
512, 1024, 2048, 4096, 32768 (tpu-recipes), within 4 %. Where the caller knows the product's shape, its sides are padded
to the chip's tile first. The launch of an operation is not included: how many operations a compiler fuses into one is
known to the caller only (`Chip.launch_overhead_s`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_model.hardware import Chip

Number = Any  # float, int or numpy array

_RAMP_POWER = 0.75


@dataclass(frozen=True, slots=True)
class Family:
    """How a family of operations uses the chip.

    `matrix`: on the matrix unit, else on the vector lanes. `work`: what one counted FLOP costs. `memory_share`: the
    part of the sustained memory bandwidth that its access pattern gets. All but plain streams are assumed.
    """

    matrix: bool
    work: float
    memory_share: float


FAMILIES: Mapping[str, Family] = {
    "contraction": Family(True, 1.0, 1.0),
    "convolution": Family(True, 1.25, 1.0),
    "ragged": Family(True, 1.2, 1.0),
    "elementwise": Family(False, 1.0, 1.0),
    "reduction": Family(False, 1.0, 1.0),
    "copy": Family(False, 1.0, 1.0),
    "random": Family(False, 1.0, 1.0),
    "gather": Family(False, 1.0, 0.5),
    "scatter": Family(False, 1.0, 0.25),
    "sort": Family(False, 4.0, 0.25),
    "fft": Family(False, 2.0, 0.5),
    "linalg": Family(False, 4.0, 0.5),
    "other": Family(False, 1.0, 0.5),
}


def op_time_s(
    chip: Chip,
    flop: Number,
    moved_bytes: Number,
    dtype: str,
    kind: str,
    sides: tuple[Number, Number, Number] | None = None,
) -> Number:
    """Seconds of an operation, or of many at once (numpy arrays broadcast; numbers give a float).

    `flop`: floating-point operations on this device. `moved_bytes`: bytes read and written in its memory. `dtype`:
    numpy name of a product's operands. `kind`: one of FAMILIES. `sides`: rows, columns and depth (m, n, k) of a product
    on this device, where known. Grows with flop and bytes; zero for nothing. Raises ValueError for an unknown kind.
    """
    if kind not in FAMILIES:
        raise ValueError(f"unknown kind of operation {kind!r} (one of {', '.join(FAMILIES)})")
    family = FAMILIES[kind]
    work = np.asarray(flop, dtype=np.float64) * family.work
    if sides is not None and family.matrix:
        work = work * padding(chip, sides)
    moved = np.asarray(moved_bytes, dtype=np.float64)
    rate = chip.memory_bandwidth_bytes_per_s * chip.memory_efficiency * family.memory_share
    busy = _matrix_s(chip, work, dtype) if family.matrix else work / chip.vector_flop_per_s
    seconds = np.maximum(busy, moved / rate)
    return float(seconds) if seconds.ndim == 0 else seconds


def padding(chip: Chip, sides: tuple[Number, Number, Number]) -> Number:
    """How many times more work a product of sides (m, n, k) becomes when they are padded to the chip's tile (>= 1)."""
    factor: Number = 1.0
    for side, tile in zip(sides, chip.tile, strict=True):
        n = np.maximum(np.asarray(side, dtype=np.float64), 1.0)
        factor = factor * np.ceil(n / tile) * tile / n
    return factor


def contraction_efficiency(chip: Chip, flop: Number, dtype: str) -> Number:
    """Share of the chip's peak (0 ... 1) that products of `flop` > 0 reach where memory does not limit them."""
    work = np.asarray(flop, dtype=np.float64)
    return work / _matrix_s(chip, work, dtype) / chip.peak_flop_per_s(dtype)


def ramped_s(sustained_s: np.ndarray, ramp_s: Number) -> np.ndarray:
    """Seconds of a product that would take `sustained_s` at the sustained rate: the curve of the module's text."""
    return sustained_s + ramp_s**_RAMP_POWER * sustained_s ** (1 - _RAMP_POWER)


def _matrix_s(chip: Chip, flop: np.ndarray, dtype: str) -> np.ndarray:
    return ramped_s(flop / (chip.peak_flop_per_s(dtype) * chip.matmul_efficiency), chip.matmul_ramp_s)
