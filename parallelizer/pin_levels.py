"""Pins in order of priority: a list of mappings, of which the first is propagated to the end before the second is
heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Levels = Mapping[str, int]


def in_one(pins: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, Any], Levels]:
    """All pins in one mapping, and which of its patterns have a priority above 0; later levels override earlier ones.

    Named dimensions (the key "dims") are called "dims NAME" here, as in reports.
    """
    together: dict[str, Any] = {}
    levels: dict[str, int] = {}
    for level, part in enumerate([pins] if isinstance(pins, Mapping) else pins or ()):
        for pattern, spec in part.items():
            named = pattern == "dims" and isinstance(spec, Mapping)
            together[pattern] = {**together.get("dims", {}), **spec} if named else spec
            levels.update({f"dims {name}": level for name in spec} if named else {pattern: level})
    return together, {pattern: level for pattern, level in levels.items() if level}
