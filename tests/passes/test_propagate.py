"""Propagation of annotations: precedence, conflicts, ways back, and what takes no part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer.tracer import trace
from passes.flows import Flow, find_flows
from passes.ir import OPEN, Graph, Sharding
from passes.normalize import drop_dead
from passes.propagate import BACKWARD, BOTH, FORWARD, NONE, Propagated, Seed, direction, propagate
from passes.rules import Rule

SIZES = {"x": 2, "y": 4}


def graph_of(fn: Any, *shapes: tuple[int, ...]) -> Graph:
    return drop_dead(trace(fn, [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]).graph)


def dims(text: str) -> Sharding:
    """ "x,-" -> [x, -]; "x*y" is both axes, "*" an open dimension."""
    words = {"-": (), "*": OPEN}
    return Sharding(tuple(words.get(w, tuple(w.split("*"))) for w in text.split(",")))


def run(graph: Graph, *seeds: str | None, priorities: tuple[int, ...] = ()) -> Propagated:
    """Propagate from seeds of the inputs, in order; their names are "a", "b", ..."""
    given = {
        v: Seed(dims(s), "abc"[i], priorities[i] if priorities else 0)
        for i, (v, s) in enumerate(zip(graph.inputs, seeds, strict=False))
        if s is not None
    }
    return propagate(graph, SIZES, given)


def result(found: Propagated, graph: Graph, k: int = 0) -> str:
    return str(found.values[graph.outputs[k]])


@pytest.mark.parametrize(
    ("seeds", "first", "second", "out"),
    [
        (("x,-", None), "[x, -]", "[-, -]", "[x, -]"),
        ((None, "-,y"), "[-, -]", "[-, y]", "[-, y]"),
        (("-,x", None), "[-, x]", "[x, -]", "[-, -]"),  # contracted: sideways, not forwards
        (("x,y", None), "[x, y]", "[y, -]", "[x, -]"),
        (("x,-", "-,x"), "[x, -]", "[-, x]", "[-, x]"),  # the larger operand's
        (("x*y,-", "-,x"), "[x*y, -]", "[-, x]", "[-, x]"),
        (("x,-", "x,-"), "[x, -]", "[x, -]", "[x, -]"),
        (("*,x", "*,*"), "[-, x]", "[x, -]", "[-, -]"),  # open and reached by nothing: whole
    ],
)
def test_products(seeds: tuple[str | None, ...], first: str, second: str, out: str) -> None:
    graph = graph_of(lambda a, b: a @ b, (16, 32), (32, 64))
    found = run(graph, *seeds)
    assert [str(found.values[v]) for v in graph.inputs] == [first, second] and result(found, graph) == out


def test_element_wise_operations_come_before_products() -> None:
    graph = graph_of(lambda a, b, c: jnp.tanh(a @ b) + c, (16, 32), (32, 64), (16, 64))
    found = run(graph, "x,-", None, "-,x")
    assert result(found, graph) == "[-, x]"  # of c, although the product came first
    alone = run(graph, "x,-", None, None)
    assert result(alone, graph) == "[x, -]"


def test_priorities_of_the_user_come_before_those_of_operations() -> None:
    graph = graph_of(lambda a, b, c: jnp.tanh(a @ b) + c, (16, 32), (32, 64), (16, 64))
    assert result(run(graph, "x,-", None, "-,x", priorities=(0, 0, 1)), graph) == "[x, -]"
    assert result(run(graph, "x,-", None, "-,x", priorities=(1, 0, 0)), graph) == "[-, x]"


def test_a_value_keeps_its_dimensions_and_axes_for_its_own_priority() -> None:
    graph = graph_of(lambda a, b: a + b, (16, 32), (16, 32))
    found = run(graph, "x,-", "-,x", priorities=(0, 1))
    assert [str(found.values[v]) for v in graph.inputs] == ["[x, -]", "[-, x]"]  # b is not cut by a's x meanwhile
    assert result(found, graph) == "[x, -]"


def test_axes_put_together_from_both_sides() -> None:
    graph = graph_of(lambda a, b: a + b, (16, 32), (16, 32))
    assert result(run(graph, "x,-", "-,y"), graph) == "[x, y]"
    assert result(run(graph, "x*y,-", "x,-"), graph) == "[x*y, -]"
    assert result(run(graph, "x,-", "y,-"), graph) == "[-, -]"  # nothing that both could follow


def test_what_does_not_divide_is_not_cut() -> None:
    graph = graph_of(lambda a, b: a @ b, (16, 32), (32, 6))
    found = propagate(
        graph, SIZES, {graph.outputs[0]: Seed(dims("-,*"), "out"), graph.inputs[0]: Seed(dims("y,-"), "a")}
    )
    assert result(found, graph) == "[-, -]"  # closed by its own annotation
    assert result(run(graph, "x*y,-", None), graph) == "[x*y, -]"
    small = graph_of(lambda a: a.reshape(2, 8, 32), (16, 32))
    assert result(run(small, "y,-"), small) == "[-, -, -]" and result(run(small, "x,y"), small) == "[x, -, y]"


def test_broadcasts_take_the_large_side_first() -> None:
    graph = graph_of(lambda a, b: a + b, (16, 32), (32,))
    found = run(graph, "x,y", None)
    assert str(found.values[graph.inputs[1]]) == "[y]"
    assert result(run(graph, None, "y"), graph) == "[-, y]"


def test_carries_of_loops_are_cut_alike_everywhere() -> None:
    def fn(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, wi: (jnp.tanh(h @ wi), h.sum(1)), x, w)

    graph = graph_of(fn, (8, 16), (3, 16, 16))
    found = run(graph, "x,-", None)
    assert [result(found, graph, k) for k in (0, 1)] == ["[x, -]", "[-, x]"]
    (op,) = (op for op in graph.ops if op.primitive == "scan")
    assert str(found.values[op.regions[0].inputs[0]]) == "[x, -]"


def test_branches_read_what_is_outside() -> None:
    graph = graph_of(lambda p, x: lax.cond(p.sum() > 0, lambda a: a * 2, jnp.tanh, x), (2,), (8, 16))
    found = run(graph, None, "x,y")
    assert result(found, graph) == "[x, y]"


def test_the_way_of_an_axis_leads_back_to_its_annotation() -> None:
    graph = graph_of(lambda a, b: jnp.tanh(a @ b).T, (16, 32), (32, 64))
    found = run(graph, "x,-", "-,y")
    hops, seed = found.way(graph.outputs[0], 1, "x")
    assert [h.op.primitive for h in hops] == ["transpose", "tanh", "dot_general"]
    assert hops[-1].value == graph.inputs[0] and hops[-1].dim == 0 and seed is not None and seed.where == "a"
    assert all(h.op.source is not None and h.op.source.file.endswith("test_propagate.py") for h in hops)
    other = found.way(graph.outputs[0], 0, "y")[1]
    assert other is not None and other.where == "b"
    assert found.way(graph.inputs[0], 0, "x") == ((), found.seeds[graph.inputs[0]])
    assert found.way(graph.outputs[0], 0, "x") == ((), None)


def test_a_name_is_no_place_to_be_cut_otherwise_unless_it_is_pinned() -> None:
    graph = graph_of(lambda a: pz.hint(a * 2, "h") + 1, (16, 32))
    (name,) = (op.outputs[0] for op in graph.ops if op.primitive == "name")
    assert find_flows(graph, ()).root(name) != name and find_flows(graph, (name,)).root(name) == name
    found = propagate(graph, SIZES, {name: Seed(dims("-,y"), "h")})
    assert [str(found.values[v]) for v in (graph.inputs[0], graph.outputs[0])] == ["[-, y]", "[-, y]"]


def test_constants_are_made_anew_for_every_reader() -> None:
    graph = graph_of(lambda a, b: (a + jnp.arange(32.0), b * jnp.arange(32.0)), (16, 32), (16, 32))
    flows = find_flows(graph, ())
    made = {op.primitive for op in graph.ops if op.outputs and op.outputs[0] in flows.free}
    assert "iota" in made and not flows.free & set(graph.inputs)
    found = run(graph, "-,x", "-,y")
    assert [result(found, graph, k) for k in (0, 1)] == ["[-, x]", "[-, y]"]


def test_an_annotation_is_taken_over_by_what_it_stands_on() -> None:
    on = NamedSharding(AbstractMesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2), P("x"))

    def fn(a: Any) -> Any:
        b = a * 2
        return jnp.tanh(lax.with_sharding_constraint(b, on)), b + 1

    with jax.sharding.use_abstract_mesh(on.mesh):
        graph = graph_of(fn, (16, 32))
    (op,) = (op for op in graph.ops if op.primitive == "sharding_constraint")
    found = propagate(graph, SIZES, {op.outputs[0]: Seed(dims("x,-"), "here")})
    assert [result(found, graph, k) for k in (0, 1)] == ["[x, -]", "[x, -]"]
    seed = found.way(graph.outputs[1], 0, "x")[1]
    assert seed is not None and seed.where == "here"
    opened = propagate(graph, SIZES, {op.outputs[0]: Seed(dims("x,*"), "here")})
    assert result(opened, graph, 1) == "[x, -]"  # by propagation instead


@pytest.mark.parametrize(
    ("kind", "single", "crossing", "ways"),
    [
        ("elementwise", True, False, (BOTH, BOTH, BOTH, BOTH, BOTH)),
        ("pass", False, False, (NONE, BOTH, BOTH, BOTH, BOTH)),
        ("forward", True, False, (FORWARD, FORWARD, BOTH, BOTH, BOTH)),
        ("forward", False, False, (NONE, FORWARD, BOTH, BOTH, BOTH)),
        ("other", True, False, (NONE, NONE, BOTH, BOTH, BOTH)),
        ("other", True, True, (NONE, NONE, NONE, BOTH, BOTH)),
        ("broadcast", True, False, (NONE, NONE, BACKWARD, BACKWARD, BOTH)),
    ],
)
def test_the_levels_of_precedence(kind: str, single: bool, crossing: bool, ways: tuple[str, ...]) -> None:
    graph = graph_of(jnp.tanh, (8,))
    rule = Rule(((("d0",),),), ((("d0",),),), {"d0": 8})
    crossed = frozenset({"d0"}) if crossing else frozenset()
    dims = ((("d0",),), (("d0",),))
    flow = Flow((0,), (1,), dims, ("d0",), rule, kind, crossed, single, graph.ops[0])
    assert tuple(direction(flow, "d0", level) for level in range(5)) == ways
