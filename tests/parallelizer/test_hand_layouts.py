"""Hand-written layouts as plans, rules by dimension, and pins by dimension."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from cost_model.topology import parse_topology
from parallelizer import zoo
from parallelizer.dims import dims_of
from parallelizer.errors import (
    ContradictionError,
    LayoutFitError,
    MeshSizeError,
    NotDivisibleError,
    UnknownDimError,
    UnknownLayoutError,
)
from parallelizer.layouts import LAYOUTS, fitting, hand_layout
from parallelizer.pins import read_pins
from parallelizer.tracer import trace
from passes.dim_names import Dims, named_dims
from passes.ir import OPEN, Graph
from passes.normalize import drop_dead


@cache
def program(name: str, batch: int | None = None, **options) -> tuple[Graph, Dims]:
    model = zoo.model(name, **options)
    graph = drop_dead(trace(model.step, (model.state_shapes(), model.batch_shapes(batch=batch)), {}).graph)
    return graph, named_dims(graph)


def placed(layout, name="gpt-toy", topology="cpu:8", mesh=None, batch=None, **options):
    """(mesh, path -> how it is cut, what is pinned inside)."""
    graph, dims = program(name, batch, **options)
    found = hand_layout(layout, graph, parse_topology(topology), mesh, dims)
    paths = dict(zip(graph.inputs, graph.input_paths, strict=True))
    inputs = {paths[v]: str(s) for v, (_, s) in found.pins.items() if v in paths}
    inside = [(graph.values[v].shape, str(s)) for v, (_, s) in found.pins.items() if v not in paths]
    return dict(found.mesh), inputs, inside


TOKENS, UP, DOWN = "batch/tokens", "state/params/layers/mlp/up/kernel", "state/params/layers/mlp/down/kernel"
QUERY, NORM, TABLE = (
    "state/params/layers/attention/query/kernel",
    "state/params/layers/mlp_norm/scale",
    "state/params/token_embedding/embedding",
)
MU_UP = "state/opt_state/1/0/mu/layers/mlp/up/kernel"
WHOLE3, WHOLE4 = "[-, -, -]", "[-, -, -, -]"
# What each layout does to the batch, to mlp/up [layers, embed, mlp], its first moment, the query kernel [layers, embed,
# heads, head_dim], a norm's scale [layers, embed] and the table [vocab, embed].
EXPECTED = {
    "ddp": ({"data": 8}, "[data, -]", WHOLE3, WHOLE3, WHOLE4, "[-, -]", "[-, -]"),
    "zero1": ({"data": 8}, "[data, -]", WHOLE3, "[-, -, data]", WHOLE4, "[-, -]", "[-, -]"),
    "zero2": ({"data": 8}, "[data, -]", WHOLE3, "[-, -, data]", WHOLE4, "[-, -]", "[-, -]"),
    "zero3": ({"data": 8}, "[data, -]", *["[-, -, data]"] * 2, "[-, data, -, -]", "[-, data]", "[data, -]"),
    "fsdp": ({"fsdp": 8}, "[fsdp, -]", *["[-, -, fsdp]"] * 2, "[-, fsdp, -, -]", "[-, fsdp]", "[fsdp, -]"),
    "hybrid_fsdp": (
        {"replica": 2, "fsdp": 4}, "[replica*fsdp, -]", *["[-, -, fsdp]"] * 2, "[-, fsdp, -, -]", "[-, fsdp]",
        "[fsdp, -]",
    ),
    "megatron": (
        {"tensor": 8}, "[-, -]", *["[-, -, tensor]"] * 2, "[-, -, tensor, -]", "[-, -]", "[tensor, -]"
    ),
    "megatron_sequence": (
        {"tensor": 8}, "[-, -]", *["[-, -, tensor]"] * 2, "[-, -, tensor, -]", "[-, -]", "[tensor, -]"
    ),
    "fsdp_tensor": (
        {"tensor": 8}, "[-, -]", *["[-, -, tensor]"] * 2, "[-, -, tensor, -]", "[-, -]", "[tensor, -]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", EXPECTED)
def test_what_a_layout_does_to_the_inputs(layout):
    mesh, *expected = EXPECTED[layout]
    sizes, inputs, _ = placed(layout)
    assert (sizes, [inputs[p] for p in (TOKENS, UP, MU_UP, QUERY, NORM, TABLE)]) == (mesh, expected)


def test_fully_sharded_x_tensor_cuts_both_ways():
    sizes, inputs, _ = placed("fsdp_tensor", mesh={"tensor": 2})
    assert sizes == {"fsdp": 4, "tensor": 2}
    assert inputs[TOKENS] == "[fsdp, -]" and inputs[UP] == "[-, fsdp, tensor]" and inputs[DOWN] == "[-, tensor, fsdp]"
    assert inputs[QUERY] == "[-, fsdp, tensor, -]" and inputs[TABLE] == "[tensor, fsdp]" and inputs[NORM] == "[-, fsdp]"


def test_grouped_heads_that_a_degree_does_not_divide_stay_whole_as_in_practice():
    _, inputs, _ = placed("megatron", "llama-toy", mesh={"tensor": 4})
    key = "state/params/layers/attention/key/kernel"
    assert inputs[key] == WHOLE4 and inputs[QUERY] == "[-, -, tensor, -]"
    _, inputs, _ = placed("megatron", "llama-toy", mesh={"tensor": 2})
    assert inputs[key] == "[-, -, tensor, -]"


def test_merged_and_fused_heads_are_cut_by_heads():
    _, inputs, _ = placed("megatron", "llama-toy", mesh={"tensor": 4}, projection="flat")
    assert inputs[QUERY] == "[-, -, tensor]"
    _, inputs, _ = placed("megatron", "bert", mesh={"tensor": 4})
    assert inputs["state/params/layers_0/attention/qkv/kernel"] == "[-, tensor]"


@pytest.mark.parametrize("scan", [True, False])
def test_megatron_says_how_the_residual_stream_is_cut(scan):
    _, _, whole = placed("megatron", mesh={"tensor": 4}, scan=scan)
    _, _, cut = placed("megatron_sequence", mesh={"tensor": 4}, scan=scan)
    assert whole and {s for _, s in whole} == {"[data, -, -]"}
    assert cut and {s for _, s in cut} == {"[data, tensor, -]"} and {n for n, _ in cut} == {(16, 32, 64)}


def test_experts():
    up = "state/params/layers/experts/up/kernel"
    sizes, inputs, _ = placed("expert", "mixtral-toy", batch=16)
    assert sizes == {"expert": 8} and inputs[up] == "[-, expert, -, -]" and inputs[TOKENS] == "[expert, -]"
    sizes, inputs, _ = placed("expert", "mixtral-toy", mesh={"expert": 2}, batch=16)
    assert sizes == {"fsdp": 4, "expert": 2} and inputs[up] == "[-, expert, fsdp, -]"
    assert inputs[TOKENS] == "[fsdp*expert, -]" and inputs[QUERY] == "[-, fsdp*expert, -, -]"


def test_defaults_keep_within_a_node():
    assert placed("hybrid_fsdp", topology="h100:8x2")[0] == {"replica": 2, "fsdp": 8}
    assert placed("fsdp_tensor", topology="h100:8x2")[0] == {"fsdp": 2, "tensor": 8}
    assert placed("megatron", topology="v5e:4x4")[0] == {"data": 2, "tensor": 8}


def test_the_order_of_the_mesh_is_the_users_where_it_is_whole():
    sizes, _, _ = placed("fsdp_tensor", mesh={"tensor": 2, "fsdp": 4})
    assert list(sizes.items()) == [("tensor", 2), ("fsdp", 4)]


def test_rules_by_dimension():
    rules = {"batch": "data", "mlp": "tensor", "heads": "tensor", "embed": ("data",), "vocab": "tensor"}
    sizes, inputs, inside = placed(rules, mesh={"data": 4, "tensor": 2})
    assert sizes == {"data": 4, "tensor": 2} and not inside
    assert inputs[UP] == "[-, data, tensor]" and inputs[QUERY] == "[-, data, tensor, -]"
    assert inputs[TABLE] == "[tensor, data]" and inputs[TOKENS] == "[data, -]" and inputs[NORM] == "[-, data]"


def test_of_two_rules_for_one_axis_the_first_counts_and_none_means_whole():
    _, inputs, _ = placed({"vocab": "x", "embed": "x", "mlp": None})
    assert inputs[TABLE] == "[x, -]" and inputs[UP] == "[-, x, -]" and inputs[TOKENS] == "[-, -]"


def test_which_layouts_fit():
    assert "expert" in fitting(program("mixtral-toy")[1])
    assert fitting(program("gpt-toy")[1]) == tuple(n for n in LAYOUTS if n != "expert")
    assert fitting(program("resnet-toy")[1]) == ("ddp", "zero1", "zero2", "zero3", "fsdp", "hybrid_fsdp")


REFUSED = {
    "unknown": (UnknownLayoutError, ("megatrom",), {}, ["'megatrom'", "did you mean 'megatron'", "ddp: the batch"]),
    "no heads": (LayoutFitError, ("megatron", "resnet-toy"), {}, ["heads or mlp", "channels_1=", "'fsdp'"]),
    "no experts": (LayoutFitError, ("expert",), {}, ["experts", "mlp=256", "'megatron'"]),
    "degree": (
        LayoutFitError, ("megatron",), {"mesh": {"tensor": 16}, "topology": "cpu:16"},
        ["cuts heads over tensor: 8 does not divide by 16", "8 = 0 * 16 + 8", "1, 2, 4, 8"],
    ),
    "batch": (LayoutFitError, ("ddp",), {"batch": 12}, ["12 does not divide by 8", "12 = 1 * 8 + 4", "1, 2, 4"]),
    "one example": (LayoutFitError, ("ddp",), {"batch": 1}, ["'ddp' cuts batch", "'megatron'"]),
    "one example, cut": (
        LayoutFitError, ("megatron",), {"batch": 1, "mesh": {"data": 2, "tensor": 4}}, ["batch over data: 1 does not"]
    ),
    "axes": (LayoutFitError, ("megatron",), {"mesh": {"model": 8}}, ["data, tensor", "model=8", "8 devices"]),
    "mesh": (MeshSizeError, ("fsdp_tensor",), {"mesh": {"fsdp": 3}}, ["cpu:8 has 8", "fsdp=3"]),
    "mesh of rules": (MeshSizeError, ({"batch": "x"},), {"mesh": {"x": 4}}, ["x=4 = 4, not 8"]),
    "axes of rules": (
        LayoutFitError, ({"batch": "x", "mlp": "y"},), {}, ["needs a mesh with the axes x, y", "no axes"]
    ),
    "dimension of rules": (UnknownDimError, ({"mpl": "x"},), {}, ["'mpl'", "did you mean 'mlp'", "embed=64"]),
    "degree of rules": (LayoutFitError, ({"batch": "x"},), {"batch": 12}, ["12 does not divide by 8"]),
    "no rules": (LayoutFitError, ({"batch": None},), {}, ["no rule names a mesh axis"]),
    "no axis": (LayoutFitError, ({"batch": ("x", 3)},), {}, ["neither a mesh axis nor a tuple"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_its_arithmetic(case):
    kind, args, options, said = REFUSED[case]
    with pytest.raises(kind) as caught:
        placed(*args, **options)
    assert [s for s in said if s not in str(caught.value)] == []


# ---- the documentation ----
def test_the_documentation_names_every_layout_and_role_and_its_code_runs():
    text = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text(encoding="utf-8")
    assert [n for n in LAYOUTS if f'`"{n}"`' not in text] == []
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "docs/layouts.md", "exec"), names)
    assert names["hand"].mesh.sizes == {"fsdp": 4, "tensor": 2}
    assert names["rules"].shardings["params/up"] == P(None, "tensor")
    assert names["pinned"].shardings["batch/x"][0] == "x"


# ---- plans ----
def step(state, batch):
    def loss(w):
        h = jnp.tanh(batch["x"] @ w["up"])
        return jnp.mean((pz.hint(h, "hidden") @ w["down"] - batch["y"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["w"])
    moment = jax.tree.map(lambda m, g: 0.9 * m + g, state["m"], gradient)
    return {"w": jax.tree.map(lambda w, m: w - 0.1 * m, state["w"], moment), "m": moment}, value


def arguments():
    keys = jax.random.split(jax.random.key(0), 4)
    w = {"up": jax.random.normal(keys[0], (32, 64)) / 6, "down": jax.random.normal(keys[1], (64, 24)) / 8}
    batch = {"x": jax.random.normal(keys[2], (16, 32)), "y": jax.random.normal(keys[3], (16, 24))}
    return {"w": w, "m": jax.tree.map(jnp.zeros_like, w)}, batch


@pytest.mark.parametrize("layout", ["zero2", "fsdp", "hybrid_fsdp", "megatron", "fsdp_tensor"])
def test_a_layout_computes_what_the_plain_step_computes(layout):
    plan = pz.plan(step, *arguments(), topology="cpu:8", layout=layout, donate_argnums=0)
    assert plan.pins == {f"layout {layout}": LAYOUTS[layout].what}
    found, expected = plan.apply()(*arguments()), jax.jit(step)(*arguments())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_a_layout_and_our_plan_side_by_side():
    ours = pz.plan(step, *arguments(), topology="cpu:8")
    hand = pz.plan(step, *arguments(), topology="cpu:8", layout="fsdp")
    assert hand.shardings["state/w/up"] == P(None, "fsdp") and hand.shardings["state/m/down"] == P("fsdp")
    assert ours.objective_s <= hand.objective_s * (1 + 1e-9)
    text = ours.diff(hand)
    assert "layout fsdp" in text and "zero3 by its other name" in text
    assert "PINNED BY THE USER" in hand.summary() and "layout fsdp" in hand.summary()
    (row,) = [line for line in hand.summary().splitlines() if line.startswith("mlp ")]
    assert row.split()[:4] == ["mlp", "64", "fsdp", "fsdp"]  # parameters, and their moments
    assert "<h3>Dimensions" in hand._repr_html_() and "mlp" in hand._repr_html_()


def test_a_users_pin_goes_before_the_layout():
    plan = pz.plan(step, *arguments(), topology="cpu:8", layout="fsdp", pins={"state/w/up": P("fsdp", None)})
    assert plan.shardings["state/w/up"] == P("fsdp")
    assert plan.pins == {"layout fsdp": LAYOUTS["fsdp"].what, "state/w/up": "[fsdp, -]"}


def test_a_decorated_step_takes_a_layout():
    decorated = pz.parallelize(step, layout={"batch": "data"}, devices=jax.devices()[:8])
    decorated(*arguments())
    assert decorated.plan.mesh.sizes == {"data": 8} and decorated.plan.shardings["batch/x"] == P("data")


# ---- pins by dimension ----
def pins_of(pins, name="gpt-toy"):
    graph, _ = program(name)
    paths = dict(zip(graph.inputs, graph.input_paths, strict=True))
    return {paths.get(v, v): (why, s) for v, (why, s) in read_pins(pins, graph).items()}


def test_a_dimension_is_pinned_wherever_it_occurs():
    found = pins_of({"dims": {"mlp": "y", "batch": "x"}})
    assert {p for p in found if "params" in p} == {
        p for p in found if "/mlp/" in p and "/down/bias" not in p and "params" in p
    }
    why, up = found[UP]
    assert why == "dims mlp" and up.dims == (OPEN, OPEN, ("y",)) and found[MU_UP][1] == up
    assert found[TOKENS][1].dims == (("x",), OPEN)


def test_two_dimensions_of_one_array():
    found = pins_of({"dims": {"embed": ("x",), "mlp": "y"}})
    assert found[UP] == ("dims embed and dims mlp", found[UP][1]) and found[UP][1].dims == (OPEN, ("x",), ("y",))


def test_a_plan_keeps_pins_by_dimension_and_those_of_hints():
    pins = {"dims": {"batch": "x", "mlp": "y"}}
    plan = pz.plan(step, *arguments(), topology="cpu:8", mesh={"x": 2, "y": 4}, pins=pins)
    assert plan.shardings["batch/x"][0] == "x" and plan.shardings["batch/y"][0] == "x"
    assert plan.shardings["state/w/up"][1] == "y" and plan.shardings["state/m/down"][0] == "y"
    (hidden,) = [v for v in read_pins({"hidden": P()}, plan.graph)]
    assert plan.layout.values[hidden].dims == (("x",), ("y",))
    assert {d.name: [c.axes for c in d.of("data")] for d in dims_of(plan) if d.of("data")}["batch"] == [("x",)]


def test_a_pin_that_says_the_same_is_no_contradiction():
    found = pins_of({"batch/tokens": P("x", None), "dims": {"batch": "x"}})
    assert found[TOKENS][0] == "batch/tokens" and found[TOKENS][1].dims == (("x",), ())


BAD_PINS = {
    "unknown": (UnknownDimError, {"dims": {"bacht": "x"}}, ["'bacht'", "did you mean 'batch'", "length=32"]),
    "against a path": (
        ContradictionError, {"batch/tokens": P(None, "x"), "dims": {"batch": "x"}}, ["batch/tokens", "dims batch"]
    ),
    "whole by path": (ContradictionError, {UP: P(), "dims": {"mlp": "x"}}, [UP, "dims mlp", "[-, -, -]"]),
    "one axis twice": (ContradictionError, {"dims": {"vocab": "x", "embed": "x"}}, ["dims vocab", "dims embed"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PINS)
def test_bad_pins_by_dimension(case):
    kind, pins, said = BAD_PINS[case]
    with pytest.raises(kind) as caught:
        pins_of(pins)
    assert [s for s in said if s not in str(caught.value)] == []


def test_a_dimension_that_an_axis_does_not_divide_is_refused():
    with pytest.raises(NotDivisibleError, match="24 does not divide by 16"):
        pz.plan(step, *arguments(), topology="cpu:16", mesh={"x": 16}, pins={"dims": {"features_1": "x"}})
