"""Small SVG pictures of how an array is cut: the whole array, its blocks, and the first device's block filled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from parallelizer.inspect.words import cut_text
from passes.ir import Sharding

_WIDTH, _HEIGHT, _FLAT = 44, 26, 9
_SPACE = 4.0
"""Lines that would stand closer than this many pixels are drawn as fewer."""
_LEAST = 2.0


def colour(axis: str, axes: Mapping[str, int]) -> str:
    """The CSS colour of a mesh axis, by its position; five of them, then the first again."""
    return f"var(--pz-{list(axes).index(axis) % 5})"


def picture(shape: tuple[int, ...], sharding: Sharding | None, sizes: Mapping[str, int]) -> str:
    """An array as a rectangle of the two dimensions that say most: those that are cut, then the longest."""
    if not shape:
        return ""
    cuts = [1] * len(shape) if sharding is None else [math.prod(sizes[a] for a in d) for d in sharding.dims]
    shown = sorted(sorted(range(len(shape)), key=lambda d: (-cuts[d], -shape[d]))[:2])
    rows, columns = (1, cuts[shown[0]]) if len(shown) == 1 else (cuts[shown[0]], cuts[shown[1]])
    height = _FLAT if len(shown) == 1 else _HEIGHT
    row_colour, column_colour = (_colour_of(sharding, d, sizes) for d in (shown[0], shown[-1]))
    lines = [
        *(_line(0, y, _WIDTH, y, row_colour) for y in _places(rows, height)),
        *(_line(x, 0, x, height, column_colour) for x in _places(columns, _WIDTH)),
    ]
    block = f'width="{max(_WIDTH / columns, _LEAST):.1f}" height="{max(height / rows, _LEAST):.1f}"'
    said = escape(_words(shape, sharding, cuts))
    return (
        f'<svg width="{_WIDTH + 2}" height="{height + 2}" viewBox="-1 -1 {_WIDTH + 2} {height + 2}" role="img" '
        f'aria-label="{said}"><title>{said}</title>'
        f'<rect {block} fill="var(--pz-fill)"/>{"".join(lines)}'
        f'<rect width="{_WIDTH}" height="{height}" fill="none" stroke="var(--pz-muted)"/></svg>'
    )


def _colour_of(sharding: Sharding | None, dim: int, sizes: Mapping[str, int]) -> str:
    axes = () if sharding is None else sharding.dims[dim]
    return colour(axes[0], sizes) if axes else "currentColor"


def _places(blocks: int, length: float) -> list[float]:
    shown = min(blocks, int(length / _SPACE))
    return [length * i / shown for i in range(1, shown)]


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{stroke}" fill="none"/>'


def _words(shape: tuple[int, ...], sharding: Sharding | None, cuts: list[int]) -> str:
    blocks = math.prod(cuts)
    if blocks == 1:
        return "every device holds all of it"
    parts = [
        f"dimension {d}: {n} in {c} blocks of {-(-n // c)}"
        for d, (n, c) in enumerate(zip(shape, cuts, strict=True))
        if c > 1
    ]
    return f"{cut_text(sharding)}, {blocks} blocks, one of them filled; " + ", ".join(parts)
