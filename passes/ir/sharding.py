"""How a value is cut over a logical mesh, and what the layout search hands to lowering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OPEN: tuple[str, ...] = ("*",)
"""In a pin: a dimension that may be cut in any way."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """Mesh axes per dimension, major to minor; `partial` are axes over which the value is an unfinished sum."""

    dims: tuple[tuple[str, ...], ...]
    partial: tuple[str, ...] = ()

    @staticmethod
    def replicated(rank: int) -> Sharding:
        return Sharding(((),) * rank)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes that cut some dimension, in order of dimensions."""
        return tuple(a for d in self.dims for a in d)

    def without(self, axis: str) -> Sharding:
        return Sharding(tuple(tuple(a for a in d if a != axis) for d in self.dims), self.partial)

    def with_axis(self, dim: int, axis: str, position: int | None = None) -> Sharding:
        """Cut `dim` by `axis` as well, as the minor-most axis unless `position` says otherwise."""
        old = self.dims[dim]
        at = len(old) if position is None else position
        new = (*old[:at], axis, *old[at:])
        return Sharding((*self.dims[:dim], new, *self.dims[dim + 1 :]), self.partial)

    def local_shape(self, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one device's block (rounded up where a dimension does not divide)."""
        out = []
        for n, axes in zip(shape, self.dims, strict=True):
            k = 1
            for a in axes:
                k *= sizes[a]
            out.append(-(-n // k))
        return tuple(out)

    def cut(self, sizes: Mapping[str, int]) -> int:
        """Number of different blocks."""
        k = 1
        for a in self.axes:
            k *= sizes[a]
        return k

    def divides(self, shape: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
        for n, axes in zip(shape, self.dims, strict=True):
            k = 1
            for a in axes:
                k *= sizes[a]
            if n % k:
                return False
        return True

    def __str__(self) -> str:
        text = ", ".join("*".join(d) if d else "-" for d in self.dims)
        return f"[{text}]" + (f" partial {'*'.join(self.partial)}" if self.partial else "")


@dataclass(frozen=True, slots=True)
class Reduction:
    """How an operation finishes a partial sum: `dim` None is an all-reduce, else a reduce-scatter onto that result
    dimension."""

    axes: tuple[str, ...]
    dim: int | None
    combine: str = "sum"


@dataclass(frozen=True, slots=True)
class Step:
    """One collective of a reshard on the way to the sharding `to`.

    kind: "all_gather" | "all_to_all" | "permute" | "slice" | "all_reduce" | "reduce_scatter".
    `axes` are the mesh axes involved, `dim` the dimension gathered / left, `to_dim` the dimension cut (all_to_all,
    slice). `size_bytes` is the larger of one device's operand and result (0 for a slice).
    """

    kind: str
    axes: tuple[str, ...]
    to: Sharding
    size_bytes: int
    dim: int = -1
    to_dim: int = -1


@dataclass(frozen=True, slots=True)
class Use:
    """Where an operand comes from when an operation wants it in another sharding.

    `source` is the value that is moved: the operand itself, or what it repeats (a broadcast is made anew from its moved
    source). `target` is the sharding that the source is moved to. `shared` says that the moves start from the
    source's shared copy, not from the source. Uses with one `copy` number are served by one moved copy, made at the
    first of them; moves under different numbers are really repeated.
    """

    source: int
    target: Sharding
    shared: bool
    copy: int


@dataclass(frozen=True, slots=True)
class OpDecision:
    """What lowering must do at one operation.

    `operands[i]` is the sharding that operand i is brought to before the operation (None: whatever it has),
    `results[i]` the sharding of result i afterwards, `reductions` are applied in order to the local result. `manual`
    asks for a local program (shard_map) so that the compiler has no choice left.
    """

    operands: tuple[Sharding | None, ...]
    results: tuple[Sharding | None, ...]
    reductions: tuple[Reduction, ...] = ()
    manual: bool = False
    uses: tuple[Use | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Packed:
    """One array of a pack, and which of the program's collectives it is.

    `place` and `at`: ("copy", value) the shared copy, ("use", copy number) a moved copy, ("output", position) a result
    of the program, ("result", operation) a sum that the operation leaves unfinished. `value` is the array that moves,
    `dims` per stage the dimension that is gathered or scattered (-1: none), `size_bytes` of the first stage as in
    `Step`, `op` the operation it belongs to (-1: it leaves the program).
    """

    place: str
    at: int
    value: int
    dims: tuple[int, ...]
    size_bytes: int
    op: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Arrays that are sent as one. `stages` are the collectives, one after the other: ("all_gather", axes) alone, or
    any of ("reduce_scatter", axes) and ("all_reduce", axes)."""

    stages: tuple[tuple[str, tuple[str, ...]], ...]
    members: tuple[Packed, ...]


Dims = tuple[tuple[str, ...], ...]
MoveKey = tuple[tuple[int, ...], int, Dims, Dims]  # shape, bytes of an element, source, target


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole program's cut: the sharding of every value at its definition, shared copies, and decisions per operation.

    `shared[v]` is the one resharded copy of value v that several consumers use (a parameter gathered once for the
    forward and the backward pass). `moves` are the steps of every reshard that the plan has; equal ones are made
    equally. A value whose sharding has `partial` axes is an unfinished sum over them. `packs` are the collectives that
    travel together.
    """

    axis_sizes: tuple[tuple[str, int], ...]
    values: Mapping[int, Sharding]
    shared: Mapping[int, Sharding]
    ops: Mapping[int, OpDecision]
    moves: Mapping[MoveKey, tuple[Step, ...]] = field(default_factory=dict)
    packs: tuple[Pack, ...] = ()
