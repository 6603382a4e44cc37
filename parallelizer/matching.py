"""Pairs planned collectives with compiled ones: by operation, by size, and in another spelling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from parallelizer.plans import Collective

BYTES_WITHIN = 0.02
RESPELLED_BYTES = 1 << 18
"""Arrays up to this size may be reduce-scattered or gathered by an all-reduce: latency-bound, the compiler's choice."""

Key = tuple[str, tuple[str, ...]]
"""Kind and mesh axes."""


@dataclass(frozen=True, slots=True)
class Part:
    """One array of a compiled collective, or one planned collective."""

    kind: str
    axes: tuple[str, ...]
    op: int
    total_bytes: int
    each_bytes: int
    count: int
    detail: str = ""
    sliced: bool = False
    planned: Collective | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Planned and compiled collectives side by side: what the compiler spelled as another kind, and per kind, axes
    and operation what has no counterpart."""

    respelled: tuple[tuple[Part, Part], ...]
    left: tuple[tuple[Key, int, list[Part], list[Part]], ...]


def match(predicted: Sequence[Part], real: Sequence[Part]) -> Matching:
    """First by operation; then, by size, what carries another operation's name (the compiler keeps one where it
    merges two); then what is the same exchange in another spelling."""
    wanted: dict[tuple[Key, int], list[Part]] = defaultdict(list)
    had: dict[tuple[Key, int], list[Part]] = defaultdict(list)
    for p in predicted:
        wanted[(p.kind, p.axes), p.op].append(p)
    for p in real:
        had[(p.kind, p.axes), p.op].append(p)
    for at in [at for at in wanted if agree(total(wanted[at]), total(had[at]))]:
        wanted[at], had[at] = [], []
    for at in wanted:
        _pair_equal(wanted[at], had[at])
    respelled: list[tuple[Part, Part]] = []
    free = [(at, p) for at, parts in had.items() for p in parts]
    for respell in (False, True):
        for parts in wanted.values():
            for part in list(parts):
                twin = next((f for f in _by_closeness(free, part) if _is_twin(part, f[1], respell)), None)
                if twin is not None:
                    free.remove(twin)
                    had[twin[0]].remove(twin[1])
                    parts.remove(part)
                    respelled += [(part, twin[1])] if respell else []
    left = tuple(
        (key, op, wanted[key, op], had[key, op])
        for key, op in sorted({*wanted, *had})
        if not agree(total(wanted[key, op]), total(had[key, op]))
    )
    return Matching(tuple(respelled), left)


def _pair_equal(wanted: list[Part], had: list[Part]) -> None:
    """Take out what is on both sides."""
    for part in list(wanted):
        twin = next((p for p in had if p.total_bytes == part.total_bytes), None)
        if twin is not None:
            wanted.remove(part)
            had.remove(twin)


def _by_closeness(free: list[tuple[Any, Part]], part: Part) -> list[tuple[Any, Part]]:
    return sorted(free, key=lambda f: abs(f[1].op - part.op))


def _is_twin(planned: Part, compiled: Part, respell: bool) -> bool:
    """Whether the bytes of `planned` are moved by `compiled`; with `respell`, by an all-reduce that gives every device
    its slice or sums blocks with zeros elsewhere."""
    if planned.axes != compiled.axes or planned.total_bytes != compiled.total_bytes:
        return False
    if not respell:
        return planned.kind == compiled.kind
    if compiled.kind != "all_reduce" or planned.each_bytes > RESPELLED_BYTES:
        return False
    return compiled.sliced if planned.kind == "reduce_scatter" else planned.kind == "all_gather"


def agree(predicted: int, compiled: int) -> bool:
    return abs(predicted - compiled) <= BYTES_WITHIN * predicted


def total(parts: Iterable[Part]) -> int:
    return sum(p.total_bytes for p in parts)
