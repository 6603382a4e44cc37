"""Errors about profiles of measured hardware."""

from __future__ import annotations

from typing import Self

from parallelizer.errors.base import ParallelizerError


class BadProfileError(ParallelizerError, ValueError):
    """A profile of measured hardware that cannot be used."""

    @classmethod
    def of(cls, source: str, reason: str) -> Self:
        """`source` is the profile's file, `reason` what is wrong with it."""
        return cls(
            f"the profile {source} cannot be used: {reason}",
            source,
            (),
            (
                "`parallelizer calibrate` measures the devices at hand and writes a new one",
                "plan without it: move it away, or set PARALLELIZER_PROFILE to nothing",
            ),
            {"source": source, "reason": reason},
        )
