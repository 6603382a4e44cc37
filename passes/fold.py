"""Identical layers decide together: classes of groups that cost the same and stand alike to their neighbours.

Found from prices alone (three rounds of colour refinement), whatever made the layers alike: an unrolled loop, a list of
blocks, a ladder of equal stages. A choice per class prices the whole program exactly, because all its groups and all
their meetings are counted; what folding gives up is only that layers of one class may differ.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from passes.occupancy import Occupancy
from passes.price import Priced


@dataclass(frozen=True, slots=True)
class Folding:
    """`classes[k]` are the groups that take one decision, in program order; `class_of` says which is whose."""

    classes: tuple[tuple[int, ...], ...]
    class_of: dict[int, int]

    @property
    def trivial(self) -> bool:
        """Whether every group decides for itself."""
        return len(self.classes) == len(self.class_of)


def unfolded(priced: Priced) -> Folding:
    """Every group a class of its own."""
    return Folding(tuple((g,) for g in priced.order), {g: k for k, g in enumerate(priced.order)})


def fold(priced: Priced, occupied: Occupancy, rounds: int = 3) -> Folding:
    """Groups with equal prices, equal memory (whenever it is taken) and equal wants to equally priced neighbours.

    Every round of `rounds` looks one neighbour further, and tells more layers apart at the ends of a chain.
    """
    pricer, grouping = priced.pricer, priced.program.grouping
    held: dict[int, Counter[int]] = {}
    for item in occupied.items:
        held.setdefault(item.group, Counter())[id(item.usage)] += 1
    colours: dict[object, int] = {}
    first = {}
    for g in priced.order:
        own = pricer.node_key(grouping.groups[g], priced.strategies[g])
        key = (own, frozenset(held.get(g, Counter()).items()))
        first[g] = colours.setdefault(key, len(colours))
    keys: dict[object, int] = {}
    meetings = []
    for w in grouping.wants:
        u, v = pricer.place_of(w).group, w.consumer
        pair = pricer.pair_key(w, priced.strategies[u], priced.strategies[v])
        meetings.append((u, v, keys.setdefault(pair, len(keys))))
    class_of = first
    for _ in range(rounds):
        around: dict[int, list[tuple[int, int, int]]] = {g: [] for g in priced.order}
        for u, v, number in meetings:
            around[u].append((0, number, class_of[v]))
            around[v].append((1, number, class_of[u]))
        refined: dict[object, int] = {}
        class_of = {g: refined.setdefault((class_of[g], tuple(sorted(around[g]))), len(refined)) for g in priced.order}
    classes: dict[int, list[int]] = {}
    for g, k in class_of.items():
        classes.setdefault(k, []).append(g)
    return Folding(tuple(map(tuple, classes.values())), {g: k for k, c in enumerate(classes.values()) for g in c})
