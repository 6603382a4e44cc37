"""Words for errors and reports: nearest names, sizes in units, short lists, the user's line in a traceback."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = 8
"""How many rows of a list an error prints before it only counts the rest."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """The known names closest to `name`, best first, at most `count`; empty when nothing is similar."""
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    folded = name.casefold()
    close = difflib.get_close_matches(folded, by_folded, n=count, cutoff=0.5)
    inside = [k for k in by_folded if folded and folded in k and k not in close]
    return tuple(by_folded[k] for k in [*close, *inside][:count])


def bytes_text(size_bytes: float) -> str:
    """A size in decimal units, as in "12.3 GB"; negative sizes keep their sign."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if abs(size) < 1000 else f"{size:.0f} {unit}"


def user_line(error: BaseException) -> str:
    """The innermost line of the user's own code in an error's traceback, as "file:line (function)", or ""."""
    paths = sysconfig.get_paths()
    ours = Path(__file__).resolve().parent
    foreign = [Path(paths[k]).resolve() for k in ("stdlib", "purelib", "platlib")]
    foreign += [ours, ours.parent / "passes", ours.parent / "cost_model"]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not file.exists():
            continue
        resolved = file.resolve()
        if (ours / "zoo") in resolved.parents or not any(f in resolved.parents for f in foreign):
            return f"{frame.filename}:{frame.lineno} ({frame.name})"
    return ""


def names(items: Iterable[str], empty: str = "none") -> str:
    """The items joined by commas, cut off with a count after three times `SHOWN`; `empty` where there are none."""
    listed = list(items)
    more = f" and {len(listed) - 3 * SHOWN} more" if len(listed) > 3 * SHOWN else ""
    return ", ".join(listed[: 3 * SHOWN]) + more if listed else empty


def rows_shown(rows: Sequence[str]) -> tuple[str, ...]:
    """The first `SHOWN` rows, and how many more there are."""
    rest = len(rows) - SHOWN
    return (*rows[:SHOWN], f"... and {rest} more") if rest > 0 else tuple(rows)


def differences(expected: Mapping[str, Any], found: Mapping[str, Any], here: str, there: str) -> tuple[str, ...]:
    """One row per key that is absent on one side or has another value there; `here` and `there` name the sides."""
    rows = []
    for key in [*expected, *(k for k in found if k not in expected)]:
        if key not in found:
            rows.append(f"{key}: {expected[key]} {here}, absent {there}")
        elif key not in expected:
            rows.append(f"{key}: absent {here}, {found[key]} {there}")
        elif expected[key] != found[key]:
            rows.append(f"{key}: {expected[key]} {here}, {found[key]} {there}")
    return tuple(rows)
