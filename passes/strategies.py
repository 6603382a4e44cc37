"""The legal ways to cut one decision group: every assignment of mesh axes to its classes or to its operation's
factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from passes.groups import Group, Slot
from passes.ir import Reduction
from passes.rules import Rule

Axes = tuple[str, ...]
ARRIVING = "+"  # the pseudo-factor of a sum: axes over which its operands arrive as partial sums
_KEEP = -1  # choice for a partial sum: leave it unfinished


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to cut a group.

    classes: axes per class, major to minor. factors: axes per factor of the leading operation (contracted ones
    included). reductions: how partial sums are finished; `dim` is a class here. shared: axes per class of the copy
    that several consumers of a member use together, or None where each makes its own. partial: axes over which the
    result stays an unfinished sum, for the sum that reads it; that sum finds them under the factor ARRIVING.
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

    `shares` says whether some member has several consumers that may use one moved copy together.
    """
    if group.rule is not None and group.rule.exact:
        base: tuple[Strategy, ...] = (_exactly(group, group.rule, sizes),)
    else:
        base = tuple(_of_operation(group, sizes)) if group.rule is not None else tuple(_plain(group.limits, sizes))
    return base if not shares else tuple(s for b in base for s in _with_shared(b, group, sizes))


def enumerate_as(
    group: Group, sizes: Mapping[str, int], shares: bool, classes: tuple[Axes, ...]
) -> tuple[Strategy, ...]:
    """The strategies under which the classes are cut by exactly these axes, without looking at the others."""
    rule = group.rule
    if rule is not None and rule.exact:
        base = tuple(s for s in (_exactly(group, rule, sizes),) if s.classes == classes)
    elif rule is not None:
        of = {a: c for c, on in enumerate(classes) for a in on}
        picks = [[p for p in _choices(group) if _lands(group, p) == of.get(a)] for a in sizes]
        base = tuple(s for s in _of_operation(group, sizes, picks) if s.classes == classes)
    else:
        fits = all(n % _product(sizes, on) == 0 for n, on in zip(group.limits, classes, strict=True))
        base = (Strategy(classes),) if fits else ()
    return base if not shares else tuple(s for b in base for s in _with_shared(b, group, sizes))


def _lands(group: Group, pick: tuple[str | None, int | None]) -> int | None:
    """The class that an axis cuts under a choice of `_choices`, if any."""
    factor, finish = pick
    if factor in group.factors:
        return group.factors.index(factor)
    return None if finish == _KEEP else finish


def enumerate_tied(group: Group, sizes: Mapping[str, int], tied: tuple[str, str], shares: bool) -> tuple[Strategy, ...]:
    """The strategies in which two axes go everywhere together, the first major."""
    if group.rule is not None and group.rule.exact:
        return enumerate_strategies(group, sizes, shares)
    both = "*".join(tied)
    merged = {
        (both if a == tied[0] else a): (n * sizes[tied[1]] if a == tied[0] else n)
        for a, n in sizes.items()
        if a != tied[1]
    }

    def spell(axes: Axes) -> Axes:
        return tuple(b for a in axes for b in (tied if a == both else (a,)))

    out = []
    for s in enumerate_strategies(group, merged, shares):
        out.append(
            Strategy(
                tuple(map(spell, s.classes)),
                tuple((f, spell(a)) for f, a in s.factors),
                tuple(Reduction(spell(r.axes), r.dim, r.combine) for r in s.reductions),
                tuple(map(spell, s.shared)) if s.shared is not None else None,
                spell(s.partial),
            )
        )
    return tuple(out)


def enumerate_moves(
    group: Group, strategy: Strategy, axis: str, sizes: Mapping[str, int], shares: bool
) -> tuple[Strategy, ...]:
    """Every place for one axis while the others stay as `strategy` has them, in every order within a dimension."""
    if group.rule is not None and group.rule.exact:
        return enumerate_strategies(group, sizes, shares)
    rest = _without(strategy, axis)
    base = tuple(_placed(group, rest, axis, sizes))
    return base if not shares else tuple(s for b in base for s in _with_shared(b, group, sizes))


