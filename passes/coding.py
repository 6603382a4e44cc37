"""Lists of strategies as arrays of numbers, so that thousands of them are priced at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from passes.groups import Slot
from passes.strategies import ARRIVING, Axes, Strategy


class AxesNumbers:
    """A number for every order of every set of mesh axes that occurs; 0 is for none of them."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._numbers: dict[Axes, int] = {(): 0}
        self._pieces = [1.0]

    def of(self, axes: Axes) -> int:
        number = self._numbers.get(axes)
        if number is None:
            number = self._numbers[axes] = len(self._pieces)
            pieces = 1.0
            for a in axes:
                pieces *= self._sizes[a]
            self._pieces.append(pieces)
        return number

    @property
    def pieces(self) -> np.ndarray:
        """Into how many pieces the axes of each number cut."""
        return np.array(self._pieces)

    @property
    def count(self) -> int:
        return len(self._pieces)


class Coded:
    """One list of strategies. Every array has one entry per strategy; those of axes hold their numbers."""

    def __init__(self, strategies: tuple[Strategy, ...], numbers: AxesNumbers) -> None:
        self.strategies, self.numbers = strategies, numbers
        self._slots: dict[Slot, np.ndarray] = {}
        self._shared: dict[int, np.ndarray] = {}
        self.has_copy = np.array([s.shared is not None for s in strategies])

    def of(self, slot: Slot) -> np.ndarray:
        """The axes on a class, or on a factor of the leading operation."""
        if slot not in self._slots:
            self._slots[slot] = self._array(s.axes_of(slot) for s in self.strategies)
        return self._slots[slot]

    def copy_of(self, c: int) -> np.ndarray:
        """The axes on a class of the shared copy, or of the value itself where there is none."""
        if c not in self._shared:
            self._shared[c] = self._array((s.classes if s.shared is None else s.shared)[c] for s in self.strategies)
        return self._shared[c]

    def unfinished(self) -> np.ndarray:
        """The axes over which the result stays a partial sum, whatever their order."""
        return self._array(tuple(sorted(s.partial)) for s in self.strategies)

    def arriving(self) -> np.ndarray:
        """The axes over which operands of a sum arrive as partial sums, whatever their order."""
        return self._array(tuple(sorted(s.axes_of(ARRIVING))) for s in self.strategies)

    def pieces(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Into how many pieces an array is cut whose dimensions have these axes."""
        total = np.ones(len(self.strategies))
        for array in arrays:
            total = total * self.numbers.pieces[array]
        return total

    def distinct(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(a strategy of each distinct combination, the combination of each strategy)."""
        key = np.zeros(len(self.strategies), dtype=np.int64)
        for array in arrays:
            key = key * self.numbers.count + array
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        return first, which.reshape(-1)

    def _array(self, axes: Iterable[Axes]) -> np.ndarray:
        return np.fromiter((self.numbers.of(a) for a in axes), dtype=np.int64, count=len(self.strategies))
