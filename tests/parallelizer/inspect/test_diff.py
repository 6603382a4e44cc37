"""What differs between real plans of one program: memory limit, cost, shardings, collectives; and what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import parallelizer as pz
from parallelizer import zoo
from parallelizer.inspect.diff import diff
from parallelizer.inspect.report import WIDTH
from parallelizer.inspect.words import time_text
from parallelizer.plans import Array, Plan
from parallelizer.wording import bytes_text
from passes.ir import Sharding


def _plan(**options: Any) -> Plan:
    model = zoo.model("mlp")
    given = {"topology": "cpu:8", "mesh": {"x": 8}} | options
    return pz.plan(model.step, model.state_shapes(), model.batch_shapes(), donate_argnums=0, **given)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return _plan()


@pytest.fixture(scope="module")
def tight(plan: Plan) -> Plan:
    return _plan(memory_bytes=plan.cost.peak_bytes // 2)


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_plan_does_not_differ_from_its_file(plan: Plan, tmp_path: Path) -> None:
    plan.save(str(tmp_path / "plan.json"))
    assert diff(plan, pz.load_plan(tmp_path / "plan.json")).split("\n\n") == [
        "train_step: the same program",
        "topology, mesh, memory limit and pins are the same",
        f"COST: the same, {time_text(plan.cost.step_s)} and {bytes_text(plan.cost.peak_bytes)}",
        "SHARDINGS: all 40 arguments are cut alike",
        "COMMUNICATION: the same",
    ]


def test_less_memory_shows_in_every_part(plan: Plan, tight: Plan) -> None:
    text = plan.diff(tight)
    lines = _lines(text)
    assert "memory limit 8 GB 58.8 kB" in lines
    before, after = plan.cost, tight.cost
    assert any(line.startswith(f"step {time_text(before.step_s)} {time_text(after.step_s)} +") for line in lines)
    sizes = f"peak memory {bytes_text(before.peak_bytes)} {bytes_text(after.peak_bytes)} -"
    assert any(line.startswith(sizes) for line in lines)
    changed = sum(a.sharding != b.sharding for a, b in zip(plan.inputs, tight.inputs, strict=True))
    assert f"SHARDINGS: {changed} of 40 arguments are cut otherwise" in lines
    gathers = [c for c in tight.collectives if c.kind == "all_gather"]
    count, size = sum(c.count for c in gathers), bytes_text(sum(c.total_bytes for c in gathers))
    assert f"all-gather x - {count} x, {size} new" in lines
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_way_back_is_the_mirror(plan: Plan, tight: Plan) -> None:
    lines = _lines(tight.diff(plan))
    assert "memory limit 58.8 kB 8 GB" in lines
    assert any(line.startswith("all-gather x ") and line.endswith("- gone") for line in lines)


def test_other_machines_and_meshes(plan: Plan) -> None:
    lines = _lines(plan.diff(_plan(topology="v5e:2x4", mesh={"x": 2, "y": 4})))
    assert "topology cpu:8 v5e:2x4" in lines
    assert "mesh x=8 x=2, y=4" in lines
    assert "y rides on - torus 4" in lines


def test_other_arrays_and_axes_orders(plan: Plan) -> None:
    new = Array("state/params/extra", (4,), "float32", Sharding((("x",),)))
    turned = tuple(replace(c, axes=tuple(reversed(c.axes))) for c in plan.collectives)
    other = replace(plan, inputs=(*plan.inputs[1:], new), collectives=turned, graph_hash="0" * 64)
    lines = _lines(plan.diff(other))
    assert lines[0] == "train_step: different programs or shapes"
    assert f"arguments only before: {plan.inputs[0].path}" in lines
    assert "arguments only after: state/params/extra" in lines
    assert lines[-1] == "COMMUNICATION: the same"


def test_nothing_moves_in_either(plan: Plan) -> None:
    quiet = replace(plan, collectives=())
    assert quiet.diff(quiet).endswith("COMMUNICATION: none in either")
    assert "gone" in plan.diff(quiet)