def _exactly(group: Group, rule: Rule, sizes: Mapping[str, int]) -> Strategy:
    """The one way to cut an operation that is written for a mesh: as it says if this is the mesh, else not at all."""
    if tuple(sizes.items()) != rule.mesh:
        return Strategy(tuple(() for _ in group.factors))
    return Strategy(tuple(rule.exact.get(f, ()) for f in group.factors), tuple(rule.exact.items()))


def _without(strategy: Strategy, axis: str) -> Strategy:
    def drop(axes: Axes) -> Axes:
        return tuple(a for a in axes if a != axis)

    return Strategy(
        tuple(map(drop, strategy.classes)),
        tuple((f, drop(a)) for f, a in strategy.factors if drop(a)),
        tuple(Reduction(drop(r.axes), r.dim, r.combine) for r in strategy.reductions if drop(r.axes)),
        None,
        drop(strategy.partial),
    )


def _placed(group: Group, rest: Strategy, axis: str, sizes: Mapping[str, int]) -> Iterator[Strategy]:
    yield rest
    size = sizes[axis]
    if group.rule is None:
        for k, on in enumerate(rest.classes):
            if group.limits[k] % (size * _product(sizes, on)) == 0:
                for longer in _insertions(on, axis):
                    yield Strategy((*rest.classes[:k], longer, *rest.classes[k + 1 :]))
        return
    for factor, finish in _choices(group):
        if factor is None:
            continue
        on = dict(rest.factors).get(factor, ())
        if factor != ARRIVING and not group.rule.fits(factor, size * _product(sizes, on)):
            continue
        c: int | None = group.factors.index(factor) if factor in group.factors else finish
        if c is not None and c != _KEEP and group.limits[c] % (size * _product(sizes, rest.classes[c])):
            continue
        for longer in _insertions(on, axis):
            yield _with_factor(group, rest, factor, longer, axis, finish)


def _with_factor(group: Group, rest: Strategy, factor: str, on: Axes, axis: str, finish: int | None) -> Strategy:
    """`rest` with the axes of one factor replaced by `on`, and what `axis` leaves unfinished finished as asked."""
    assert group.rule is not None
    factors = (*((f, a) for f, a in rest.factors if f != factor), (factor, on))
    classes, reductions, partial = list(rest.classes), list(rest.reductions), rest.partial
    if factor in group.factors:
        c = group.factors.index(factor)
        scattered = rest.classes[c][len(on) - 1 :]
        classes[c] = (*on, *scattered)
    elif finish is None:
        combine = group.rule.reduced.get(factor, "sum")
        old = next((r.axes for r in reductions if r.dim is None), ())
        reductions = [r for r in reductions if r.dim is not None] + [Reduction((*old, axis), None, combine)]
    elif finish == _KEEP:
        partial = (*partial, axis)
    else:
        old = next((r.axes for r in reductions if r.dim == finish), ())
        classes[finish] = (*classes[finish], axis)
        others = [r for r in reductions if r.dim is not None and r.dim != finish] + [Reduction((*old, axis), finish)]
        reductions = sorted(others, key=lambda r: r.dim or 0) + [r for r in reductions if r.dim is None]
    return Strategy(tuple(classes), factors, tuple(reductions), None, partial)


def _insertions(on: Axes, axis: str) -> Iterator[Axes]:
    for i in range(len(on), -1, -1):
        yield (*on[:i], axis, *on[i:])


def _choices(group: Group) -> list[tuple[str | None, int | None]]:
    """What one axis may do: nothing, cut a factor, or cut a summed factor whose sum is then reduced (None),
    scattered onto a class, or kept unfinished."""
    rule = group.rule
    assert rule is not None
    classes = [c for c in range(len(group.factors)) if group.limits[c] > 1]
    finishes: list[int | None] = [None, *classes, *([_KEEP] if group.defers else [])]
    out: list[tuple[str | None, int | None]] = [(None, None)]
    for f in rule.cuttable():
        out += [(f, k) for k in finishes] if rule.reduced.get(f) == "sum" else [(f, None)]
    if group.sums:
        out += [(ARRIVING, k) for k in finishes]
    return out


