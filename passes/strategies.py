"""The legal ways to cut one decision group: every assignment of mesh axes to its classes or to its operation's factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from passes.groups import Group, Slot
from passes.ir import Reduction

Axes = tuple[str, ...]
ARRIVING = "+"  # the pseudo-factor of a sum: axes over which its operands arrive as partial sums
_KEEP = -1  # choice for a partial sum: leave it unfinished


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to cut a group.

    classes: axes per class, major to minor. factors: axes per factor of the leading operation (contracted ones included).
    reductions: how partial sums are finished; `dim` is a class here. shared: axes per class of the copy that several
    consumers of a member use together, or None where each makes its own. partial: axes over which the result stays an
    unfinished sum, for the sum that reads it; that sum finds them under the factor ARRIVING.
    """

    classes: tuple[Axes, ...]
    factors: tuple[tuple[str, Axes], ...] = ()
    reductions: tuple[Reduction, ...] = ()
    shared: tuple[Axes, ...] | None = None
    partial: Axes = ()

    def axes_of(self, slot: Slot) -> Axes:
        if slot is None:
            return ()
        if isinstance(slot, int):
            return self.classes[slot]
        for name, axes in self.factors:
            if name == slot:
                return axes
        return ()

    def form(self, slots: tuple[Slot, ...]) -> tuple[Axes, ...]:
        return tuple(self.axes_of(s) for s in slots)


def enumerate_strategies(group: Group, sizes: Mapping[str, int], shares: bool) -> tuple[Strategy, ...]:
    """All strategies of `group` on a mesh with these axis sizes, in a fixed order, the uncut one first.

    `shares` says whether some member has several consumers that may use one gathered copy together.
    """
    base = tuple(_of_operation(group, sizes)) if group.rule is not None else tuple(_plain(group.limits, sizes))
    return base if not shares else tuple(s for b in base for s in _with_shared(b))


def _plain(limits: list[int], sizes: Mapping[str, int]) -> Iterator[Strategy]:
    axes = tuple(sizes)
    for places in itertools.product(range(-1, len(limits)), repeat=len(axes)):
        on = [tuple(a for a, p in zip(axes, places, strict=True) if p == c) for c in range(len(limits))]
        if all(limits[c] % _product(sizes, a) == 0 for c, a in enumerate(on)):
            for order in itertools.product(*(itertools.permutations(a) for a in on)):
                yield Strategy(tuple(order))


def _of_operation(group: Group, sizes: Mapping[str, int]) -> Iterator[Strategy]:
    """Each axis cuts nothing, a factor of the result, or a reduced factor that is then summed or scattered onto a class."""
    rule = group.rule
    assert rule is not None
    axes = tuple(sizes)
    class_of = {f: c for c, f in enumerate(group.factors)}
    cuttable = rule.cuttable()
    choices: list[tuple[str, int | None] | None] = [None]
    for f in cuttable:
        choices.append((f, None))
        if f in rule.reduced and rule.reduced[f] == "sum":
            choices += [(f, c) for c in range(len(group.factors)) if group.limits[c] > 1]
            choices += [(f, _KEEP)] if group.defers else []
    if group.sums:
        choices += [(ARRIVING, None), *((ARRIVING, c) for c in range(len(group.factors)) if group.limits[c] > 1)]
        choices += [(ARRIVING, _KEEP)] if group.defers else []
    for picks in itertools.product(choices, repeat=len(axes)):
        by_factor: dict[str, list[str]] = {}
        scattered: dict[int, list[str]] = {}
        summed: list[str] = []
        kept: list[str] = []
        combine = "sum"
        for a, pick in zip(axes, picks, strict=True):
            if pick is None:
                continue
            by_factor.setdefault(pick[0], []).append(a)
            if pick[0] in rule.reduced or pick[0] == ARRIVING:
                if pick[1] is None:
                    summed.append(a)
                    combine = rule.reduced.get(pick[0], "sum")
                elif pick[1] == _KEEP:
                    kept.append(a)
                else:
                    scattered.setdefault(pick[1], []).append(a)
        if not _legal(group, by_factor, scattered, class_of, sizes):
            continue
        reductions = tuple(Reduction(tuple(on), c) for c, on in sorted(scattered.items()))
        if summed:
            reductions += (Reduction(tuple(summed), None, combine),)
        names = tuple(by_factor)
        for orders in itertools.product(*(itertools.permutations(by_factor[f]) for f in names)):
            factors = tuple(zip(names, orders, strict=True))
            on = dict(factors)
            classes = tuple((*on.get(f, ()), *scattered.get(c, ())) for c, f in enumerate(group.factors))
            yield Strategy(classes, factors, reductions, None, tuple(kept))


def _legal(
    group: Group, by_factor: dict[str, list[str]], scattered: dict[int, list[str]], class_of: dict[str, int], sizes: Mapping[str, int]
) -> bool:
    assert group.rule is not None
    for f, on in by_factor.items():
        if f != ARRIVING and group.rule.sizes[f] % _product(sizes, on):
            return False
        if f in class_of:
            total = _product(sizes, on) * _product(sizes, scattered.get(class_of[f], []))
            if group.limits[class_of[f]] % total:
                return False
    for c, on in scattered.items():
        if group.factors[c] not in by_factor and group.limits[c] % _product(sizes, on):
            return False
    return True


def _with_shared(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy itself, and with a shared copy from which one axis, or every axis, has been gathered."""
    yield strategy
    used = [a for on in strategy.classes for a in on]
    gathers: list[set[str]] = [{a} for a in used]
    if len(used) > 1:
        gathers.append(set(used))
    for gone in gathers:
        shared = tuple(tuple(a for a in on if a not in gone) for on in strategy.classes)
        yield Strategy(strategy.classes, strategy.factors, strategy.reductions, shared, strategy.partial)


def _product(sizes: Mapping[str, int], axes: object) -> int:
    n = 1
    for a in axes:  # type: ignore[attr-defined]
        n *= sizes[a]
    return n
