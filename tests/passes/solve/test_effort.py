"""The table of methods: what the docstring says is what runs."""

from __future__ import annotations

from passes.solve import effort
from passes.solve.effort import EFFORTS, effort_for


def test_the_docstring_is_the_table() -> None:
    assert effort.__doc__ is not None
    lines = [line for line in effort.__doc__.splitlines() if line.startswith("| ") and line[2].isdigit()]
    lines += [line for line in effort.__doc__.splitlines() if line.startswith("| more")]
    assert len(lines) == len(EFFORTS)
    for line, e in zip(lines, EFFORTS, strict=True):
        cells = [c.strip() for c in line.strip("|").split("|")]
        numbers = [0 if c == "none" else int("".join(d for d in c if d.isdigit())) for c in cells[1:]]
        assert cells[0] == ("more" if e is EFFORTS[-1] else f"{e.strategies:,}")
        assert numbers == [
            e.region_entries,
            e.region_nodes,
            e.turns,
            e.moves,
            e.elites,
            e.branches,
            e.milp_entries,
            round(100 * e.cut_share),
        ]


def test_every_size_has_a_line() -> None:
    assert [effort_for(n) for n in (0, 200, 201, 6_000, 20_001, 10**9)] == [
        EFFORTS[0],
        EFFORTS[0],
        EFFORTS[1],
        EFFORTS[1],
        EFFORTS[3],
        EFFORTS[3],
    ]
