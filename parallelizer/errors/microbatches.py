"""Errors of steps that are asked to take their batch in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from parallelizer.errors.base import ParallelizerError
from parallelizer.wording import rows_shown


class MicrobatchCountError(ParallelizerError, ValueError):
    """A batch that cannot be taken in so many parts."""

    @classmethod
    def of(cls, path: str, size: int, count: int, possible: Sequence[int]) -> Self:
        """`size` examples in the input `path`; `possible` are the counts next to `count` that divide it."""
        part, rest = divmod(size, count) if count else (0, size)
        ways = [f"microbatches={n} (of {size // n} examples each)" for n in possible]
        return cls(
            f"the batch cannot be taken in {count} microbatches: they do not divide it",
            path,
            [f"{size} examples = {count} * {part} + {rest}"],
            [*ways, f"a batch of {(part + 1) * count} examples" if count else "microbatches=1"],
            {"path": path, "size": size, "count": count, "possible": list(possible)},
        )


class MicrobatchRefusedError(ParallelizerError, ValueError):
    """A step whose results would change if its batch were taken in parts."""

    @classmethod
    def of(cls, reason: str, where: str, primitive: str) -> Self:
        """`reason` says what the step does with its whole batch, `where` is the user's line."""
        return cls(
            f"the batch cannot be taken in microbatches without changing the results: {reason}",
            where,
            [f"operation: {primitive}"] if primitive else (),
            (
                "compute statistics over one example, or over groups of examples that a microbatch holds whole",
                "leave microbatches out; remat and more devices save memory as well",
            ),
            {"reason": reason, "primitive": primitive},
        )


class BatchInputsError(ParallelizerError, ValueError):
    """Inputs that could be the batch do not agree on how many examples there are, or there are none."""

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """`shapes` of the inputs that are not state, by path."""
        rows = [f"{path}: {shape}" for path, shape in shapes.items()]
        return cls(
            "which inputs are the batch is not clear: "
            + ("their first dimensions differ" if shapes else "every input is state that the step hands on"),
            "",
            rows_shown(rows),
            ("name them, by path or pattern: microbatches={'batch/*': 4}; first dimensions count examples",),
            {"shapes": {path: list(shape) for path, shape in shapes.items()}},
        )
