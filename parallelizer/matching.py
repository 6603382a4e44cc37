"""Pairs planned collectives with compiled ones: by operation, by size, and in another spelling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from parallelizer.plans import Collective
from passes.ir import Pack

BYTES_WITHIN = 0.02
RESPELLED_BYTES = 1 << 18
"""Arrays up to this size may be reduce-scattered or gathered by an all-reduce: latency-bound, the compiler's choice."""

Key = tuple[str, tuple[str, ...]]
"""Kind and mesh axes."""


@dataclass(frozen=True, slots=True)
class Part:
    """One array of a compiled collective, or one planned collective. `sliced`: each device keeps a slice of the
    compiled all-reduce; `narrow`: 16-bit numbers are moved."""

    kind: str
    axes: tuple[str, ...]
    op: int
    total_bytes: int
    each_bytes: int
    count: int
    detail: str = ""
    sliced: bool = False
    narrow: bool = False
    planned: Collective | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Planned and compiled collectives side by side: what the compiler spelled as another kind, what it moves in half
    the bytes, and per kind, axes and operation what has no counterpart."""

    respelled: tuple[tuple[Part, Part], ...]
    narrowed: tuple[tuple[Part, Part], ...]
    left: tuple[tuple[Key, int, list[Part], list[Part]], ...]


def match(predicted: Sequence[Part], real: Sequence[Part]) -> Matching:
    """First by operation; then, by size, what carries another operation's name (the compiler keeps one where it
    merges two); then what is the same exchange in narrower numbers or in another spelling."""
    wanted: dict[tuple[Key, int], list[Part]] = defaultdict(list)
    had: dict[tuple[Key, int], list[Part]] = defaultdict(list)
    for p in predicted:
        wanted[(p.kind, p.axes), p.op].append(p)
    for p in real:
        had[(p.kind, p.axes), p.op].append(p)
    for at in [at for at in wanted if agree(total(wanted[at]), total(had[at]))]:
        wanted[at], had[at] = [], []
    free = [(at, p) for at, parts in had.items() for p in parts]
    found: dict[str, list[tuple[Part, Part]]] = {}
    for how, is_twin in _TWINS.items():
        found[how] = []
        for parts in wanted.values():
            for part in list(parts):
                twin = min((f for f in free if is_twin(part, f[1])), key=lambda f: abs(f[1].op - part.op), default=None)
                if twin is not None:
                    free.remove(twin)
                    had[twin[0]].remove(twin[1])
                    parts.remove(part)
                    found[how].append((part, twin[1]))
    left = tuple(
        (key, op, wanted[key, op], had[key, op])
        for key, op in sorted({*wanted, *had})
        if not agree(total(wanted[key, op]), total(had[key, op]))
    )
    return Matching(tuple(found["respelled"]), tuple(found["narrowed"]), left)


def unpacked(part: Part, pack: Pack) -> Iterator[Part]:
    """The arrays of a pack, which a compiler sees as one. A later stage moves a part of each, all the same part."""
    whole = sum(m.size_bytes for m in pack.members)
    if any(m.size_bytes * part.each_bytes % whole for m in pack.members):
        yield part  # something else under the pack's name
        return
    for m in pack.members:
        each = m.size_bytes * part.each_bytes // whole
        yield replace(part, op=m.op, each_bytes=each, total_bytes=each * part.count)


def _is_same(planned: Part, compiled: Part) -> bool:
    return _is_alike(planned, compiled) and planned.narrow == compiled.narrow


def _is_alike(planned: Part, compiled: Part) -> bool:
    alike = planned.kind == compiled.kind and planned.axes == compiled.axes
    return alike and planned.total_bytes == compiled.total_bytes


def _is_narrowed(planned: Part, compiled: Part) -> bool:
    """TPU compilers gather what only low-precision products read as 16-bit numbers."""
    alike = planned.kind == compiled.kind and planned.axes == compiled.axes
    return alike and compiled.narrow > planned.narrow and planned.total_bytes == 2 * compiled.total_bytes


def _is_respelled(planned: Part, compiled: Part) -> bool:
    """An all-reduce of which every device keeps its slice, or that sums blocks with zeros elsewhere."""
    if planned.axes != compiled.axes or planned.total_bytes != compiled.total_bytes:
        return False
    if compiled.kind != "all_reduce" or planned.each_bytes > RESPELLED_BYTES:
        return False
    return compiled.sliced if planned.kind == "reduce_scatter" else planned.kind == "all_gather"


_TWINS: Mapping[str, Callable[[Part, Part], bool]] = {
    "same": _is_same,
    "narrowed": _is_narrowed,
    "alike": _is_alike,
    "respelled": _is_respelled,
}


def agree(predicted: int, compiled: int) -> bool:
    return abs(predicted - compiled) <= BYTES_WITHIN * predicted


def total(parts: Iterable[Part]) -> int:
    return sum(p.total_bytes for p in parts)
