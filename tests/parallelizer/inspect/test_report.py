"""The summary of real plans: every part is there, says the plan's own numbers, and fits 120 columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import parallelizer as pz
from parallelizer import zoo
from parallelizer.inspect import report
from parallelizer.inspect.words import time_text
from parallelizer.plans import Collective, Plan, Tried
from parallelizer.wording import bytes_text


def _plan(name: str) -> Plan:
    model = zoo.model(name)
    shapes = model.state_shapes(), model.batch_shapes()
    return pz.plan(model.step, *shapes, topology="cpu:8", mesh={"x": 8}, donate_argnums=0)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return _plan("gpt-toy")


@pytest.fixture(scope="module")
def text(plan: Plan) -> str:
    return report.summary(plan)


def test_summary_holds_the_plans_numbers(plan: Plan, text: str) -> None:
    cost = plan.cost
    for words in (
        f"{time_text(cost.step_s)} per step",
        f"{bytes_text(cost.peak_bytes)} of {bytes_text(plan.memory.limit_bytes)} per device",
        "proven best for this mesh (gap 0 %)",
        "train_step on cpu:8 (8 x cpu), mesh x=8",
        f"{sum(c.count for c in plan.collectives)} collectives per step",
        f"no layout below {time_text(plan.bound)}",
    ):
        assert words in text
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert time_text(cost.compute_s) in rows["computing"]
    assert time_text(cost.exposed_communication_s) in rows["waiting for communication"]
    assert time_text(cost.hidden_communication_s) in rows["communication hidden behind computing"]
    assert plan.mesh.rides_on("x") in rows["x"] and "data" in rows["x"]
    for kind, size in plan.memory.by_kind:
        assert bytes_text(size) in rows[kind]


def test_summary_names_lines_and_folds_alike(text: str) -> None:
    assert "layers.py:" in text and "/layers.py" not in text
    assert "mlp/up/kernel" in text and "{key,query," in text
    assert "{targets,tokens}" in text
    assert max(map(len, text.splitlines())) <= report.WIDTH
    assert all(line == line.rstrip() for line in text.splitlines())


def test_summary_is_the_same_from_a_file(plan: Plan, text: str, tmp_path: Path) -> None:
    plan.save(str(tmp_path / "plan.json"))
    assert pz.load_plan(tmp_path / "plan.json").summary() == text


def test_identical_layers_are_one_row() -> None:
    text = report.summary(_plan("mlp"))
    lines = [line for line in text.splitlines() if "layers_{0..5}/kernel" in line]
    assert len(lines) == 1 and "f32[32,32]" in lines[0]
    assert "layers_3" not in text


def test_what_is_odd_is_said(plan: Plan) -> None:
    odd = replace(
        plan,
        gap=0.04,
        unknown=(("mystery", 3, "/far/away/model.py:7 (f)"),),
        pins={"params/*/kernel": "[x, -]"},
        tried=(*plan.tried, Tried({"x": 4, "y": 2}, plan.cost.step_s * 1.5, "feasible", 2.0)),
    )
    text = report.summary(odd)
    assert "at most 4 % could still be gained on this mesh (gap 4 %)" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "mystery 3 model.py:7 (f)" in lines
    assert "params/*/kernel [x, -]" in lines
    assert any(line.startswith("x=4, y=2") and "+50 %" in line and "not searched to the end" in line for line in lines)


def test_brackets_are_text_and_nothing_is_nothing(plan: Plan) -> None:
    strange = Collective("permute", ("x",), 10, 1, "[bold]a.py:1 (f)", "[red]w[/red]", "[/]", 1)
    text = report.summary(replace(plan, collectives=(strange,)))
    assert "[red]w[/red]" in text and "[bold]a.py:1" in text
    assert "COMMUNICATION: none" in report.summary(replace(plan, collectives=()))


def test_long_lists_are_counted(plan: Plan) -> None:
    many = tuple(replace(plan.collectives[0], source=f"m.py:{i} (f)", size_bytes=1000 + i) for i in range(20))
    text = report.summary(replace(plan, collectives=many))
    rest = sum(c.total_bytes for c in sorted(many, key=lambda c: -c.total_bytes)[12:])
    assert f"... and 8 smaller ones, {bytes_text(rest)} together" in text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 10, ""), (10, 10, "████"), (5, 10, "██"), (0.001, 10, ""), (0.2, 10, "▏"), (1, 0, "")],
)
def test_bars(part: float, whole: float, text: str) -> None:
    assert report.bar(part, whole, 4) == text
