"""Which dimensions are one axis of the problem, and what they are called."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import pytest

from parallelizer import zoo
from parallelizer.tracer import trace
from passes.dim_facts import weights_of
from passes.dim_names import ROLES, Dims, named_dims
from passes.dims import ONE, dim_classes
from passes.ir import Graph
from passes.normalize import drop_dead

F32 = jnp.float32


def array(*shape: int, dtype=F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def graph_of(fn, *args) -> Graph:
    return drop_dead(trace(fn, args, {}).graph)


def classes_of(fn, *args) -> list[tuple[int, ...]]:
    """Classes of the inputs, then of the results."""
    graph = graph_of(fn, *args)
    found = dim_classes(graph)
    return [found.values[v] for v in (*graph.inputs, *graph.outputs)]


# ---- classes ----
def test_a_product_ties_what_its_factors_tie():
    (a, b), (k, n), out = classes_of(lambda x, w: x @ w, array(4, 8), array(8, 16))
    assert b == k and out == (a, n) and len({a, b, n}) == 3


def test_equal_sizes_alone_tie_nothing():
    x, w, out = classes_of(lambda x, w: x @ w > 0, array(8, 8), array(8, 8))
    assert len({*x, *w}) == 3 and out == (x[0], w[1])


def test_a_residual_ties_what_a_product_makes_to_what_it_contracts():
    x, w, out = classes_of(lambda x, w: x + x @ w, array(4, 8), array(8, 8))
    assert w[0] == w[1] == x[1] and out == x


def test_a_broadcast_of_a_bias_and_a_transpose():
    x, b, out = classes_of(lambda x, b: (x + b).T, array(4, 8), array(8))
    assert b == (x[1],) and out == (x[1], x[0])


def test_a_dimension_of_size_one_is_nobodys():
    x, out = classes_of(lambda x: jnp.sum(x, 1, keepdims=True), array(4, 8))
    assert out == (x[0], ONE)


def test_splitting_and_merging_agree_on_the_parts():
    def fn(x):
        heads = x.reshape(4, 8, 16)
        return heads, jnp.swapaxes(heads, 0, 1), (heads * 2).reshape(4, 128)

    graph = graph_of(fn, array(4, 128))
    found = dim_classes(graph)
    merged = found.values[graph.inputs[0]][1]
    split, swapped, again = (found.values[v] for v in graph.outputs)
    assert found.parts[merged] == split[1:] and found.majors(merged) == (merged, split[1])
    assert swapped == (split[1], split[0], split[2]) and again[1] == merged
    assert found.family(merged) == (merged, *split[1:])


def test_two_ways_to_split_meet_in_their_refinement():
    def fn(x):
        return x.reshape(8, 32), x.reshape(4, 64)

    graph = graph_of(fn, array(256))
    found = dim_classes(graph)
    (whole,), (eight, thirty_two), (four, sixty_four) = (found.values[v] for v in (*graph.inputs, *graph.outputs))
    assert found.parts[whole] == (eight, thirty_two)
    assert found.parts[eight][0] == four and found.parts[sixty_four] == (found.parts[eight][1], thirty_two)


def test_sizes_that_do_not_divide_each_other_tie_nothing_more():
    x, a, b = classes_of(lambda x: (x.reshape(6, 10), x.reshape(4, 15)), array(60))
    assert len({*x, *a, *b}) == 5


def test_a_loop_ties_its_carry_and_its_stacks():
    def fn(x, w):
        def body(c, slice_):
            c = jnp.tanh(c @ slice_)
            return c, jnp.sum(c)

        return jax.lax.scan(body, x, w)

    x, w, out, sums = classes_of(fn, array(4, 8), array(3, 8, 8))
    assert out == x and w[1] == w[2] == x[1] and sums == (w[0],) and w[0] not in x


def test_a_while_and_a_branch():
    def fn(x, y, flag):
        x = jax.lax.while_loop(lambda c: jnp.sum(c) < 1, lambda c: c * 2, x)
        return jax.lax.cond(flag, lambda a, b: a, lambda a, b: b, x, y)

    x, y, _, out = classes_of(fn, array(4, 8), array(4, 8), array(dtype=jnp.bool_))
    assert x == y == out


def test_the_state_that_comes_back_is_the_state_that_entered():
    def step(state, batch):
        gradient = jax.grad(lambda w: jnp.mean((batch @ w) ** 2))(state["w"])
        return {"w": state["w"] - gradient, "m": 0.9 * state["m"] + gradient}

    m, w, batch, *_ = classes_of(step, {"m": array(8, 16), "w": array(8, 16)}, array(4, 8))
    assert m == w and batch[1] == w[0]


def test_what_is_sorted_stays_and_what_is_sliced_is_near():
    graph = graph_of(lambda x: (jnp.sort(x, axis=1), x[:, :5]), array(4, 8))
    found = dim_classes(graph)
    x, in_order, part = (found.values[v] for v in (*graph.inputs, *graph.outputs))
    assert in_order == x and part[0] == x[0] and part[1] != x[1]
    assert (x[1], part[1]) in found.near


def test_an_unrolled_program_has_few_classes():
    layers = {f"w{i}": array(8, 8) for i in range(6)}

    def fn(x, w):
        for i in range(6):
            x = x + jnp.tanh(x @ w[f"w{i}"])
        return x

    assert len(dim_classes(graph_of(fn, array(4, 8), layers)).sizes) == 2


# ---- names ----
@cache
def dims_of(name: str, **options) -> tuple[Graph, Dims]:
    model = zoo.model(name, **options)
    graph = drop_dead(trace(model.step, (model.state_shapes(), model.batch_shapes()), {}).graph)
    return graph, named_dims(graph)


def texts(name: str, **options) -> dict[str, str]:
    graph, dims = dims_of(name, **options)
    return {p: dims.text(v) for p, v in zip(graph.input_paths, graph.inputs, strict=True) if graph.values[v].shape}


GPT = {
    "state/params/token_embedding/embedding": "vocab embed",
    "state/params/position_embedding/embedding": "length embed",
    "batch/tokens": "batch length",
    "batch/targets": "batch length",
}
GPT_LAYER = {
    "attention/query/kernel": "embed heads head_dim",
    "attention/value/bias": "heads head_dim",
    "attention/out/kernel": "heads head_dim embed",
    "mlp/up/kernel": "embed mlp",
    "mlp/down/kernel": "mlp embed",
    "mlp_norm/scale": "embed",
}
LLAMA_LAYER = {
    "attention/query/kernel": "embed heads head_dim",
    "attention/key/kernel": "embed kv_heads head_dim",
    "attention/out/kernel": "heads head_dim embed",
    "mlp/gate/kernel": "embed mlp",
}
TABLE = {
    "gpt-toy": ("gpt-toy", {}, GPT | {f"state/params/layers/{p}": f"layers {t}" for p, t in GPT_LAYER.items()}),
    "gpt unrolled": (
        "gpt-toy",
        {"scan": False},
        GPT | {f"state/params/layers_{i}/{p}": t for i in (0, 1) for p, t in GPT_LAYER.items()},
    ),
    "gpt with flat projections": (
        "gpt-toy",
        {"projection": "flat"},
        {"state/params/layers/attention/query/kernel": "layers embed (heads head_dim)"},
    ),
    "gpt in linen": ("gpt-toy-linen", {}, {"batch/tokens": "batch length"}),
    "llama": (
        "llama-toy",
        {},
        {f"state/params/layers/{p}": f"layers {t}" for p, t in LLAMA_LAYER.items()}
        | {"state/params/head/kernel": "embed vocab", "batch/tokens": "batch length"},
    ),
    "experts, sorted": (
        "mixtral-toy",
        {},
        {
            "state/params/layers/router/kernel": "layers embed experts",
            "state/params/layers/experts/up/kernel": "layers experts embed expert_mlp",
            "state/params/layers/experts/down/kernel": "layers experts expert_mlp embed",
        },
    ),
    "experts, one-hot": (
        "moe-toy",
        {},
        {
            "state/params/layers/router/kernel": "1 embed experts",
            "state/params/layers/experts/up/kernel": "1 experts embed expert_mlp",
            "state/params/layers/dense_0/mlp/up/kernel": "1 embed mlp",
        },
    ),
    "vit": (
        "vit-toy",
        {},
        {
            "state/params/patch_embedding/kernel": "window window channels embed",
            "state/params/head/kernel": "embed classes",
            "state/params/layers/mlp/up/kernel": "layers embed mlp",
            "batch/image": "batch height width channels",
            "batch/label": "batch",
        },
    ),
    "resnet": (
        "resnet-toy",
        {},
        {
            "state/params/head/kernel": "channels_3 classes",
            "state/params/stage_0/block_0/spatial/kernel": "window_1 window_1 channels_2 channels_2",
            "batch/image": "batch height_1 width_1 channels_5",
        },
    ),
    "t5": (
        "t5-toy",
        {},
        {
            "state/params/decoder/layers/cross/key/kernel": "layers embed heads head_dim",
            "state/params/encoder/layers/mlp/up/kernel": "layers embed mlp",
            "batch/source": "batch length",
        },
    ),
    "dlrm": (
        "dlrm-toy",
        {},
        {
            "state/params/tables/table_0/embedding": "vocab_1 embed",
            "state/params/tables/table_4/embedding": "vocab_5 embed",
            "batch/dense": "batch features",
        },
    ),
    "graph": (
        "gnn-toy",
        {},
        {"batch/edges/receivers": "edges", "batch/nodes": "nodes batch features_3", "batch/weight": "nodes"},
    ),
    "fused projections": ("bert", {}, {"state/params/layers_0/attention/qkv/kernel": "embed (heads ? head_dim)"}),
    "decoding": (
        "gpt-toy-decode",
        {},
        {"state/cache/key": "layers batch length heads head_dim", "batch/tokens": "batch"},
    ),
    "lstm": ("lstm-toy", {}, {"batch/tokens": "batch length", "state/params/head/kernel": "mlp_1 vocab"}),
}


@pytest.mark.parametrize("case", TABLE)
def test_names_tell_the_roles(case):
    name, options, expected = TABLE[case]
    found = texts(name, **options)
    assert {p: found.get(p) for p in expected} == expected


def test_optimizer_state_is_named_like_its_parameters():
    found = texts("llama-toy")
    kernel = "layers/mlp/gate/kernel"
    assert found[f"state/opt_state/1/0/mu/{kernel}"] == found[f"state/params/{kernel}"] == "layers embed mlp"


def test_names_do_not_depend_on_what_the_user_calls_things():
    model = zoo.model("llama-toy")
    state, batch = model.state_shapes(), model.batch_shapes()
    leaves, tree = jax.tree.flatten((state, batch))

    def step(xs):
        return jax.tree.leaves(model.step(*jax.tree.unflatten(tree, xs)))

    graph, plain = dims_of("llama-toy")
    weights = frozenset(i for i, v in enumerate(graph.inputs) if v in plain.weights)
    anonymous = drop_dead(trace(step, (leaves,), {}).graph)
    # Of a flat list it cannot be told what is state, so that is said; everything else is found.
    found = named_dims(anonymous, frozenset(anonymous.inputs[i] for i in weights))
    assert [found.text(v) for v in anonymous.inputs] == [plain.text(v) for v in graph.inputs]


def test_layers_of_an_unrolled_program_share_their_names():
    _, dims = dims_of("gpt-toy", scan=False)
    assert [(d.name, d.size) for d in dims.named] == [
        ("batch", 16), ("length", 32), ("vocab", 256), ("embed", 64), ("heads", 8), ("head_dim", 8), ("mlp", 256),
    ]  # fmt: skip
    (mlp,) = dims.called("mlp")
    assert len(mlp.classes) == 2  # nothing ties the hidden units of two layers but their role


def test_a_role_with_several_sizes_is_numbered_and_its_name_means_all():
    _, dims = dims_of("dlrm-toy")
    assert [d.name for d in dims.called("vocab")] == [f"vocab_{i}" for i in range(1, 6)]
    assert [d.size for d in dims.called("vocab_2")] == [1024] and dims.called("vocabulary") == ()
    assert all(d.role is None or d.role in ROLES for d in dims.named)


def test_merged_dimensions_are_cut_as_what_comes_first():
    graph, dims = dims_of("llama-toy", projection="flat")
    value = graph.inputs[graph.input_paths.index("state/params/layers/attention/query/kernel")]
    layers, embed, merged = dims.along(value)
    assert [d.name for d in merged] == ["heads", "kv_heads"]
    assert [d.name for d in embed] == ["embed"] and [d.name for d in layers] == ["layers"]


def test_what_only_the_optimizer_keeps_is_no_parameter():
    graph, dims = dims_of("gpt-toy")
    paths = dict(zip(graph.inputs, graph.input_paths, strict=True))
    assert {paths[v].split("/")[1] for v in dims.parameters} == {"params"}
    assert {paths[v].split("/")[1] for v in dims.weights - dims.parameters} == {"opt_state"}


def test_buffers_that_are_written_into_are_data():
    graph, dims = dims_of("gpt-toy-decode")
    paths = dict(zip(graph.inputs, graph.input_paths, strict=True))
    assert not any("cache" in paths[v] for v in dims.weights) and dims.weights


def test_without_state_the_argument_of_many_arrays_is_the_model():
    def forward(params, x):
        return jnp.tanh(x @ params["up"]) @ params["down"]

    graph = graph_of(forward, {"down": array(64, 3), "up": array(8, 64)}, array(4, 8))
    assert weights_of(graph) == frozenset(graph.inputs[:2])
    dims = named_dims(graph)
    assert [dims.text(v) for v in graph.inputs] == ["mlp dim_1", "features mlp", "batch features"]


def test_a_result_that_has_the_shape_of_the_data_makes_it_no_state():
    def forward(params, x):
        return jnp.tanh(x @ params["up"]) @ params["down"]

    graph = graph_of(forward, {"down": array(64, 8), "up": array(8, 64)}, array(4, 8))
    assert graph.carried and weights_of(graph) == frozenset(graph.inputs[:2])


def test_one_long_example_has_a_length_and_no_batch():
    _, dims = dims_of("llama-toy", batch=1)
    assert [(d.name, d.size) for d in dims.named if d.role in ("batch", "length", "heads", "kv_heads", "head_dim")] == [
        ("length", 32), ("heads", 8), ("kv_heads", 2), ("head_dim", 8),
    ]  # fmt: skip


def test_a_program_without_anything_to_name():
    graph = graph_of(lambda x: x * 2, array())
    assert named_dims(graph).named == ()
