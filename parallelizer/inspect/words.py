"""Words of reports: times and shares, short source lines, reasons, and like paths folded into one."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from parallelizer.plans import Array, Plan
from parallelizer.wording import bytes_text
from passes.ir import Sharding

_NUMBER = re.compile(r"\d+(?=/|$)")
_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


# ---- words ----
def time_text(time_s: float) -> str:
    """Seconds in the unit that suits: "1.23 s", "6.43 ms", "730 us"; the sign is kept."""
    size = abs(time_s)
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if size >= scale * 0.9995:
            value = time_s / scale
            return f"{value:.0f} {unit}" if abs(value) >= 999.5 else f"{value:.3g} {unit}"
    return "0 us" if size < 1e-9 else f"{time_s / 1e-6:.2g} us"


def percent(part: float, whole: float) -> str:
    """`part` of `whole`: "12.3 %", "0 %", "< 0.1 %"."""
    share = 100 * part / whole if whole else 0.0
    if share and abs(share) < 0.1:
        return "< 0.1 %"
    digits = 0 if abs(share) >= 99.95 else 1
    return f"{share:.{digits}f}".removesuffix(".0") + " %"


def change_text(before: float, after: float) -> str:
    """The change in percent of `before`, with its sign: "+12.5 %", "-0.02 %"; "same", "new" and "gone" in words."""
    if before == after:
        return "same"
    if not before or not after:
        return "gone" if before else "new"
    share = 100 * (after - before) / before
    digits = 0 if abs(share) >= 99.95 else 1
    return f"{share:+.{digits}f}".removesuffix(".0") + " %" if abs(share) >= 0.1 else f"{share:+.1g} %"


def extra_text(extra_s: float, price_s: float) -> str:
    """What a change adds to a price: "+26 ms (+0.3 %)", "-1.2 us (-0.004 %)"."""
    share = 100 * abs(extra_s) / price_s if price_s else 0.0
    sign = "-" if extra_s < 0 else "+"
    return f"{sign}{time_text(abs(extra_s))} ({sign}{share:.2g} %)"


def short_source(source: str) -> str:
    """ "/long/way/to/model.py:39 (dense)" -> "model.py:39 (dense)"; a notebook's temporary file is a "cell"."""
    place, bracket, function = source.partition(" (")
    file, colon, line = place.rpartition(":")
    if not colon:
        return source
    parts = re.split(r"[/\\]", file)
    name = parts[-1]
    if len(parts) > 1 and parts[-2].startswith("ipykernel_"):
        name = "cell"
    return f"{name}:{line}{bracket}{function}"


def kind_text(kind: str) -> str:
    """ "all_gather" -> "all-gather"."""
    return kind.replace("_", "-")


def mesh_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{a}={n}" for a, n in sizes.items()) or "one device"


def cut_text(sharding: Sharding | None) -> str:
    """How an array is cut, one entry per dimension: "[x, -]"; "whole" if it is on every device."""
    return "whole" if sharding is None or not sharding.axes else str(sharding)


def type_text(array: Array) -> str:
    """Type and shape as JAX prints them: "bf16[96,12288]"."""
    name = re.sub(r"^[a-z]+(?=\d+$)", lambda m: _SHORT.get(m[0], m[0]), array.dtype)
    return f"{name}[{','.join(map(str, array.shape))}]"


def certificate(plan: Plan) -> str:
    """What the lower bound proves, in a clause."""
    if plan.mode == "propagate":
        return "propagated from annotations, not searched"
    if plan.gap == 0:
        return "proven best for this mesh (gap 0 %)"
    return f"at most {percent(plan.gap, 1)} could still be gained on this mesh (gap {percent(plan.gap, 1)})"


def reason_text(kind: str, limit_bytes: int) -> str:
    """A reason in words; the runner-up has words of its own."""
    return {
        "pinned": "pinned by the user",
        "propagated": "propagated from the user's annotations",
        "not reached": "whole: propagation brings no annotation to it",
        "only legal": "the only legal way to cut it on this mesh",
        "cheapest": "the cheapest way to cut it",
        "tied": "tied: another way costs the same",
        "memory": f"forced by the memory limit of {bytes_text(limit_bytes)} per device",
    }.get(kind, kind)


