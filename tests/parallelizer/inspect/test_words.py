"""Words of reports: units, shares, short source lines, and like paths folded into labels that mean exactly them."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelizer.inspect import words
from parallelizer.plans import Array
from passes.ir import Sharding


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0, "0 us"), (2.5e-8, "0.025 us"), (7.3e-4, "730 us"), (9.999e-4, "1 ms"), (6.43e-3, "6.43 ms"),
        (1.0, "1 s"), (7.934, "7.93 s"), (1234.5, "1234 s"), (-2.6e-2, "-26 ms"),
    ],
)  # fmt: skip
def test_seconds_have_their_unit(time_s: float, text: str) -> None:
    assert words.time_text(time_s) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0 %"), (1, 1, "100 %"), (1, 8, "12.5 %"), (1, 1e6, "< 0.1 %"), (0, 0, "0 %"), (3, 1, "300 %")],
)
def test_shares(part: float, whole: float, text: str) -> None:
    assert words.percent(part, whole) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(1, 1, "same"), (0, 2, "new"), (2, 0, "gone"), (1, 1.5, "+50 %"), (1, 0.875, "-12.5 %"), (1, 1.0002, "+0.02 %")],
)
def test_changes(before: float, after: float, text: str) -> None:
    assert words.change_text(before, after) == text


def test_extra_has_sign_and_share() -> None:
    assert words.extra_text(2.6e-2, 8.82) == "+26 ms (+0.29 %)"
    assert words.extra_text(-1e-6, 1.0) == "-1 us (-0.0001 %)"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("/far/away/zoo/layers.py:39 (dense)", "layers.py:39 (dense)"),
        ("C:\\far\\layers.py:39 (dense)", "layers.py:39 (dense)"),
        ("/var/ipykernel_123/456.py:7 (step)", "cell:7 (step)"),
        ("layers.py:39", "layers.py:39"),
        ("nowhere", "nowhere"),
        ("", ""),
    ],
)
def test_source_lines_are_short(source: str, text: str) -> None:
    assert words.short_source(source) == text


def test_cuts_and_types() -> None:
    assert words.cut_text(Sharding(((), ("x", "y")))) == "[-, x*y]"
    assert words.cut_text(Sharding(((), ()))) == words.cut_text(None) == "whole"
    assert words.type_text(Array("w", (96, 128), "bfloat16", None)) == "bf16[96,128]"
    assert words.type_text(Array("n", (), "int32", None)) == "i32[]"
    assert words.type_text(Array("m", (3,), "bool", None)) == "bool[3]"


def test_runner_up_in_words() -> None:
    other = Sharding((("x",), ()))
    assert words.runner_up_text(other, 1e-3, 0.1, True) == (
        "[x, -]: +1 ms (+1 %) on the price of 100 ms, everything else free to change"
    )
    assert words.runner_up_text(other, 0.0, 0.1) == "[x, -] at the same price, other choices kept"
    assert words.runner_up_text(other, -1e-3, 0.1) == "[x, -]: -1 ms (-1 %) on the price of 100 ms, if only it fitted"


def _labels(paths: list[str], keys: list[object] | None = None) -> list[str]:
    return [row.label for row in words.fold_names(paths, keys or [None] * len(paths))]


def test_identical_layers_become_one_row() -> None:
    layers = [f"params/layers_{i}/mlp/{m}/kernel" for i in range(12) for m in ("up", "down")]
    assert _labels(layers) == ["params/layers_{0..11}/mlp/{down,up}/kernel"]
    assert _labels([p for p in layers if "s_3/" not in p]) == [
        "params/layers_{0,1,2,4,5,6,7,8,9,10,11}/mlp/{down,up}/kernel"
    ]
    assert _labels(["a/0/w", "a/1/w", "b"]) == ["a/{0..1}/w", "b"]


def test_what_differs_stays_apart() -> None:
    assert _labels(["l_0/w", "l_1/w", "l_2/w"], ["x", "y", "x"]) == ["l_{0,2}/w", "l_1/w"]
    assert _labels(["a/w", "b/c/w"]) == ["a/w", "b/c/w"]
    assert _labels(["x/a/w", "y/b/w"]) == ["x/a/w", "y/b/w"]


def _expanded(label: str) -> set[str]:
    """Every path that a label stands for."""
    choices = []
    for piece in re.split(r"(\{[^}]*\})", label):
        if not piece.startswith("{"):
            choices.append([piece])
        elif span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece):
            choices.append([str(n) for n in range(int(span[1]), int(span[2]) + 1)])
        else:
            choices.append(piece[1:-1].split(","))
    return {"".join(parts) for parts in itertools.product(*choices)}


_COMPONENT = st.sampled_from(["a", "b", "up", "layer_0", "layer_1", "layer_2", "0", "1", "7"])
_PATHS = st.lists(st.lists(_COMPONENT, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12, unique=True)


@given(_PATHS, st.data())
def test_labels_stand_for_exactly_their_paths(paths: list[str], data: st.DataObject) -> None:
    keys = [data.draw(st.integers(0, 1)) for _ in paths]
    rows = words.fold_names(paths, keys)
    assert sorted(i for row in rows for i in row.members) == list(range(len(paths)))
    for row in rows:
        assert _expanded(row.label) == {paths[i] for i in row.members}
        assert len({keys[i] for i in row.members}) == 1


def test_long_paths_break_after_slashes() -> None:
    text = words.broken("params/layers/attention/{key,out,query}/kernel", 20)
    assert text.replace("\n  ", "") == "params/layers/attention/{key,out,query}/kernel"
    assert all(len(line) <= 20 for line in text.splitlines())
    assert words.broken("short", 20) == "short"
    assert words.broken("one_name_that_is_longer_than_all", 20) == "one_name_that_is_longer_than_all"
