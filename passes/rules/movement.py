"""Operations that move elements without computing: a dimension passes where it stays as it is, and is whole where
not."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import replace

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


@rule("slice")
def slice_(view: View) -> Rule:
    """Dimensions taken in full pass through; of one taken with a stride that divides it, every block gives its own."""
    source, target = view.operands[0], view.results[0]
    strides = view.params.get("strides") or (1,) * len(source)
    starts = view.params["start_indices"]
    left: list[DimFactors] = [() for _ in source]
    right: list[DimFactors] = [() for _ in target]
    sizes: dict[str, int] = {}
    for d, (n, m) in enumerate(zip(source, target, strict=True)):
        if n == m * strides[d] and starts[d] < strides[d]:
            name = f"d{d}"
            sizes[name] = m
            right[d] = (name,)
            left[d] = (name,) if strides[d] == 1 else (name, f"{name}.s")
            if strides[d] > 1:
                sizes[f"{name}.s"] = strides[d]
    kind = "window" if any(s > 1 for s in strides) else "movement"
    return rule_of((tuple(left),), (tuple(right),), sizes, kind=kind)


@rule("pad")
def pad(view: View) -> Rule:
    """Dimensions that are not padded pass through; where every element gets the same padding beside it (the reverse of
    taking every n-th) blocks are padded each on their own."""
    source, target = view.operands[0], view.results[0]
    left: list[DimFactors] = [() for _ in source]
    right: list[DimFactors] = [() for _ in target]
    sizes: dict[str, int] = {}
    kind = "movement"
    for d, (low, _, inner) in enumerate(view.params["padding_config"]):
        if target[d] == source[d] * (inner + 1) and 0 <= low <= inner:
            name = f"d{d}"
            sizes[name] = source[d]
            left[d] = (name,)
            right[d] = (name,) if inner == 0 else (name, f"{name}.p")
            if inner:
                sizes[f"{name}.p"] = inner + 1
                kind = "window"
    return rule_of((tuple(left), ()), (tuple(right),), sizes, kind=kind)


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
    return view.along({d for d, (a, b) in enumerate(zip(view.operands[0], view.results[0], strict=True)) if a != b})


@rule("dynamic_update_slice")
def dynamic_update_slice(view: View) -> Rule:
    """Operand, update, then scalar starts: dimensions updated in full pass through."""
    return view.along({d for d, (a, b) in enumerate(zip(view.operands[0], view.operands[1], strict=True)) if a != b})


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
