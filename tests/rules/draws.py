"""What the examples of rules are drawn from: small sizes (even, odd and one), element types, and values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

SIZES = (4, 8, 6, 2, 1, 3, 5, 12)
FLOATS = ("float32", "bfloat16", "float16")
INTS = ("int32", "uint8", "int16", "uint32")

Example = tuple[Callable[..., Any], tuple[Any, ...]]  # a program and its arguments


class Draw:
    """Choices of one example, and its values.

    The first example that hypothesis draws is always the simplest one: every choice the first. With a `label` the
    choices are turned by numbers that depend on it, so that a single example is a random one as well.
    """

    def __init__(self, data: st.DataObject, label: str = "") -> None:
        self.data = data
        self.turns = np.random.default_rng(zlib.crc32(label.encode())) if label else None
        self.random = np.random.default_rng(data.draw(st.integers(0, 2**16)))

    def choice(self, options: Sequence[Any]) -> Any:
        turn = 0 if self.turns is None else int(self.turns.integers(len(options)))
        return options[(self.data.draw(st.integers(0, len(options) - 1)) + turn) % len(options)]

    def size(self, *options: int) -> int:
        return self.choice(options or SIZES)

    def shape(self, rank: int) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(rank))

    def floats(self, *shape: int, dtype: str = "float32", low: float = -2.0, high: float = 2.0) -> Any:
        return jnp.asarray(self.random.uniform(low, high, shape), dtype)

    def ints(self, *shape: int, low: int = 0, high: int = 9, dtype: str = "int32") -> Any:
        """Whole numbers from `low` up to and without `high`."""
        return jnp.asarray(self.random.integers(low, high, shape), dtype)

    def bools(self, *shape: int) -> Any:
        return jnp.asarray(self.random.integers(0, 2, shape), bool)

    def complexes(self, *shape: int) -> Any:
        return jnp.asarray(self.random.uniform(-2, 2, shape) + 1j * self.random.uniform(-2, 2, shape), "complex64")

    def apart(self, *shape: int) -> Any:
        """Floats of which no two are equal, so that sorting and picking have one answer."""
        return jnp.asarray(self.random.permutation(math.prod(shape)).reshape(shape), "float32")

    def positive_definite(self, *batch: int, n: int) -> Any:
        a = self.random.uniform(-1, 1, (*batch, n, n))
        return jnp.asarray(a @ np.swapaxes(a, -1, -2) + n * np.eye(n), "float32")


class Seeded(Draw):
    """Choices of one example without hypothesis, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def choice(self, options: Sequence[Any]) -> Any:
        return options[int(self.random.integers(len(options)))]
