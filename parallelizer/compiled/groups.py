"""Which devices take part in a collective: the printed forms of replica groups, and the mesh axes that they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from parallelizer.compiled.text import closing

Groups = frozenset[tuple[int, ...]]

_IOTA = re.compile(r"\[([\d,]*)\]\s*<=\s*\[([\d,]*)\]\s*(?:T\(([\d,]*)\))?")
_PERMUTED = re.compile(r"\[([\d,]*)\]\s*(?:T\(([\d,]*)\))?")
_MESH_AXIS = re.compile(r"['\"]([^'\"]+)['\"]\s*=\s*(\d+)")
_AXIS_USE = re.compile(r"['\"]([^'\"]+)['\"]\s*(?::\s*\((\d+)\)\s*(\d+))?")


def read_groups(attributes: str, devices: int, key: str = "replica_groups") -> Groups:
    """Groups of positions in the device assignment behind `key=`; an absent or empty list means one group of all.

    Raises ValueError for a form that is not known: a wrong answer would be worse.
    """
    match = re.search(rf"\b{key}=", attributes)
    everyone = frozenset({tuple(range(devices))})
    if match is None:
        return everyone
    text = attributes[match.end() :].lstrip()
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("{"):
        return _explicit(text[: closing(text, 0) + 1]) or everyone
    iota = _IOTA.match(text)
    if iota is not None:
        return _groups(_iota(iota[1], iota[2], iota[3]))
    raise ValueError(f"unknown form of replica groups: {text[:80]!r}")


def read_pairs(attributes: str) -> Groups:
    """Pairs (source, target) of a permute, in order of travel. A device that sends to itself is left out."""
    match = re.search(r"\bsource_target_pairs=", attributes)
    if match is None:
        return frozenset()
    text = attributes[match.end() :].lstrip()
    body = text[: closing(text, 0) + 1]
    pairs = (tuple(_ints(p)) for p in re.findall(r"\{([\d,\s]+)\}", body))
    return frozenset(p for p in pairs if len(p) == 2 and p[0] != p[1])


def read_transfer(attributes: str, devices: int) -> tuple[Groups, str]:
    """Who takes part in a `send`, and for a transfer between TPU slices what it belongs to ("ALL_REDUCE").

    Between slices the program is that of one slice: the groups join the same position of every slice, slices in
    order. A transfer to the host (a callback) joins nobody.
    """
    kind = re.search(r"_xla_megascale_transfer_type=\"(\w+)\"", attributes)
    if kind is not None:
        target = re.search(r"_xla_megascale_target=\"\{([^}]*)\}", attributes)
        slices = _count_ids(target[1]) if target else 2
        return frozenset(tuple(i + s * devices for s in range(slices)) for i in range(devices)), kind[1]
    if re.search(r"\bis_host_transfer=true", attributes):
        return frozenset(), ""
    pairs = re.search(r"_xla_send_recv_source_target_pairs=\"?\{", attributes)
    if pairs is None:
        return frozenset({tuple(range(devices))}), ""
    body = attributes[pairs.end() - 1 : closing(attributes, pairs.end() - 1) + 1]
    found = (tuple(_ints(p)) for p in re.findall(r"\{([\d,\s]+)\}", body))
    return frozenset(p for p in found if len(p) == 2 and p[0] != p[1]), ""


def axes_of(
    groups: Iterable[Sequence[int]], axis_names: Sequence[str], axis_sizes: Sequence[int], *, pairs: bool = False
) -> tuple[str, ...] | None:
    """The mesh axes over which these groups communicate, in the mesh's order; None if no set of axes gives them.

    A device id is its position in the row-major mesh. With `pairs` the groups are (source, target) of a permute, and
    the answer is the axes along which any source differs from its target. Axes of size 1 never appear. Groups that
    cover only the first devices, which is how a program over several TPU slices names those of its own slice, mean
    the same in each.
    """
    members = [tuple(g) for g in groups]
    total = int(np.prod(axis_sizes, dtype=np.int64)) if len(axis_sizes) else 1
    if any(not 0 <= d < total for g in members for d in g):
        return None
    if not pairs:
        members = _of_every_slice(members, total)
    if not members:
        return ()
    spanned = spanned_axes(members if pairs else members[:1], axis_names, axis_sizes)
    numbers = [i for i, name in enumerate(axis_names) if name in spanned]
    if not pairs and _grid_groups(axis_sizes, numbers) != {frozenset(g) for g in members}:
        return None
    return spanned


def spanned_axes(
    groups: Iterable[Sequence[int]], axis_names: Sequence[str], axis_sizes: Sequence[int]
) -> tuple[str, ...]:
    """The mesh axes along which members of one group (or source and target) differ, in the mesh's order."""
    varies = np.zeros(len(axis_sizes), dtype=bool)
    for group in groups:
        at = np.stack(np.unravel_index(np.array(group), tuple(axis_sizes)), axis=1)
        varies |= (at != at[0]).any(axis=0)
    return tuple(name for name, v in zip(axis_names, varies, strict=True) if v)


