"""Propagated shardings as pins: exact where a plan can have them, closest by bytes where not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from parallelizer.tracer import trace
from passes.completed import Departure, completing, departures
from passes.grouping import group_values
from passes.groups import Place
from passes.held import Held
from passes.ir import OPEN, Graph, Sharding
from passes.meshes import possible_cuts
from passes.normalize import drop_dead
from passes.program import Program, analyse

SIZES = {"x": 2, "y": 4}
X, Y, XY, NONE = ("x",), ("y",), ("x", "y"), ()


def program(fn: Any, *shapes: tuple[int, ...], pins: dict[int, Sharding] | None = None) -> tuple[Graph, Program]:
    graph = drop_dead(trace(fn, [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]).graph)
    return graph, analyse(graph, group_values(graph, possible_cuts(SIZES), (), pins))


def test_values_are_pinned_as_propagation_says() -> None:
    graph, known = program(lambda a, b: jnp.tanh(a @ b), (16, 32), (32, 64))
    a, b, out = *graph.inputs, graph.outputs[0]
    wanted = {a: Sharding((X, NONE)), b: Sharding((NONE, Y)), out: Sharding((X, Y))}
    pins = completing(known, SIZES, wanted, {})
    assert {v: pins[v] for v in wanted} == wanted
    assert not list(departures(graph, pins, wanted))


def test_what_no_strategy_gives_becomes_the_closest() -> None:
    graph, known = program(lambda a, b: a @ b, (16, 32), (32, 6))
    out = graph.outputs[0]
    wanted = {out: Sharding((X, Y))}  # 6 columns by 4
    pins = completing(known, SIZES, wanted, {})
    assert pins[out] == Sharding((X, NONE))
    assert list(departures(graph, pins, wanted)) == [Departure(out, wanted[out], pins[out])]


def test_of_values_that_are_always_cut_alike_the_larger_part_decides() -> None:
    graph, known = program(lambda a, b: (a @ b).sum(1), (16, 32), (32, 64))
    product, total = graph.ops[0].outputs[0], graph.outputs[0]
    pins = completing(known, SIZES, {product: Sharding((X, NONE)), total: Sharding((Y,))}, {})
    assert pins[product] == Sharding((X, NONE)) and total not in pins


def test_pins_of_the_user_stand_and_open_dimensions_are_free() -> None:
    graph, known = program(lambda a, b: a @ b, (16, 32), (32, 64))
    out = graph.outputs[0]
    pins = completing(known, SIZES, {out: Sharding((X, Y))}, {out: Sharding((Y, OPEN))})
    assert pins[out] == Sharding((Y, NONE))
    impossible = {out: Sharding((("x", "y"), ("x",)))}
    assert out not in completing(known, SIZES, {out: Sharding((X, Y))}, impossible)


def test_values_whose_pins_differ_are_no_group() -> None:
    def fn(a: Any, b: Any) -> Any:
        return jnp.tanh(a).T + b

    graph, together = program(fn, (16, 32), (32, 16))
    a, _ = graph.inputs
    tanh, turned = graph.ops[0].outputs[0], graph.ops[1].outputs[0]
    assert together.grouping.place(tanh).group == together.grouping.place(a).group
    _, same = program(fn, (16, 32), (32, 16), pins={a: Sharding((X, NONE)), turned: Sharding((NONE, X))})
    assert same.grouping.place(turned).group == same.grouping.place(a).group
    _, apart = program(fn, (16, 32), (32, 16), pins={a: Sharding((X, NONE)), turned: Sharding((X, NONE))})
    assert apart.grouping.place(turned).group != apart.grouping.place(a).group


def test_groups_that_are_held_apart_are_not_united() -> None:
    held = Held({1: Sharding((X, NONE)), 2: Sharding((OPEN, Y)), 3: Sharding((Y, NONE))})
    held.note(1, Place(0, (0, 1)))
    held.note(2, Place(1, (0, 1)))
    assert held.allows(2, Place(1, (0, -1))) and not held.allows(3, Place(0, (0, 1)))
    assert not held.unite(0, 1, (0, 1))  # the second dimension is whole in one, cut by y in the other
    assert held.unite(0, 1, (2, 3)) and held.axes[0, 3] == Y
