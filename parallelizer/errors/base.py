"""What every error a user can meet has: what went wrong, where, the arithmetic, and the way out.

Each class has constructors that take plain data (names, sizes, tuples), so that no floor below needs this package.
Sizes are bytes, shown in decimal units (1 GB = 1e9 bytes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ParallelizerError(Exception):
    """Base of all errors meant for users.

    `what` is one sentence; `where` names the source line, pytree path or file; `arithmetic` are the numbers that show
    why; `way_out` are things to do about it, best first; `details` are the same facts as plain data.
    """

    def __init__(
        self,
        what: str,
        where: str = "",
        arithmetic: Sequence[str] = (),
        way_out: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.arithmetic = tuple(arithmetic)
        self.way_out = tuple(way_out)
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(what, where, self.arithmetic, self.way_out, self.details)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        lines += [f"  {row}" for row in self.arithmetic]
        if self.way_out:
            lines.append("  what to do:")
            lines += [f"    - {row}" for row in self.way_out]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready data."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "arithmetic": list(self.arithmetic),
            "way_out": list(self.way_out),
            "details": self.details,
        }
