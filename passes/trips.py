"""How often a `while` runs: what its condition says, else what the user says, else once."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from passes.ir.graph import Graph, Literal, Op, Operand, Region

_FLIPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "ne": "ne"}
_PLAIN = ("convert_element_type", "copy", "reshape", "squeeze", "broadcast_in_dim")


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop whose length the program does not say: operation number `op`, written at `source`, is taken to run
    `trips` times, because the "user" says so, its "condition" allows no more, or for lack of anything better
    ("unknown")."""

    op: int
    source: str
    trips: int
    why: str


class TripError(ValueError):
    """A hint that no loop of the program answers to: `hint`, and the places of the loops there are."""

    def __init__(self, hint: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no loop of unknown length at {hint!r}; there are {', '.join(known) or 'none'}")
        self.hint, self.known = hint, known


def counted(op: Op) -> Op:
    """A `while` with the trip count that its condition gives.

    Exact where the condition only compares a counter that starts at a number and grows by a number. Where it asks for
    more than that ("and the error is still large"), the counter's limit is the most that it can run: taken as the
    trip count, which stays unknown.
    """
    test = op.regions[0]
    made = {v: o for o in test.ops for v in o.outputs}
    limits: list[int] = []
    clauses = list(_clauses(test.outputs[0], made))
    for clause in clauses:
        found = _iterations(op, clause, made)
        if found is not None:
            limits.append(found)
    if not limits:
        return op
    known = len(clauses) == 1
    return _with_trips(op, min(limits), known)


def unknown_loops(graph: Graph) -> tuple[Op, ...]:
    """The loops whose length the program does not say, in program order."""
    return tuple(op for op in _every(graph.ops) if op.regions and not all(r.known for r in op.regions))


def hinted(graph: Graph, hints: int | Mapping[str, int] | None) -> tuple[Graph, tuple[Loop, ...]]:
    """The graph with the user's trip counts, and what every loop of unknown length is taken to run.

    `hints` is one number for all of these loops, or a number by place: the function that the loop is written in, or
    "file.py:12" (the end of the file's path is enough). The most exact place wins. Raises TripError for a place where
    there is no such loop, ValueError for a number below 1.
    """
    table: Mapping[str, int] = {"*": hints} if isinstance(hints, int) else dict(hints or {})
    for place, trips in table.items():
        if isinstance(trips, bool) or not isinstance(trips, int) or trips < 1:
            raise ValueError(
                f"a loop runs a whole number of times, at least 1, not {trips!r}"
                + ("" if place == "*" else f" ({place})")
            )
    loops: list[Loop] = []
    used: set[str] = set()

    def visit(op: Op) -> Op:
        if not op.regions:
            return op
        if not all(r.known for r in op.regions):
            place = max((p for p in table if _is_at(op, p)), key=_exactness, default=None)
            source = str(op.source or "")
            trips = max(r.trip_count for r in op.regions)
            if place is not None:
                used.update(p for p in table if _is_at(op, p))
                op = _with_trips(op, table[place], False)
                loops.append(Loop(op.id, source, table[place], "user"))
            else:
                loops.append(Loop(op.id, source, trips, "unknown" if trips == 1 else "condition"))
        regions = tuple(replace(r, ops=tuple(visit(o) for o in r.ops)) for r in op.regions)
        return replace(op, regions=regions)

    ops = tuple(visit(op) for op in graph.ops)
    missing = [p for p in table if p not in used and p != "*"]
    if missing:
        raise TripError(missing[0], tuple(dict.fromkeys(loop.source for loop in loops)))
    return replace(graph, ops=ops), tuple(loops)


def _every(ops: tuple[Op, ...]) -> Iterator[Op]:
    for op in ops:
        yield op
        for region in op.regions:
            yield from _every(region.ops)


def _is_at(op: Op, place: str) -> bool:
    if place == "*":
        return True
    if op.source is None:
        return False
    line = f"{op.source.file}:{op.source.line}"
    return op.source.function == place or line == place or line.endswith("/" + place)


def _exactness(place: str) -> int:
    return 0 if place == "*" else 2 if ":" in place else 1


def _with_trips(op: Op, trips: int, known: bool) -> Op:
    """The condition is counted with the body: it runs once more, which costs next to nothing."""
    return replace(op, regions=tuple(replace(r, trip_count=trips, known=known) for r in op.regions))


# ---- the condition ----
def _clauses(answer: Operand, made: Mapping[int, Op]) -> Iterator[Op | None]:
    """The comparisons that must all hold; None for what is none."""
    op = None if isinstance(answer, Literal) else made.get(answer)
    if op is not None and op.primitive == "and":
        for o in op.inputs:
            yield from _clauses(o, made)
    elif op is not None and op.primitive in _PLAIN:
        yield from _clauses(op.inputs[0], made)
    else:
        yield op


def _iterations(op: Op, clause: Op | None, made: Mapping[int, Op]) -> int | None:
    """How often the loop runs until a comparison of a counter with a number fails."""
    if clause is None or clause.primitive not in _FLIPPED:
        return None
    left, right = (_behind(o, made) for o in clause.inputs)
    relation = clause.primitive
    a, b = _counter(op, left), _counter(op, right)
    if a is None or b is None:
        return None
    if b[1]:  # the counter is on the right
        a, b, relation = b, a, _FLIPPED[relation]
    (start, step), (limit, still) = a, b
    if still or not step:
        return None
    distance = {"lt": limit - start, "le": limit - start + 1, "gt": start - limit, "ge": start - limit + 1}
    if relation == "ne":
        whole = Fraction(limit - start, step)
        return int(whole) if whole >= 0 and whole.denominator == 1 else None
    if distance[relation] <= 0:
        return 0
    toward = step if relation in ("lt", "le") else -step
    return math.ceil(Fraction(distance[relation], toward)) if toward > 0 else None


def _behind(operand: Operand, made: Mapping[int, Op]) -> Operand:
    while not isinstance(operand, Literal) and operand in made and made[operand].primitive in _PLAIN:
        operand = made[operand].inputs[0]
    return operand


def _counter(op: Op, operand: Operand) -> tuple[int, int] | None:
    """(first value, change per iteration) of what the condition compares, where both are whole numbers."""
    if isinstance(operand, Literal):
        first = _integer(operand)
        return None if first is None else (first, 0)
    test, body = op.regions
    n, m = int(op.params["cond_nconsts"]), int(op.params["body_nconsts"])
    if operand not in test.inputs:
        return None
    at = test.inputs.index(operand)
    outside = op.inputs[at] if at < n else op.inputs[m + at]
    first = _integer(outside)
    step = 0 if at < n else _step(body, at - n, m)
    return None if first is None or step is None else (first, step)


def _step(body: Region, carry: int, consts: int) -> int | None:
    """What an iteration adds to a carry, if that is a number."""
    before, after = body.inputs[consts + carry], body.outputs[carry]
    if after == before:
        return 0
    made = next((o for o in body.ops if not isinstance(after, Literal) and after in o.outputs), None)
    if made is None or made.primitive not in ("add", "sub"):
        return None
    combine: Any = operator.add if made.primitive == "add" else operator.sub
    left, right = made.inputs
    if left == before:
        by = _integer(right)
        return None if by is None else combine(0, by)
    by = _integer(left) if right == before and made.primitive == "add" else None
    return by


def _integer(operand: Operand) -> int | None:
    if not isinstance(operand, Literal) or not operand.dtype.startswith(("int", "uint")):
        return None
    return int(operand.value)
