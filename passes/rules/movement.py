"""Operations that move elements without computing: a dimension passes where it stays as it is, and is whole where
not."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, field, replace

from passes.rules.exchanges import Border, Turn
from passes.rules.notation import DimFactors, Rule, letters, rule_of
from passes.rules.registry import View, rule


@rule("broadcast_in_dim")
def broadcast_in_dim(view: View) -> Rule:
    shape = view.results[0]
    names = letters(len(shape))
    operand = [
        (names[to],) if size == shape[to] else ()
        for size, to in zip(view.operands[0], view.params["broadcast_dimensions"], strict=True)
    ]
    rest = tuple(tuple(() for _ in s) for s in view.operands[1:])
    return rule_of((tuple(operand), *rest), (tuple((n,) for n in names),), dict(zip(names, shape, strict=True)))


@rule("transpose")
def transpose(view: View) -> Rule:
    names = letters(len(view.operands[0]))
    return rule_of(
        (tuple((n,) for n in names),),
        (tuple((names[p],) for p in view.params["permutation"]),),
        dict(zip(names, view.operands[0], strict=True)),
    )


@rule("squeeze")
def squeeze(view: View) -> Rule:
    return reshape_rule(view.operands[0], view.results[0])


@rule("reshape")
def reshape(view: View) -> Rule:
    """A reshape, of the operand transposed where `dimensions` says so (gradients of grouped convolutions)."""
    source, order = view.operands[0], view.params.get("dimensions")
    if order is None:
        return reshape_rule(source, view.results[0])
    found = reshape_rule(tuple(source[d] for d in order), view.results[0])
    operand: list[DimFactors] = [() for _ in source]
    for d, factors in zip(order, found.operands[0], strict=True):
        operand[d] = factors
    return replace(found, operands=(tuple(operand),))


def reshape_rule(source: tuple[int, ...], target: tuple[int, ...]) -> Rule:
    """Dimensions are matched in runs of equal products; the first dimensions of both sides of a run may be cut alike.

    A block of a dimension is one stretch of the array (within each element of the dimensions before it) only where the
    same elements stand before it on both sides, which is at the beginning of a run. There it may be cut into as many
    pieces as divide both dimensions, and nothing moves: exactly these cuts are legal. Where the running products
    divide each other ("(h e) -> h e") the other dimensions are named as well, so that what is merged stays known.
    """
    left: list[DimFactors] = [() for _ in source]
    right: list[DimFactors] = [() for _ in target]
    sizes: dict[str, int] = {}
    if 0 in source:
        return _without_elements(source, target)
    i = j = 0
    while i < len(source) or j < len(target):
        run_i, run_j = i, j
        a = source[i] if i < len(source) else 1
        b = target[j] if j < len(target) else 1
        i, j = min(i + 1, len(source)), min(j + 1, len(target))
        while a != b:
            if a < b:
                a, i = a * source[i], i + 1
            else:
                b, j = b * target[j], j + 1
        _factor_run(source[run_i:i], target[run_j:j], run_i, run_j, left, right, sizes)
    return rule_of((tuple(left),), (tuple(right),), sizes)


def _without_elements(source: tuple[int, ...], target: tuple[int, ...]) -> Rule:
    """An empty array has nothing to cut."""
    return rule_of((tuple(() for _ in source),), (tuple(() for _ in target),), {})


def _factor_run(
    source: tuple[int, ...],
    target: tuple[int, ...],
    i0: int,
    j0: int,
    left: list[DimFactors],
    right: list[DimFactors],
    sizes: dict[str, int],
) -> None:
    """Cut one run of equal product at the union of both sides' boundaries, from the major end."""
    bounds_s, bounds_t = _boundaries(source), _boundaries(target)
    cuts = sorted({*bounds_s, *bounds_t} - {1})
    previous = 1
    factors: list[tuple[int, int, str]] = []  # (running product before, after, name), major first
    for c in cuts:
        if c % previous:
            _first_of_run(source, target, i0, j0, left, right, sizes)
            return
        factors.append((previous, c, f"d{len(sizes) + len(factors)}"))
        previous = c
    sizes.update({name: high // low for low, high, name in factors})
    for bounds, dims, base in ((bounds_s, left, i0), (bounds_t, right, j0)):
        low = 1
        for k, high in enumerate(bounds):
            dims[base + k] = tuple(n for lo, hi, n in factors if lo >= low and hi <= high and hi > lo)
            low = high


def _first_of_run(
    source: tuple[int, ...],
    target: tuple[int, ...],
    i0: int,
    j0: int,
    left: list[DimFactors],
    right: list[DimFactors],
    sizes: dict[str, int],
) -> None:
    """What the first dimensions of a run have in common; the rest of the run stays whole."""
    i = next(k for k, n in enumerate(source) if n > 1)
    j = next(k for k, n in enumerate(target) if n > 1)
    common = math.gcd(source[i], target[j])
    if common == 1:
        return
    name = f"d{len(sizes)}"
    sizes[name] = common
    for dims, at, n, side in ((left, i0 + i, source[i], "s"), (right, j0 + j, target[j], "t")):
        dims[at] = (name,) if n == common else (name, f"{name}.{side}")
        if n > common:
            sizes[f"{name}.{side}"] = n // common


def _boundaries(shape: tuple[int, ...]) -> list[int]:
    return list(itertools.accumulate(shape, operator.mul))


def _shifting(size: int, out: int) -> bool:
    """Whether two arrays differ by few elements along a dimension that both can be cut along: then a block of one is a
    block of the other and a little of its neighbours'."""
    return size != out and 4 * abs(size - out) <= max(size, out) and math.gcd(size, out) > 1


@dataclass(slots=True)
class _Shift:
    """A rule in the making, of an operation with one operand and one result of the same rank."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    left: list[DimFactors] = field(default_factory=list)
    right: list[DimFactors] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    reduced: dict[str, str] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    halos: list[Border] = field(default_factory=list)
    kind: str = "movement"

    def __post_init__(self) -> None:
        self.left, self.right = [() for _ in self.source], [() for _ in self.target]

    def dim(self, d: int, in_source: int = 1, in_target: int = 1) -> None:
        """A dimension that passes through, of which either side may have a multiple."""
        name = f"d{d}"
        self.sizes[name] = self.source[d] // in_source
        for dims, times, minor in ((self.left, in_source, f"{name}.s"), (self.right, in_target, f"{name}.p")):
            dims[d] = (name,) if times == 1 else (name, minor)
            if times > 1:
                self.sizes[minor] = times
                self.kind = "window"

    def shift(self, d: int, low: int) -> None:
        """The result begins `low` elements before the operand and is about as long."""
        common = math.gcd(self.source[d], self.target[d])
        self.dim(d, self.source[d] // common, self.target[d] // common)
        self.halos.append(Border(f"d{d}", 0, d, low, -low, self.source[d] - self.target[d]))
        self.kind = "window"

    def rule(self, more_operands: int = 0) -> Rule:
        found = rule_of(
            (tuple(self.left), *(() for _ in range(more_operands))), (tuple(self.right),), self.sizes,
            reduced=self.reduced, indexed=self.indexed, kind=self.kind,
        )  # fmt: skip
        return replace(found, halos=tuple(self.halos))


@rule("slice")
def slice_(view: View) -> Rule:
    """Dimensions taken in full pass through; of one taken with a stride that divides it, every block gives its own. Of
    one that loses a few elements blocks are completed by their neighbours; a small part is put together as a sum of
    what each device holds of it."""
    made = _Shift(view.operands[0], view.results[0])
    strides = view.params.get("strides") or (1,) * len(made.source)
    starts = view.params["start_indices"]
    for d, (n, m) in enumerate(zip(made.source, made.target, strict=True)):
        if n == m * strides[d] and starts[d] < strides[d]:
            made.dim(d, strides[d])
        elif strides[d] == 1 and _shifting(n, m):
            made.shift(d, -starts[d])
        elif strides[d] == 1 and 4 * m <= n and m and _adds_up(view):
            _part(made, d)
    return made.rule()


def _part(made: _Shift, d: int) -> None:
    """Of a dimension a part is read that may lie on any device."""
    made.sizes[f"d{d}"] = made.source[d]
    made.left[d] = (f"d{d}",)
    made.reduced[f"d{d}"] = "sum"
    made.indexed.add(f"d{d}")
    made.kind = "window"


def _adds_up(view: View) -> bool:
    """Whether elements can be put together as sums in which all addends but one are zero."""
    return not any(name == "bool" or name.startswith("key") for name in view.operand_dtypes[:1])


@rule("pad")
def pad(view: View) -> Rule:
    """Dimensions that are not padded pass through; where every element gets the same padding beside it (the reverse of
    taking every n-th) blocks are padded each on their own. Where a few elements are added blocks are completed by their
    neighbours; of an array that is put into a much longer one, each device makes its block."""
    made = _Shift(view.operands[0], view.results[0])
    for d, (low, _, inner) in enumerate(view.params["padding_config"]):
        n, m = made.source[d], made.target[d]
        if m == n * (inner + 1) and 0 <= low <= inner:
            made.dim(d, 1, inner + 1)
        elif not inner and _shifting(n, m):
            made.shift(d, int(low))
        elif not inner and 0 < 4 * n <= m:
            made.sizes[f"d{d}"] = m
            made.right[d] = (f"d{d}",)
            made.indexed.add(f"d{d}")
            made.kind = "window"
    return made.rule(more_operands=1)


@rule("roll")
def roll(view: View) -> Rule:
    """Along the turned dimension blocks are put together from those of other devices."""
    dim = view.params["dimension"]
    found = view.along(set(), kind="window")
    return replace(found, halos=(Turn(found.operands[0][dim][0], 0, dim, view.params["by"]),))


@rule("within")
def within(view: View) -> Rule:
    """An array in a range of positions along one dimension, another one or a number elsewhere."""
    found = view.elementwise(1.0)
    return replace(found, indexed=frozenset(found.results[0][view.params["dimension"]]))


@rule("rev")
def rev(view: View) -> Rule:
    return view.along(set(view.params["dimensions"]))


@rule("concatenate")
def concatenate(view: View) -> Rule:
    return view.along({view.params["dimension"]})


@rule("stack", "unstack")
def stack(view: View) -> Rule:
    """The dimension that counts the arrays stays whole; the others pass through."""
    axis = view.params["axis"]
    one, many = (view.results[0], view.operands) if view.primitive == "stack" else (view.operands[0], view.results)
    names = letters(len(one))
    whole = tuple((n,) if d != axis else () for d, n in enumerate(names))
    part = tuple((n,) for d, n in enumerate(names) if d != axis)
    sizes = {n: size for d, (n, size) in enumerate(zip(names, one, strict=True)) if d != axis}
    parts = tuple(part for _ in many)
    return rule_of(parts, (whole,), sizes) if view.primitive == "stack" else rule_of((whole,), parts, sizes)


@rule("tile")
def tile(view: View) -> Rule:
    return view.along({d for d, (a, b) in enumerate(zip(view.operands[0], view.results[0], strict=True)) if a != b})


@rule("split")
def split(view: View) -> Rule:
    return view.along({view.params["axis"]})


@rule("dynamic_slice")
def dynamic_slice(view: View) -> Rule:
    """Dimensions taken in full pass through; one position of a dimension may lie on any device (as for `slice`)."""
    made = _Shift(view.operands[0], view.results[0])
    for d, (n, m) in enumerate(zip(made.source, made.target, strict=True)):
        if n == m:
            made.dim(d)
        elif m == 1 and n >= 4 and _adds_up(view):
            _part(made, d)
    return made.rule(more_operands=len(view.operands) - 1)


@rule("dynamic_update_slice")
def dynamic_update_slice(view: View) -> Rule:
    """Operand, update, then scalar starts: dimensions updated in full pass through; one position is written by the
    device that holds it."""
    operand, update = view.operands[:2]
    names = letters(len(operand))
    alone = [n != m for n, m in zip(operand, update, strict=True)]
    fixed = {name for name, n, m in zip(names, operand, update, strict=True) if n != m and m != 1}
    whole = tuple((n,) for n in names)
    part = tuple(() if other else (n,) for n, other in zip(names, alone, strict=True))
    rest = tuple(() for _ in view.operands[2:])
    written = {n for a, n in zip(alone, names, strict=True) if a and n not in fixed}
    kind = "window" if written else "movement"
    sizes = dict(zip(names, operand, strict=True))
    return rule_of((whole, part, *rest), (whole,), sizes, fixed=fixed, indexed=written, kind=kind)


@rule("optimization_barrier")
def optimization_barrier(view: View) -> Rule:
    """Each result is its own operand: nothing is shared between them."""
    sizes: dict[str, int] = {}
    arrays = []
    for i, s in enumerate(view.results):
        names = tuple(f"v{i}d{d}" for d in range(len(s)))
        sizes.update(zip(names, s, strict=True))
        arrays.append(tuple((n,) for n in names))
    return rule_of(tuple(arrays), tuple(arrays), sizes)
