"""Replica groups in every printed form, and the mesh axes behind them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelizer.compiled import axes_of, spanned_axes
from parallelizer.compiled.groups import read_groups, read_pairs


def _groups(text: str, devices: int = 8) -> frozenset[tuple[int, ...]]:
    return read_groups(f", channel_id=3, replica_groups={text}, dimensions={{0}}", devices)


ROWS = frozenset({(0, 1, 2, 3), (4, 5, 6, 7)})
COLUMNS = frozenset({(0, 4), (1, 5), (2, 6), (3, 7)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ROWS),
        ("{ {0, 1, 2, 3}, {4, 5, 6, 7} }", ROWS),
        ("{{0,1,2,3,4,5,6,7}}", frozenset({tuple(range(8))})),
        ("{}", frozenset({tuple(range(8))})),
        ("[2,4]<=[8]", ROWS),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("[4,2]<=[2,2,2]T(0,2,1)", frozenset({(0, 2), (1, 3), (4, 6), (5, 7)})),
        ("[1,8]<=[8]", frozenset({tuple(range(8))})),
        ("[8]<=[8]", frozenset({tuple(range(8))})),
        ("mesh['a'=2,'b'=4] {'b'}", ROWS),
        ("mesh['a'=2, 'b'=4] { 'a' }", COLUMNS),
        ("mesh['a'=2,'b'=4] {'a','b'}", frozenset({tuple(range(8))})),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_0','axis_2'}", ROWS),
        ("mesh['b'=8] {'b':(1)2}", COLUMNS),
        ("mesh['b'=8] {'b':(2)4}", ROWS),
        ("mesh['b'=8] {'b':(4)2}", frozenset({(0, 1), (2, 3), (4, 5), (6, 7)})),
        ("mesh['b'=8] {'b':(1)2,'b':(4)2}", frozenset({(0, 1, 4, 5), (2, 3, 6, 7)})),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", frozenset({(0, 1, 4, 5), (2, 3, 6, 7)})),
        ("mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}", frozenset({(0, 2), (1, 3), (4, 6), (5, 7)})),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", COLUMNS),
        ("mesh['a'=4,'b'=2], device_ids=([8]<=[2,4]T(1,0)) {'b'}", COLUMNS),
    ],
)
def test_printed_forms(text: str, expected: frozenset[tuple[int, ...]]) -> None:
    assert _groups(text) == expected


def test_an_axis_that_the_mesh_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'c'"):
        _groups("mesh['a'=2,'b'=4] {'c'}")


def test_pairs_leave_out_what_stays_at_home() -> None:
    assert read_pairs(", source_target_pairs={{0,1},{1,0},{2,2}}, x=1") == frozenset({(0, 1), (1, 0)})
    assert read_pairs(", channel_id=1") == frozenset()


def test_axes_of_literal_groups() -> None:
    assert axes_of(ROWS, ("x", "y"), (2, 4)) == ("y",)
    assert axes_of(COLUMNS, ("x", "y"), (2, 4)) == ("x",)
    assert axes_of([range(8)], ("x", "y"), (2, 4)) == ("x", "y")
    # Half of an axis, a group too few, an unknown device: no set of axes gives these.
    assert axes_of([(0, 1), (2, 3), (4, 5), (6, 7)], ("x", "y"), (2, 4)) is None
    assert axes_of([(0, 4), (1, 5), (2, 6)], ("x", "y"), (2, 4)) is None
    assert axes_of([(0, 8)], ("x", "y"), (2, 4)) is None
    assert spanned_axes([(0, 1), (2, 3)], ("x", "y"), (2, 4)) == ("y",)


def test_axes_of_permutes() -> None:
    assert axes_of([(0, 1), (1, 2), (2, 3)], ("x", "y"), (2, 4), pairs=True) == ("y",)
    assert axes_of([(0, 5)], ("x", "y"), (2, 4), pairs=True) == ("x", "y")
    assert axes_of([(0, 4), (1, 2)], ("x", "y"), (2, 4), pairs=True) == ("x", "y")
    assert axes_of([], ("x", "y"), (2, 4), pairs=True) == ()


def test_axes_of_groups_of_one_slice() -> None:
    assert axes_of([(0, 1, 2, 3)], ("x", "y"), (2, 4)) == ("y",)
    assert axes_of([(0, 1), (2, 3)], ("s", "x", "y"), (3, 2, 2)) == ("y",)
    # Not the first devices: then the text names devices of the whole program.
    assert axes_of([(4, 5, 6, 7)], ("x", "y"), (2, 4)) is None


MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(MESHES, st.data())
def test_axes_of_inverts_the_groups_of_any_axes(sizes: list[int], data: st.DataObject) -> None:
    names = [f"a{i}" for i in range(len(sizes))]
    chosen = [i for i in range(len(sizes)) if data.draw(st.booleans())]
    groups: dict[tuple[int, ...], list[int]] = {}
    for device, at in enumerate(itertools.product(*map(range, sizes))):
        groups.setdefault(tuple(c for i, c in enumerate(at) if i not in chosen), []).append(device)
    expected = tuple(names[i] for i in chosen if sizes[i] > 1)
    found = axes_of(groups.values(), names, sizes)
    assert found == expected
    # The compiler's own forms give the same groups.
    axes = ",".join(f"'{n}'={s}" for n, s in zip(names, sizes, strict=True))
    used = ",".join(f"'{names[i]}'" for i in chosen)
    total = int(np.prod(sizes))
    want = frozenset(map(tuple, groups.values()))
    if used:
        assert _groups(f"mesh[{axes}] {{{used}}}", total) == want
    order = [i for i in range(len(sizes)) if i not in chosen] + chosen
    width = len(next(iter(groups.values())))
    shape, transpose = ",".join(map(str, sizes)), ",".join(map(str, order))
    assert _groups(f"[{total // width},{width}]<=[{shape}]T({transpose})", total) == want
