"""Sharding rules as data: which dimensions of an operation's operands and results are the same *factor*.

The notation is einsum's, one letter or word per factor, blanks between dimensions, commas between operands:

    "b m k, b k n -> b m n"      k occurs on no result: its cut leaves partial sums
    "b s (h e) -> b s h e"       one dimension made of two factors, major first
    "b s -> b s d"               d is new: a broadcast, free to be cut
    "b 1 -> b d"                 1 is a dimension that no factor describes

A strategy of the operation is an assignment of mesh axes to factors; nothing else in the project knows primitives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from passes.rules.exchanges import Exchange, Own

DimFactors = tuple[str, ...]


class RuleError(ValueError):
    """A rule that contradicts itself or the shapes that it is used on."""


# Kinds whose blocks are computed by a local program; the others are left to the compiler's own partitioning, which
# moves nothing for them.
LOCAL_KINDS = frozenset({"contraction", "reduction", "indexing", "window", "lines", "local"})


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operation may be cut.

    operands / results: per array, per dimension, the factors that make it up (major to minor; empty: must stay whole).
    sizes: elements of each factor. reduced: factors on operands only, and how the pieces combine ("sum", "max", "min",
    "and", "or", "prod"). fixed: factors that must not be cut. indexed: factors of an operand or result that are
    addressed by position (rows of an embedding table, a part that is sliced out): cutting them is local once positions
    are shifted and masked.
    flop: floating point operations of the whole operation. kind: "elementwise" | "contraction" | "reduction" |
    "movement" | "indexing" | "window" | "lines" (whole lines or matrices are computed at once, for which compilers have
    no partitioning) | "local" (a user's rule: the operation itself computes the blocks) | "free" (generated in place in
    any sharding) | "opaque" (unknown: everything whole).
    halos: what blocks need of each other when a factor is cut. mesh: the axes that the operation is written for, in
    order, with their sizes. On such a mesh each factor is cut as `exact` says, on another one everything is whole. own:
    the collectives that the operation contains. copied: factors that, once cut, make a device write its blocks anew
    around the operation (rows that are brought to the front): read, written and read again.
    """

    operands: tuple[tuple[DimFactors, ...], ...]
    results: tuple[tuple[DimFactors, ...], ...]
    sizes: Mapping[str, int]
    reduced: Mapping[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()
    flop: float = 0.0
    kind: str = "movement"
    halos: tuple[Exchange, ...] = ()
    mesh: tuple[tuple[str, int], ...] = ()
    exact: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own: tuple[Own, ...] = ()
    copied: frozenset[str] = frozenset()

    @property
    def local(self) -> bool:
        """Whether a cut operation runs as a local program."""
        return self.kind in LOCAL_KINDS

    def exchanges(self, cut: Collection[str]) -> tuple[Exchange, ...]:
        """What blocks need of each other when these factors are cut."""
        return tuple(h for h in self.halos if h.factor in cut)

    def fits(self, factor: str, pieces: int) -> bool:
        """Whether a factor may be cut in so many pieces: without remainder, and with all that a block needs at hand."""
        if self.sizes[factor] % pieces:
            return False
        if pieces == 1:
            return True
        return all(h.fits(pieces, self.length(h.operand, h.dim)) for h in self.halos if h.factor == factor)

    def length(self, operand: int, dim: int) -> int:
        """Elements along a dimension of an operand that factors describe."""
        return math.prod(self.sizes[f] for f in self.operands[operand][dim])

    def cuttable(self) -> tuple[str, ...]:
        """Factors that an axis may be assigned to: the major factor of every dimension where it occurs, size above
        1."""
        minor = {f for dims in (*self.operands, *self.results) for dim in dims for f in dim[1:]}
        seen = dict.fromkeys(f for dims in (*self.results, *self.operands) for dim in dims for f in dim)
        return tuple(f for f in seen if f not in minor and f not in self.fixed and self.sizes[f] > 1)

    def where(self, factor: str) -> list[tuple[str, int, int]]:
        """("operand" | "result", array, dimension) of every occurrence, for explanations."""
        out = []
        for what, arrays in (("operand", self.operands), ("result", self.results)):
            for i, dims in enumerate(arrays):
                out += [(what, i, d) for d, dim in enumerate(dims) if factor in dim]
        return out


_TOKEN = re.compile(r"\(([^()]*)\)|(\S+)")


def _parse_array(text: str) -> tuple[DimFactors, ...]:
    dims: list[DimFactors] = []
    for group, single in _TOKEN.findall(text):
        if single:
            dims.append(() if single == "1" else (single,))
        else:
            dims.append(tuple(group.split()))
    return tuple(dims)


def parse(
    text: str,
    operand_shapes: tuple[tuple[int, ...], ...],
    result_shapes: tuple[tuple[int, ...], ...],
    *,
    sizes: Mapping[str, int] | None = None,
    reduced: Mapping[str, str] | None = None,
    fixed: frozenset[str] | set[str] = frozenset(),
    indexed: frozenset[str] | set[str] = frozenset(),
    flop: float = 0.0,
    kind: str = "movement",
) -> Rule:
    """The rule that `text` describes on arrays of these shapes; `sizes` gives factors that the shapes leave open.

    Raises RuleError naming the dimension and both sizes when the text contradicts the shapes.
    """
    if text.count("->") != 1:
        raise RuleError(f"rule {text!r}: exactly one '->' is needed")
    operands, results = read_arrays(text, bool(operand_shapes))
    for what, arrays, shapes in (("operand", operands, operand_shapes), ("result", results, result_shapes)):
        if len(arrays) != len(shapes):
            raise RuleError(f"rule {text!r}: {len(arrays)} {what}s are described, the operation has {len(shapes)}")
        for i, (dims, shape) in enumerate(zip(arrays, shapes, strict=True)):
            if len(dims) != len(shape):
                raise RuleError(
                    f"rule {text!r}: {what} {i} has {len(dims)} dimensions in the rule, {len(shape)} in the program"
                )
    known = factor_sizes(f"rule {text!r}", (operands, results), (operand_shapes, result_shapes), sizes or {})
    on_results = {f for dims in results for dim in dims for f in dim}
    on_operands = {f for dims in operands for dim in dims for f in dim}
    reduced = dict(reduced or {})
    for f in on_operands - on_results:
        if f not in fixed:
            reduced.setdefault(f, "sum")
    for f in reduced:
        if f in on_results:
            raise RuleError(f"rule {text!r}: factor {f!r} is reduced but occurs on a result")
    return Rule(operands, results, known, reduced, frozenset(fixed), frozenset(indexed), flop, kind)


def read_arrays(
    text: str, has_operands: bool = True
) -> tuple[tuple[tuple[DimFactors, ...], ...], tuple[tuple[DimFactors, ...], ...]]:
    """(operands, results) of a rule's text, without knowing any shape. RuleError where it cannot be read."""
    if text.count("->") != 1:
        raise RuleError(f"rule {text!r}: exactly one '->' is needed")
    left, right = text.split("->")
    for array in (*left.split(","), *right.split(",")):
        rest = _TOKEN.sub(lambda m: "" if m[1] is not None or not set(m[2]) & set("()") else m[2], array)
        if rest.strip():
            raise RuleError(f"rule {text!r}: parentheses of {array.strip()!r} do not match")
    operands = tuple(_parse_array(t) for t in left.split(",")) if left.strip() or has_operands else ()
    return operands, tuple(_parse_array(t) for t in right.split(","))


def factor_sizes(
    name: str,
    arrays: tuple[tuple[tuple[DimFactors, ...], ...], tuple[tuple[DimFactors, ...], ...]],
    shapes: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]],
    given: Mapping[str, int],
) -> dict[str, int]:
    """Elements of every factor of (operands, results) with these shapes. RuleError, beginning with `name`, naming the
    dimensions and sizes that contradict each other, and factors whose size follows from nothing."""
    known, places = dict(given), dict.fromkeys(given, "the sizes given")
    dims = [
        (dim, size, f"{what} {i} dimension {d}")
        for what, described, real in zip(("operand", "result"), arrays, shapes, strict=True)
        for i, (array, shape) in enumerate(zip(described, real, strict=True))
        for d, (dim, size) in enumerate(zip(array, shape, strict=True))
    ]
    for dim, size, at in dims:
        if len(dim) == 1:
            old = known.setdefault(dim[0], size)
            first = places.setdefault(dim[0], at)
            if old != size:
                raise RuleError(
                    f"{name}: factor {dim[0]!r} is {old} in one place and {size} in another: {first}, and {at}"
                )
    for dim, size, at in dims:
        missing = [f for f in dim if f not in known]
        if missing:
            raise RuleError(f"{name}: factors {missing} of a dimension of {size} have no size ({at})")
        product = math.prod(known[f] for f in dim)
        if dim and product != size:
            made = " x ".join(f"{f}={known[f]}" for f in dim)
            raise RuleError(f"{name}: factors {made} make {product}, the dimension has {size} ({at})")
    return known


def rule_of(
    operands: tuple[tuple[DimFactors, ...], ...],
    results: tuple[tuple[DimFactors, ...], ...],
    sizes: Mapping[str, int],
    *,
    reduced: Mapping[str, str] | None = None,
    fixed: frozenset[str] | set[str] = frozenset(),
    indexed: frozenset[str] | set[str] = frozenset(),
    flop: float = 0.0,
    kind: str = "movement",
) -> Rule:
    """A rule from already separated factors (for primitives whose dimension numbers are data)."""
    return Rule(operands, results, dict(sizes), dict(reduced or {}), frozenset(fixed), frozenset(indexed), flop, kind)


def letters(n: int, start: int = 0) -> tuple[str, ...]:
    """Fresh factor names d0, d1, ..."""
    return tuple(f"d{i}" for i in range(start, start + n))
