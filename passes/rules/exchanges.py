"""What blocks of a cut dimension need of each other while an operation runs: borders, turned positions, totals.

Each kind says which messages one device sends when its factor is cut into so many pieces: a list of (kind of
collective, elements along the dimension, which of its kind), where a permute counts what is sent and an all-gather what
has come together. They are priced (`passes/borders.py`) and carried out (`parallelizer/neighbours.py`) from this one
description.
"""

from __future__ import annotations

from dataclasses import dataclass

Message = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Border:
    """Elements of operand `operand` before and after the block along `dim`.

    Where blocks of the result do not keep in step with the operand's, `drift` is by how many elements the whole operand
    is longer than what blocks of the result stand for: block p of P then needs `drift` * p / P elements more before it
    and `drift` * (p + 1) / P fewer after it. All devices send what the neediest one asks for.
    """

    factor: str
    operand: int
    dim: int
    before: int
    after: int
    drift: int = 0

    def needs(self, place: int, pieces: int) -> tuple[int, int]:
        """Elements before and after that the block at `place` reads; fewer than none of which it lacks no border."""
        step = self.drift // pieces
        return self.before + step * place, self.after - step * (place + 1)

    def reach(self, pieces: int) -> tuple[int, int]:
        """Elements that are exchanged before and after: the most that any block needs."""
        if not self.drift:
            return self.before, self.after
        ends = [self.needs(p, pieces) for p in (0, pieces - 1)]
        return max(0, *(b for b, _ in ends)), max(0, *(a for _, a in ends))

    def length(self, pieces: int, block: int) -> int:
        """Elements that a device works on once its block of `block` elements is completed."""
        return block + self.before + self.after - self.drift // pieces

    def fits(self, pieces: int, size: int) -> bool:
        """Whether what is needed lies in the neighbouring blocks of a dimension of `size`."""
        return self.drift % pieces == 0 and max(self.reach(pieces)) <= size // pieces

    def messages(self, pieces: int, size: int) -> tuple[Message, ...]:
        """Up to two permutes: from the block before, from the block after."""
        return tuple(("permute", n, side) for side, n in enumerate(self.reach(pieces)) if n)


@dataclass(frozen=True, slots=True)
class Turn:
    """The result is operand `operand` turned by `by` positions along `dim`, the last ones coming first again: a block
    is put together from two blocks of other devices, or from its own and one other."""

    factor: str
    operand: int
    dim: int
    by: int

    def parts(self, pieces: int, size: int) -> tuple[tuple[int, int, int], ...]:
        """Where a block comes from, in order: (blocks before it, first element there, elements)."""
        block = size // pieces
        whole, rest = divmod(self.by % size, block)
        parts = (((whole + 1) % pieces, block - rest, rest), (whole % pieces, 0, block - rest))
        return tuple(p for p in parts if p[2])

    def fits(self, pieces: int, size: int) -> bool:
        return True

    def messages(self, pieces: int, size: int) -> tuple[Message, ...]:
        """Up to two permutes; what stays on its device is not sent."""
        return tuple(("permute", n, k) for k, (away, _, n) in enumerate(self.parts(pieces, size)) if away)


@dataclass(frozen=True, slots=True)
class Totals:
    """Every device learns one element along `dim` of every block: what the blocks before it add up to."""

    factor: str
    operand: int
    dim: int

    def fits(self, pieces: int, size: int) -> bool:
        return True

    def messages(self, pieces: int, size: int) -> tuple[Message, ...]:
        return (("all_gather", pieces, 0),)


Exchange = Border | Turn | Totals


@dataclass(frozen=True, slots=True)
class Own:
    """A collective that the operation's own program contains (a user's `psum`): `size_bytes` is the larger of one
    device's operand and result, `runs` how often it stands in one execution."""

    kind: str
    axes: tuple[str, ...]
    elements: int
    size_bytes: int
    runs: int = 1