def _of_every_slice(members: list[tuple[int, ...]], total: int) -> list[tuple[int, ...]]:
    covered = sum(len(g) for g in members)
    if not covered or total % covered or covered == total or {d for g in members for d in g} != set(range(covered)):
        return members
    return [tuple(d + start for d in g) for start in range(0, total, covered) for g in members]


def _grid_groups(sizes: Sequence[int], axes: Sequence[int]) -> set[frozenset[int]]:
    """The groups of a row-major mesh along the axes with these numbers."""
    ids = np.arange(int(np.prod(sizes, dtype=np.int64))).reshape(tuple(sizes))
    rest = [i for i in range(len(sizes)) if i not in axes]
    size = int(np.prod([sizes[i] for i in axes], dtype=np.int64))
    return {frozenset(row) for row in ids.transpose([*rest, *axes]).reshape(-1, size).tolist()}


def _explicit(text: str) -> Groups:
    inner = re.findall(r"\{([\d,\s]*)\}", text[1:-1])
    rows = [_ints(g) for g in inner]
    if not rows and _ints(text.strip("{}")):
        rows = [_ints(text.strip("{}"))]
    return frozenset(tuple(sorted(r)) for r in rows if r)


def _mesh_groups(text: str) -> Groups:
    """`mesh['a'=2,'b'=4] {'a'}`, optionally with device ids, and with parts of an axis as `'b':(1)2`.

    `'b':(p)s` is the part of size s of axis b that has p positions before it (major) and the rest after it (minor).
    """
    open_at = text.index("[")
    close_at = closing(text, open_at)
    sizes = {n: int(s) for n, s in _MESH_AXIS.findall(text[open_at : close_at + 1])}
    rest = text[close_at + 1 :].lstrip(" ,")
    ids = np.arange(int(np.prod(list(sizes.values()), dtype=np.int64)))
    if rest.startswith("device_ids="):
        start = rest.index("(")
        end = closing(rest, start)
        ids = _device_ids(rest[start + 1 : end].strip())
        rest = rest[end + 1 :]
    brace = rest.index("{")
    uses = _AXIS_USE.findall(rest[brace : closing(rest, brace) + 1])
    dims, chosen = _split_axes(sizes, uses)
    grid = ids.reshape(dims)
    others = [i for i in range(len(dims)) if i not in chosen]
    width = int(np.prod([dims[i] for i in chosen], dtype=np.int64))
    return _groups(grid.transpose([*others, *chosen]).reshape(-1, width))


def _split_axes(sizes: dict[str, int], uses: list[tuple[str, str, str]]) -> tuple[list[int], list[int]]:
    """Split every mesh axis at the borders of the parts in use: dimensions of the finer grid, and which are in use."""
    parts: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for name, before, size in uses:
        if name not in sizes:
            raise ValueError(f"replica groups use the axis {name!r}, which their mesh does not have")
        parts[name].append((int(before), int(size)) if before else (1, sizes[name]))
    dims: list[int] = []
    chosen: list[int] = []
    for name, length in sizes.items():
        done = 1
        for first, width in sorted(parts[name]):
            if first > done:
                dims.append(first // done)
            chosen.append(len(dims))
            dims.append(width)
            done = first * width
        if length > done:
            dims.append(length // done)
    return dims, chosen


def _device_ids(text: str) -> np.ndarray:
    iota = _IOTA.match(text)
    if iota is not None:
        return _iota(iota[1], iota[2], iota[3]).reshape(-1)
    permuted = _PERMUTED.match(text)
    if permuted is not None:
        return _iota("", permuted[1], permuted[2]).reshape(-1)
    return np.array(_ints(text))


def _iota(shape: str, reshape: str, transpose: str | None) -> np.ndarray:
    dims = _ints(reshape)
    grid = np.arange(int(np.prod(dims, dtype=np.int64))).reshape(dims)
    if transpose:
        grid = grid.transpose(_ints(transpose))
    return grid.reshape(_ints(shape) if shape else -1)


def _groups(rows: np.ndarray) -> Groups:
    grid = rows.reshape(1, -1) if rows.ndim == 1 else rows.reshape(rows.shape[0], -1)
    return frozenset(tuple(sorted(r)) for r in grid.tolist())


def _ints(text: str) -> list[int]:
    return [int(t) for t in text.split(",") if t.strip()]


def _count_ids(text: str) -> int:
    """How many ids "1,2" or "0:3" (both ends included) name."""
    total = 0
    for part in text.split(","):
        first, _, last = part.partition(":")
        total += int(last) - int(first) + 1 if last else 1
    return total
