"""Reasons of real plans: what is cut how, why, what was next best and its price, and what follows."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import zoo
from parallelizer.errors import UnknownPathError
from parallelizer.inspect.explain import explain, find
from parallelizer.inspect.words import extra_text
from parallelizer.plans import Plan
from passes.explain import exact_reason

KERNEL = "state/params/layers_0/kernel"


def _plan(**options: Any) -> Plan:
    model = zoo.model("mlp")
    shapes = model.state_shapes(), model.batch_shapes()
    return pz.plan(model.step, *shapes, topology="cpu:8", mesh={"x": 8}, donate_argnums=0, **options)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return _plan()


@pytest.fixture(scope="module")
def tight(plan: Plan) -> Plan:
    return _plan(memory_bytes=plan.cost.peak_bytes // 2)


@pytest.fixture(scope="module")
def pinned() -> Plan:
    return _plan(pins={"params/layers_0/kernel": P("x", None)})


def _rows(text: str) -> dict[str, str]:
    return {line[2:13].strip(): line[13:] for line in text.splitlines() if line.startswith("  ") and line[2:13].strip()}


def test_a_whole_path_and_its_unique_end_say_the_same(plan: Plan) -> None:
    text = plan.explain(KERNEL)
    assert text == plan.explain("params/layers_0/kernel")
    assert text.splitlines()[0] == f"{KERNEL}  f32[32,32]"
    rows = _rows(text)
    assert rows["cut"] == "whole: every device holds all of it"
    assert rows["per device"] == "4.1 kB of 4.1 kB, on 8 devices each"
    assert rows["why"] == "the cheapest way to cut it"


def test_the_runner_ups_price_is_exact(plan: Plan) -> None:
    assert plan.live is not None and plan.graph is not None
    value = plan.graph.inputs[plan.graph.input_paths.index(KERNEL)]
    best = exact_reason(plan.live.priced, plan.live.choice, value, False).runner_up
    assert best is not None and best.extra_s > 0
    row = _rows(plan.explain(KERNEL))["runner-up"]
    assert row.startswith(f"{best.sharding}: {extra_text(best.extra_s, plan.objective_s)}")
    assert row.endswith("everything else free to change")


def test_a_plan_from_a_file_keeps_other_choices(plan: Plan, tmp_path: Path) -> None:
    plan.save(str(tmp_path / "plan.json"))
    loaded = pz.load_plan(tmp_path / "plan.json")
    choice = next(c for c in plan.choices if KERNEL in c.arrays)
    row = _rows(loaded.explain(KERNEL))["runner-up"]
    assert row.startswith(f"{choice.runner_up}: {extra_text(choice.extra_s, plan.objective_s)}")
    assert row.endswith("other choices kept")


def test_memory_is_named_as_the_reason(tight: Plan) -> None:
    forced = next(c for c in tight.choices if c.reason == "memory" and c.arrays[0].startswith("state/"))
    loaded = replace(tight, live=None, graph=None, traced=None)
    rows = _rows(loaded.explain(forced.arrays[0]))
    assert rows["why"] == "forced by the memory limit of 58.8 kB per device"
    assert rows["runner-up"].endswith("if only it fitted") and ": -" in rows["runner-up"]


def test_a_cut_array_says_blocks_and_moves(tight: Plan) -> None:
    arrays = {a.path: a for a in tight.inputs}
    gathered = next(c for c in tight.collectives if c.kind == "all_gather" and c.array in arrays and c.op != -1)
    rows = _rows(tight.explain(gathered.array))
    cut = str(arrays[gathered.array].sharding)
    assert rows["cut"].startswith(f"{cut}: dimension ") and "over x=8 into 8 blocks of 4" in rows["cut"]
    size = f"all-gather over x, {gathered.count} x {gathered.size_bytes / 1e3:.3g} kB at layers.py:"
    assert size in tight.explain(gathered.array)


def test_pins_are_named(pinned: Plan) -> None:
    text = pinned.explain(KERNEL)
    assert _rows(text)["why"] == "pinned by the user"
    assert "pin params/layers_0/kernel = [x, -]" in text
    assert "runner-up" not in text


def test_an_end_of_several_paths_lists_parameters_first(plan: Plan) -> None:
    text = plan.explain("layers_0/kernel")
    assert text.startswith("'layers_0/kernel' names 3 arrays, 2 different:")
    assert text.index(KERNEL) < text.index("state/opt_state/0/{mu,nu}/layers_0/kernel")
    assert "cut alike  state/opt_state/0/nu/layers_0/kernel" in text


def test_globs_and_beginnings_fold_identical_layers(plan: Plan) -> None:
    for asked in ("state/params/*/bias", "params/*/bias"):
        names = [a.path for a in find(plan, asked)]
        assert names == [a.path for a in plan.inputs if fnmatch.fnmatchcase(a.path, "state/params/*/bias")]
    text = plan.explain("state/params")
    assert text.startswith("'state/params' names 12 arrays, ")
    assert "state/params/layers_{0..5}/bias" in text and "such as    state/params/layers_0/bias" in text


def test_many_decisions_are_cut_short(plan: Plan) -> None:
    choices = tuple(replace(c, extra_s=i * 1e-3) for i, c in enumerate(plan.choices))
    text = explain(replace(plan, choices=choices, live=None), "state/*")
    assert text.count("\n  why") == 6
    assert text.splitlines()[-1].endswith("; name one to hear about it")


def test_results_follow_their_arguments(plan: Plan) -> None:
    rows = _rows(plan.explain("0/params/layers_0/kernel"))
    assert rows["why"] == f"the next step's {KERNEL}: it leaves the step cut as that came"
    assert _rows(plan.explain("1/loss"))["why"] == "a single number is on every device"


def test_unknown_paths_have_neighbours(plan: Plan) -> None:
    with pytest.raises(UnknownPathError) as caught:
        plan.explain("params/layers_0/kernl")
    assert KERNEL in caught.value.details["nearest"]
    assert "explain names 'params/layers_0/kernl'" in str(caught.value)
