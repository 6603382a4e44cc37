"""Pages of real plans: well formed, self-contained, everything escaped, the plan's own numbers in them."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import parallelizer as pz
from parallelizer import zoo
from parallelizer.inspect.html import fragment, page
from parallelizer.inspect.pictures import picture
from parallelizer.inspect.words import time_text
from parallelizer.plans import Plan
from parallelizer.wording import bytes_text
from passes.ir import Sharding

_VOID = {"meta", "wbr", "br", "img", "link", "input"}
_EVIL = '<script>alert("1")</script>&amp;'


@pytest.fixture(scope="module")
def plan() -> Plan:
    model = zoo.model("gpt-toy")
    given: dict[str, Any] = {"topology": "cpu:8", "mesh": {"x": 8}, "donate_argnums": 0}
    return pz.plan(model.step, model.state_shapes(), model.batch_shapes(), **given)


class _Page(HTMLParser):
    """Tags that are not closed in order, all tags and attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_pages_are_well_formed_and_alone(plan: Plan) -> None:
    text = page(plan)
    parsed = _Page(text)
    assert parsed.wrong == [] and parsed.open == []
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"https?:|url\(|@import|\ssrc=|\shref=|\son\w+=", text)


def test_pages_say_the_plans_numbers(plan: Plan) -> None:
    words = _Page(fragment(plan)).words
    cost = plan.cost
    for number in (
        time_text(cost.step_s),
        time_text(cost.compute_s),
        time_text(cost.exposed_communication_s),
        bytes_text(cost.peak_bytes),
        bytes_text(plan.memory.limit_bytes),
        bytes_text(sum(c.total_bytes for c in plan.collectives)),
        plan.mesh.rides_on("x"),
        "proven best on this mesh",
        "layers/mlp/up/kernel",
    ):
        assert number in words


def test_light_and_dark_are_left_to_where_the_plan_stands(plan: Plan) -> None:
    assert "color-scheme:light dark" in page(plan)
    inside = fragment(plan)
    assert "--jp-content-font-color1" in inside and "--vscode-editor-foreground" in inside
    grounds = re.findall(r"background:\s*([^;\"}]+)", inside)
    assert {g.strip() for g in grounds} <= {"none", "transparent"} | {
        f"var(--pz-{n})" for n in ("soft", 0, 1, 2, 3, 4, 5)
    }


def test_every_argument_has_a_picture_and_a_reason(plan: Plan) -> None:
    parsed = _Page(fragment(plan))
    said = [attrs["aria-label"] for tag, attrs in parsed.tags if tag == "svg"]
    assert "every device holds all of it" in said
    assert any(s is not None and s.startswith("[x, -], 8 blocks, one of them filled") for s in said)
    reasons = [attrs["title"] for tag, attrs in parsed.tags if tag == "details" and "title" in attrs]
    assert len(reasons) == len(said)
    assert all(r is not None and "next best" in r for r in reasons)


def test_everything_is_escaped(plan: Plan) -> None:
    array = replace(plan.inputs[0], path=f"state/{_EVIL}", dtype=_EVIL)
    moves = replace(plan.collectives[0], source=f"{_EVIL}:1 ({_EVIL})", array=_EVIL, why=_EVIL, kind=_EVIL)
    evil = replace(
        plan,
        function=_EVIL,
        topology=_EVIL,
        graph_hash=_EVIL,
        inputs=(array, *plan.inputs[1:]),
        collectives=(moves,),
        memory=replace(plan.memory, by_kind=((_EVIL, 10),)),
        unknown=((_EVIL, 1, _EVIL),),
        pins={_EVIL: _EVIL},
        versions={_EVIL: _EVIL},
    )
    parsed = _Page(page(evil))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.wrong == [] and parsed.open == []
    assert parsed.words.count(_EVIL) >= 9


def test_a_plan_from_a_file_has_the_same_page(plan: Plan, tmp_path: Path) -> None:
    plan.save(str(tmp_path / "plan.json"))
    loaded = pz.load_plan(tmp_path / "plan.json")
    loaded.to_html(str(tmp_path / "plan.html"))
    assert (tmp_path / "plan.html").read_text(encoding="utf-8") == page(plan)
    assert loaded._repr_html_() == fragment(plan)


def test_no_communication_is_said(plan: Plan) -> None:
    assert "<h3>Communication</h3>" in fragment(replace(plan, collectives=()))


@pytest.mark.parametrize(
    ("shape", "dims", "block", "lines"),
    [
        ((8,), ((),), ("44.0", "9.0"), 0),
        ((8,), (("x",),), ("22.0", "9.0"), 1),
        ((8, 8), (("x",), ("y",)), ("11.0", "13.0"), 1 + 3),
        ((3, 8, 8), ((), (), ("x", "y")), ("5.5", "26.0"), 7),
        ((3, 800, 8), ((), ("z",), ()), ("44.0", "2.0"), 5),
    ],
)
def test_pictures_show_one_devices_share(
    shape: tuple[int, ...], dims: tuple[tuple[str, ...], ...], block: tuple[str, str], lines: int
) -> None:
    drawn = picture(shape, Sharding(dims), {"x": 2, "y": 4, "z": 64})
    assert f'<rect width="{block[0]}" height="{block[1]}" fill="var(--pz-fill)"/>' in drawn
    assert drawn.count("<path") == lines


def test_numbers_have_no_picture() -> None:
    assert picture((), None, {"x": 2}) == ""
