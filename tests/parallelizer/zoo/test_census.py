"""The census of operations: nothing in the zoo is without a rule, and the page that says so is in step."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest
from jax import lax

from parallelizer import zoo
from parallelizer.tracer import trace
from parallelizer.zoo.census import CONTROL, UNKNOWN, Census, census, page, rule_kind, small_names, take

PAGE = Path(__file__).resolve().parents[3] / "docs" / "coverage.md"


def test_the_page_is_in_step_and_every_operation_has_a_rule() -> None:
    found = take()
    assert {c.model: c.unknown for c in found if c.unknown} == {}
    written = PAGE.read_text(encoding="utf-8")
    made = page(found)
    if f"with JAX {jax.__version__};" in written:
        assert written == made, "write it again: python -m parallelizer.zoo.census docs/coverage.md"
    # Other versions of JAX trace to other operations, but of the same models.
    models = re.findall(r"^\| (\S.*?) \| \d+ \| \d+ \|", written, re.MULTILINE)
    assert models == [c.model for c in found]


def test_every_family_has_a_small_model() -> None:
    families = {type(zoo.model(name).config).__name__ for name in zoo.names()}
    assert families == {type(zoo.model(name).config).__name__ for name in small_names()}


def test_loops_and_their_bodies_are_counted_once() -> None:
    few, many = (census("gpt-toy", layers=layers) for layers in (2, 8))
    assert few.counts == many.counts
    assert few.counts["scan", CONTROL] == 2
    assert few.model == "gpt-toy (layers=2)"


def test_an_operation_without_a_rule_is_named() -> None:
    graph = trace(lambda x: lax.linalg.lu(x)[0] + 1, (jax.ShapeDtypeStruct((4, 4), "float32"),)).graph
    kinds = {op.primitive: rule_kind(graph, op) for op in graph.ops}
    assert kinds["add"] == "elementwise"
    text = page(
        [Census("sound", {("add", "elementwise"): 2}), Census("odd", {("add", "elementwise"): 1, ("f", UNKNOWN): 3})]
    )
    assert "**1 of 2 steps have a rule for every operation.**" in text
    assert "| odd | 4 | 2 | f |" in text
    assert "| `add` | elementwise | 3 | sound 2, odd 1 |" in text


@pytest.mark.smoke
def test_decoding_has_a_rule_for_every_operation() -> None:
    assert census("llama-toy-decode").unknown == ()
