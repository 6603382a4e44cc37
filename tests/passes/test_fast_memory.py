from __future__ import annotations

from passes.fast_memory import SCOPED_BYTES, VECTOR_MEMORY_BYTES, fast_bytes, in_fast_memory


def test_what_lives_shortest_goes_first() -> None:
    assert in_fast_memory([(0, 10, 6.0), (2, 3, 6.0)], 10, 8.0) == [False, True]


def test_those_that_never_meet_share_the_room() -> None:
    assert in_fast_memory([(0, 5, 6.0), (5, 10, 6.0)], 10, 8.0) == [True, True]


def test_later_ones_only_get_what_is_left() -> None:
    spans = [(0, 10, 5.0), (3, 4, 5.0)]
    assert in_fast_memory(spans, 10, 8.0, first=1) == [True, False]
    assert in_fast_memory(spans, 10, 8.0) == [False, True]


def test_nothing_fits_where_there_is_none() -> None:
    assert in_fast_memory([(0, 1, 1.0)], 1, 0.0) == [False]
    assert fast_bytes("h100") == 0


def test_operations_keep_their_part() -> None:
    assert fast_bytes("v5e") == VECTOR_MEMORY_BYTES["v5e"] - SCOPED_BYTES
    assert all(fast_bytes(chip) >= 0 for chip in VECTOR_MEMORY_BYTES)
