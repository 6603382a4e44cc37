"""Finds the strategies that agree with propagated shardings, so that what is left to decide is how, not where.

Every group keeps the strategies under which its values are cut as propagation says. Where no strategy gives that (a
plan cuts evenly, and keeps whole what an operation needs whole), those that come closest by bytes are kept, and what
they differ in is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passes.groups import Group
from passes.ir import Dims, Graph, Sharding
from passes.program import Program
from passes.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Departure:
    """A value that the plan cuts otherwise than propagation says, because nothing legal gives that."""

    value: int
    propagated: Sharding
    planned: Sharding


def agreeing(
    program: Program, strategies: Mapping[int, tuple[Strategy, ...]], completed: Mapping[int, Sharding]
) -> dict[int, tuple[Strategy, ...]]:
    """Per group the strategies closest to the propagated shardings: most bytes exactly so, then most dimensions."""
    out = {}
    for g, options in strategies.items():
        wanted = _wanted(program, program.grouping.groups[g], completed)
        if not wanted:
            out[g] = options
            continue
        scores: dict[tuple[tuple[str, ...], ...], tuple[int, int]] = {}
        for s in options:
            if s.classes not in scores:
                scores[s.classes] = _score(s.classes, wanted)
        best = max(scores[s.classes] for s in options)
        out[g] = tuple(s for s in options if scores[s.classes] == best)
    return out


def departures(graph: Graph, values: Mapping[int, Sharding], completed: Mapping[int, Sharding]) -> list[Departure]:
    """Planned shardings that differ from propagated ones, in the order of values."""
    return [
        Departure(v, completed[v], made)
        for v, made in sorted(values.items())
        if v in completed and graph.values[v].shape and completed[v].dims != made.dims
    ]


_Wanted = dict[tuple[tuple[int, ...], Dims], int]  # (classes per dimension, axes per dimension) -> bytes


def _wanted(program: Program, group: Group, completed: Mapping[int, Sharding]) -> _Wanted:
    out: _Wanted = {}
    for v in group.members:
        place = program.grouping.place(v)
        if place is not None and v in completed:
            key = (place.dims, completed[v].dims)
            out[key] = out.get(key, 0) + program.graph.values[v].size_bytes
    return out


def _score(classes: tuple[tuple[str, ...], ...], wanted: _Wanted) -> tuple[int, int]:
    exact = close = 0
    for (places, dims), size in wanted.items():
        right = sum((classes[c] if c >= 0 else ()) == axes for c, axes in zip(places, dims, strict=True))
        exact += size * (right == len(dims))
        close += size * right
    return exact, close
