"""Turns propagated shardings into pins that the search can keep, so that what is left to decide is how, not where.

Every group is pinned to the way of cutting it that agrees with propagation. Where nothing legal gives that (a plan cuts
evenly, and keeps whole what an operation needs whole), the closest by bytes is taken, and what it differs in is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from passes.groups import Group, Place
from passes.ir import OPEN, Dims, Graph, Sharding
from passes.program import Program
from passes.strategies import enumerate_as, enumerate_strategies, same_choices

_Wanted = Mapping[tuple[tuple[int, ...], Dims], int]  # (classes per dimension, axes per dimension) -> bytes


@dataclass(frozen=True, slots=True)
class Departure:
    """A value that the plan cuts otherwise than propagation says, because nothing legal gives that."""

    value: int
    propagated: Sharding
    planned: Sharding


def completing(
    program: Program, sizes: Mapping[str, int], completed: Mapping[int, Sharding], pins: Mapping[int, Sharding]
) -> dict[int, Sharding]:
    """Pins that hold every group to its propagated sharding, as far as a plan can have it, and to `pins` in any case.

    A group that the pins alone leave no way to cut is left out: the search says what is wrong with them.
    """
    out: dict[int, Sharding] = {}
    known: dict[object, tuple[Dims, ...]] = {}
    held: dict[int, list[tuple[Place, Sharding]]] = {}
    for v, sharding in pins.items():
        place = program.grouping.place(v)
        if place is not None:
            held.setdefault(place.group, []).append((place, sharding))
    for g, group in program.grouping.groups.items():
        wanted = _wanted(program, group, completed)
        if not wanted:
            continue
        exact, stays = _exact(wanted, len(group.limits)), held.get(g, ())
        if exact is not None and _all_keep(exact, stays) and enumerate_as(group, sizes, False, exact):
            options = [exact]
        else:
            key = same_choices(group)
            if key not in known:
                known[key] = tuple(dict.fromkeys(s.classes for s in enumerate_strategies(group, sizes, False)))
            options = [c for c in known[key] if _all_keep(c, stays)]
        if options:
            best = max(options, key=lambda c: _score(c, wanted))
            out.update(_pins(program, group, best, completed))
    return out


def departures(graph: Graph, values: Mapping[int, Sharding], completed: Mapping[int, Sharding]) -> Iterator[Departure]:
    """Planned shardings that differ from propagated ones, in the order of values."""
    for v, made in sorted(values.items()):
        if v in completed and graph.values[v].shape and completed[v].dims != made.dims:
            yield Departure(v, completed[v], made)


def _wanted(program: Program, group: Group, completed: Mapping[int, Sharding]) -> _Wanted:
    out: dict[tuple[tuple[int, ...], Dims], int] = {}
    for v in group.members:
        place = program.grouping.place(v)
        if place is not None and v in completed:
            key = (place.dims, completed[v].dims)
            out[key] = out.get(key, 0) + program.graph.values[v].size_bytes
    return out


def _exact(wanted: _Wanted, count: int) -> Dims | None:
    """The axes of every class where all members want the same of them and nothing where they are whole."""
    found: dict[int, tuple[str, ...]] = {}
    for places, dims in wanted:
        for c, axes in zip(places, dims, strict=True):
            if (c < 0 and axes) or axes == OPEN or found.setdefault(c, axes) != axes:
                return None
    found.pop(-1, None)
    return tuple(found[c] for c in range(count)) if len(found) == count else None


def _score(classes: Dims, wanted: _Wanted) -> tuple[int, int, int]:
    """Bytes cut exactly as wanted; bytes times dimensions; and, all else equal, fewer axes."""
    exact = close = 0
    for (places, dims), size in wanted.items():
        right = sum(axes in (OPEN, on) for on, axes in zip(_form(classes, places), dims, strict=True))
        exact += size * (right == len(dims))
        close += size * right
    return exact, close, -sum(map(len, classes))


def _form(classes: Dims, places: Iterable[int]) -> Dims:
    return tuple(classes[c] if c >= 0 else () for c in places)


def _all_keep(classes: Dims, pins: Iterable[tuple[Place, Sharding]]) -> bool:
    """Whether values at these places are cut as their pins say."""
    return all(
        want in (OPEN, on) for place, pin in pins for want, on in zip(pin.dims, _form(classes, place.dims), strict=True)
    )


def _pins(
    program: Program, group: Group, classes: Dims, completed: Mapping[int, Sharding]
) -> Iterator[tuple[int, Sharding]]:
    """Pins of a group's arguments, of all members that are as they should be, and of as many others as it takes to fix
    every class. Values that follow another one because nothing says otherwise then do so in the search, too."""
    left = set(range(len(classes)))
    arguments = [v for v in group.members if v in program.graph.inputs]
    for v in (*arguments, *(v for v in group.members if v not in arguments)):
        place = program.grouping.place(v)
        if place is None:
            continue
        form = _form(classes, place.dims)
        as_wanted = v in completed and all(a in (OPEN, b) for a, b in zip(completed[v].dims, form, strict=True))
        if v in arguments or as_wanted or left & set(place.dims):
            yield v, Sharding(form)
            left -= set(place.dims)
