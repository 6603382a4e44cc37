"""Identical layers decide together: classes of groups that cost the same and stand alike to their neighbours.

Found from what prices depend on (three rounds of colour refinement), before anything is priced and for all meshes at
once, whatever made the layers alike: an unrolled loop, a list of blocks, a ladder of equal stages. A choice per class
prices the whole program exactly, because all its groups and all their meetings are counted; what folding gives up is
only that layers of one class may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from passes.groups import Want
from passes.ir import Sharding
from passes.likeness import group_likeness, place_of, want_likeness
from passes.occupancy import Occupancy, occupancy
from passes.program import Program

# Programs of so many groups are not folded: every group decides for itself, and the answer is exact.
_SMALL = 250
# Every round looks one neighbour further, and tells more layers apart at the ends of a chain.
_ROUNDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """Groups of class `u` and class `v` that want the same of each other. `wants` are those of the first pair, each
    with whether it goes from v to u; `pairs` are all that meet so."""

    u: int
    v: int
    wants: tuple[tuple[Want, bool], ...]
    pairs: list[tuple[int, int]]


@dataclass(frozen=True)
class Folding:
    """`classes[k]` are the groups that take one decision, in program order; `class_of` says which is whose.

    `own[k]` are wants within a group (the first of class k). Memory: `kinds` are the (class, spec) that occur, and item
    i of `occupied` is of kind `item_kind[i]`.
    """

    program: Program
    occupied: Occupancy
    classes: tuple[tuple[int, ...], ...]
    class_of: Mapping[int, int]
    meetings: tuple[Meeting, ...]
    own: tuple[tuple[Want, ...], ...]
    kinds: tuple[tuple[int, int], ...]
    item_kind: np.ndarray

    @property
    def trivial(self) -> bool:
        """Whether every group decides for itself."""
        return len(self.classes) == len(self.class_of)

    @cached_property
    def start(self) -> np.ndarray:
        return np.array([i.start for i in self.occupied.items], dtype=np.int64)

    @cached_property
    def end(self) -> np.ndarray:
        return np.array([i.end for i in self.occupied.items], dtype=np.int64)

    @cached_property
    def unfolded(self) -> Folding:
        """The same with every group a class of its own."""
        if self.trivial:
            return self
        return _folding(self.program, self.occupied, {g: k for k, g in enumerate(self.program.grouping.groups)})


def fold(program: Program, platform: str, pins: Mapping[int, Sharding] | None = None, small: int = _SMALL) -> Folding:
    """Groups with equal prices, equal pins, equal memory (whenever it is taken) and equal wants to such neighbours are
    one class; in programs of up to `small` groups every group is one."""
    occupied = occupancy(program, platform)
    groups = program.grouping.groups
    if len(groups) <= small:
        return _folding(program, occupied, {g: k for k, g in enumerate(groups)})
    held: dict[int, Counter[int]] = {}
    for item in occupied.items:
        held.setdefault(item.group, Counter())[item.spec] += 1
    fixed: dict[int, list[tuple[tuple[int, ...], Sharding]]] = {}
    for value, sharding in (pins or {}).items():
        place = program.grouping.place(value)
        if place is not None:
            fixed.setdefault(place.group, []).append((place.dims, sharding))
    colours: dict[object, int] = {}
    class_of = {
        g: colours.setdefault(
            (group_likeness(program, group), frozenset(held.get(g, Counter()).items()), tuple(fixed.get(g, ()))),
            len(colours),
        )
        for g, group in groups.items()
    }
    likes: dict[object, int] = {}
    wants = [
        (place_of(program, w).group, w.consumer, likes.setdefault(want_likeness(program, w), len(likes)))
        for w in program.grouping.wants
    ]
    for _ in range(_ROUNDS):
        around: dict[int, list[tuple[int, int, int]]] = {g: [] for g in groups}
        for u, v, like in wants:
            around[u].append((0, like, class_of[v]))
            around[v].append((1, like, class_of[u]))
        refined: dict[object, int] = {}
        class_of = {g: refined.setdefault((class_of[g], tuple(sorted(around[g]))), len(refined)) for g in groups}
    return _folding(program, occupied, class_of)


def _folding(program: Program, occupied: Occupancy, class_of: Mapping[int, int]) -> Folding:
    classes: dict[int, list[int]] = {}
    for g, k in class_of.items():
        classes.setdefault(k, []).append(g)
    place = {k: n for n, k in enumerate(classes)}
    number = {g: place[k] for g, k in class_of.items()}
    meetings, own = _meetings(program, number)
    kinds: dict[tuple[int, int], int] = {}
    item_kind = [kinds.setdefault((number[i.group], i.spec), len(kinds)) for i in occupied.items]
    of_itself = tuple(own.get(members[0], ()) for members in classes.values())
    return Folding(
        program, occupied, tuple(map(tuple, classes.values())), number, meetings, of_itself, tuple(kinds),
        np.array(item_kind, dtype=np.int64),
    )  # fmt: skip


def _meetings(program: Program, class_of: Mapping[int, int]) -> tuple[tuple[Meeting, ...], dict[int, tuple[Want, ...]]]:
    """Every kind of meeting of two groups once, and per group what it wants of itself."""
    likes: dict[object, int] = {}
    between: dict[tuple[int, int], list[tuple[int, bool, Want]]] = {}
    own: dict[int, tuple[Want, ...]] = {}
    for w in program.grouping.wants:
        u, v = place_of(program, w).group, w.consumer
        if u == v:
            own[u] = (*own.get(u, ()), w)
        else:
            like = likes.setdefault(want_likeness(program, w), len(likes))
            between.setdefault((min(u, v), max(u, v)), []).append((like, u > v, w))
    known: dict[object, Meeting] = {}
    for (u, v), wants in between.items():
        wants.sort(key=lambda one: one[:2])
        key = (class_of[u], class_of[v], *(one[:2] for one in wants))
        if key not in known:
            known[key] = Meeting(class_of[u], class_of[v], tuple((w, back) for _, back, w in wants), [])
        known[key].pairs.append((u, v))
    return tuple(known.values()), own