def same_choices(group: Group) -> tuple[object, ...]:
    """Equal for groups that have equal strategies."""
    rule = group.rule
    if rule is None:
        return (tuple(group.limits),)
    sizes, reduced = tuple(sorted(rule.sizes.items())), tuple(sorted(rule.reduced.items()))
    own = (tuple(group.limits), group.factors, group.defers, group.sums)
    told = (rule.fixed, rule.halos, rule.mesh, tuple(rule.exact.items()), rule.own)
    return (*own, rule.operands, rule.results, sizes, reduced, *told)


def _plain(limits: list[int], sizes: Mapping[str, int]) -> Iterator[Strategy]:
    axes = tuple(sizes)
    for places in itertools.product(range(-1, len(limits)), repeat=len(axes)):
        on = [tuple(a for a, p in zip(axes, places, strict=True) if p == c) for c in range(len(limits))]
        if all(limits[c] % _product(sizes, a) == 0 for c, a in enumerate(on)):
            for order in itertools.product(*(itertools.permutations(a) for a in on)):
                yield Strategy(tuple(order))


def _of_operation(
    group: Group, sizes: Mapping[str, int], choices: Sequence[Sequence[tuple[str | None, int | None]]] | None = None
) -> Iterator[Strategy]:
    """Each axis cuts nothing, a factor of the result, or a reduced factor that is then summed or scattered onto a
    class; `choices` per axis where not every one is asked for."""
    rule = group.rule
    assert rule is not None
    axes = tuple(sizes)
    class_of = {f: c for c, f in enumerate(group.factors)}
    for picks in itertools.product(*(choices or [_choices(group)] * len(axes))):
        by_factor: dict[str, list[str]] = {}
        scattered: dict[int, list[str]] = {}
        summed: list[str] = []
        kept: list[str] = []
        combine = "sum"
        for a, pick in zip(axes, picks, strict=True):
            if pick[0] is None:
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
    group: Group,
    by_factor: dict[str, list[str]],
    scattered: dict[int, list[str]],
    class_of: dict[str, int],
    sizes: Mapping[str, int],
) -> bool:
    assert group.rule is not None
    for f, on in by_factor.items():
        if f != ARRIVING and not group.rule.fits(f, _product(sizes, on)):
            return False
        if f in class_of:
            total = _product(sizes, on) * _product(sizes, scattered.get(class_of[f], []))
            if group.limits[class_of[f]] % total:
                return False
    for c, on in scattered.items():
        if group.factors[c] not in by_factor and group.limits[c] % _product(sizes, on):
            return False
    return True


def _with_shared(strategy: Strategy, group: Group, sizes: Mapping[str, int]) -> Iterator[Strategy]:
    """The strategy itself, and with a shared copy from which one axis, or every axis, has been gathered, or in which
    one axis cuts another class (tokens that go to their experts once, for forward and backward pass)."""
    yield strategy
    used = [a for on in strategy.classes for a in on]
    gathers: list[set[str]] = [{a} for a in used]
    if len(used) > 1:
        gathers.append(set(used))
    copies = [tuple(tuple(a for a in on if a not in gone) for on in strategy.classes) for gone in gathers]
    for axis in used:
        rest = tuple(tuple(a for a in on if a != axis) for on in strategy.classes)
        for c, on in enumerate(rest):
            fits = group.limits[c] % (sizes[axis] * _product(sizes, on)) == 0
            if fits and axis not in strategy.classes[c]:
                copies.append((*rest[:c], (*on, axis), *rest[c + 1 :]))
    for shared in copies:
        yield Strategy(strategy.classes, strategy.factors, strategy.reductions, shared, strategy.partial)


def _product(sizes: Mapping[str, int], axes: Iterable[str]) -> int:
    n = 1
    for a in axes:
        n *= sizes[a]
    return n