def runner_up_text(runner_up: Sharding, extra_s: float, price_s: float, exact: bool = False) -> str:
    """The next best way and its price; `exact` if everything else was free to change with it."""
    how = "everything else free to change" if exact else "other choices kept"
    if abs(extra_s) <= 1e-9 * price_s:
        return f"{cut_text(runner_up)} at the same price, {how}"
    if extra_s < 0:
        how = "if only it fitted"
    return f"{cut_text(runner_up)}: {extra_text(extra_s, price_s)} on the price of {time_text(price_s)}, {how}"


def broken(label: str, width: int) -> str:
    """A path over several lines of at most `width`, broken after its slashes and commas where possible."""
    lines = [""]
    for piece in re.findall(r"[^/,]+[/,]?", label):
        if lines[-1].strip() and len(lines[-1]) + len(piece) > width:
            lines.append("  ")
        lines[-1] += piece
    return "\n".join(lines)


# ---- like things in one row ----
@dataclass(frozen=True, slots=True)
class Folded:
    """Paths that differ in numbers only: `label` as in "params/layers_{0..11}/kernel", `members` their positions."""

    label: str
    members: tuple[int, ...]


def fold(paths: Sequence[str], keys: Sequence[Hashable]) -> tuple[Folded, ...]:
    """Put paths with equal keys that differ only in numbers into one row, in the order of their first members."""
    groups: dict[tuple[str, Hashable], list[int]] = {}
    for i, (path, key) in enumerate(zip(paths, keys, strict=True)):
        groups.setdefault((_NUMBER.sub("#", path), key), []).append(i)
    rows = [row for (pattern, _), members in groups.items() for row in _rows(pattern, paths, members, 0)]
    return tuple(sorted(rows, key=lambda r: r.members[0]))


def _rows(pattern: str, paths: Sequence[str], members: Sequence[int], slot: int) -> list[Folded]:
    """One row if the members are every combination of their numbers, else one or more per number of `slot`."""
    numbers = {i: _NUMBER.findall(paths[i]) for i in members}
    first = numbers[members[0]]
    seen = [sorted({numbers[i][k] for i in members}, key=int) for k in range(len(first))]
    if math.prod(map(len, seen)) == len(set(paths[i] for i in members)) or slot >= len(first):
        pieces = pattern.split("#")
        label = pieces[0] + "".join(_span(s) + piece for s, piece in zip(seen, pieces[1:], strict=True))
        return [Folded(label, tuple(members))]
    split: dict[str, list[int]] = {}
    for i in members:
        split.setdefault(numbers[i][slot], []).append(i)
    return [row for part in split.values() for row in _rows(pattern, paths, part, slot + 1)]


def _span(numbers: Sequence[str]) -> str:
    values = [int(n) for n in numbers]
    if len(numbers) == 1:
        return numbers[0]
    whole = values == list(range(values[0], values[0] + len(values)))
    return f"{{{values[0]}..{values[-1]}}}" if whole else f"{{{','.join(numbers)}}}"


def fold_names(paths: Sequence[str], keys: Sequence[Hashable]) -> tuple[Folded, ...]:
    """As `fold`, and then rows with equal keys whose labels differ in one component: "attention/{key,query}/kernel"."""
    rows = [(keys[r.members[0]], [frozenset((part,)) for part in r.label.split("/")], r) for r in fold(paths, keys)]
    merged = True
    while merged:
        merged = False
        for i, (key, parts, row) in enumerate(rows):
            at = next((j for j in range(i + 1, len(rows)) if rows[j][0] == key and _one_apart(parts, rows[j][1])), None)
            if at is not None:
                joined = [a | b for a, b in zip(parts, rows[at][1], strict=True)]
                rows[i] = (key, joined, Folded("", (*row.members, *rows[at][2].members)))
                del rows[at]
                merged = True
                break
    out = [Folded("/".join(_braces(p) for p in parts), tuple(sorted(r.members))) for _, parts, r in rows]
    return tuple(sorted(out, key=lambda r: r.members[0]))


def _one_apart(a: Sequence[frozenset[str]], b: Sequence[frozenset[str]]) -> bool:
    if len(a) != len(b):
        return False
    apart = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    # Numbers that are folded already stay as they are: braces within braces would be hard to read.
    return len(apart) == 1 and not a[apart[0]] & b[apart[0]] and not any("{" in n for n in a[apart[0]] | b[apart[0]])


def _braces(names: frozenset[str]) -> str:
    return next(iter(names)) if len(names) == 1 else f"{{{','.join(sorted(names))}}}"


def folded_labels(paths: Sequence[str]) -> list[str]:
    """The labels of `paths`, like ones together."""
    return [row.label for row in fold_names(paths, [None] * len(paths))]
