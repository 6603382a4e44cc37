"""Errors about sharding rules that users register, and about loops whose length they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import nearest, rows_shown

_DOCS = "docs/rules.md shows the notation with examples that run"


class BadRuleError(ParallelizerError, ValueError):
    """A registered rule contradicts itself, or the operation that it is used on."""

    @classmethod
    def of(
        cls, primitive: str, reason: str, rule_at: str, used_at: str = "", arrays: Sequence[tuple[str, str]] = ()
    ) -> Self:
        """`reason` holds the arithmetic ("factor 'k' is 16 in one place and 8 in another"). `rule_at` is where the rule
        is written, `used_at` the line of the operation, `arrays` its operands and results ("operand 0",
        "float32[8,16]")."""
        rows = [f"used at {used_at}"] if used_at else []
        rows += [f"{name}: {kind}" for name, kind in arrays]
        return cls(
            f"the rule registered for {primitive!r} cannot be: {reason}",
            rule_at,
            rows,
            ("write one letter or word per dimension, the same one where two dimensions are cut together", _DOCS),
            {"primitive": primitive, "reason": reason, "rule_at": rule_at, "used_at": used_at},
        )


class DuplicateRuleError(ParallelizerError, ValueError):
    """A rule for a primitive that has one already."""

    @classmethod
    def of(cls, primitive: str, first_at: str, second_at: str, built_in: bool) -> Self:
        """`first_at` and `second_at` are where the rules are written."""
        way_out = (
            ["built-in rules are proven by tests; give your operation a primitive or name of its own"]
            if built_in
            else ["keep one of the two", "or replace the old one on purpose: register_rule(..., replace=True)"]
        )
        return cls(
            f"primitive {primitive!r} has a sharding rule already",
            second_at,
            (f"the first one: {first_at}",),
            (*way_out, _DOCS),
            {"primitive": primitive, "first_at": first_at, "second_at": second_at, "built_in": built_in},
        )


class UnknownLoopError(ParallelizerError, ValueError):
    """`loop_trips` names a place where no loop of unknown length is."""

    @classmethod
    def of(cls, place: str, known: Sequence[str]) -> Self:
        """`known` are the lines of the loops that the program has, "file:line (function)"."""
        places = {name for line in known for name in _places(line)}
        close = nearest(place, sorted(places))
        way_out = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        return cls(
            f"loop_trips names {place!r}, and no loop of unknown length is written there",
            f"loop_trips={{{place!r}: ...}}",
            rows_shown([f"loop at {line}" for line in known]) or ("the program has no loop of unknown length",),
            (*way_out, 'name the function, or "file.py:line", in which the while loop is written'),
            {"place": place, "known": list(known)},
        )


def _places(line: str) -> tuple[str, ...]:
    """What a loop at "/folder/file.py:12 (function)" can be called: "file.py:12" and "function"."""
    where, _, function = line.partition(" (")
    return tuple(name for name in (where.rsplit("/", 1)[-1], function.rstrip(")")) if name)


class BadTripsError(ParallelizerError, ValueError):
    """`loop_trips` gives a number that no loop can run."""

    @classmethod
    def of(cls, hints: int | Mapping[str, int], reason: str) -> Self:
        """`reason` says which number is wrong and why."""
        return cls(
            f"loop_trips cannot be: {reason}",
            f"loop_trips={hints!r}",
            (),
            ("give how often the loop usually runs, as a whole number of at least 1",),
            {"reason": reason},
        )
