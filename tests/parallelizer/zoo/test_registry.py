"""Names, options, published sizes, and what holds for every model of the zoo."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo

SMALL = ("mlp", "bert", "gpt-toy", "gpt-toy-linen", "gpt-toy-nnx", "gpt-demo", "llama-toy")

# Counted in the released checkpoints (GPT-2, Llama 3), vocabulary not padded.
EXACT = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
}

# The papers' figures in billions, to the digits that they print.
ROUNDED = {
    "gpt3-1.3b": (1.3, 1),
    "gpt3-2.7b": (2.7, 1),
    "gpt3-6.7b": (6.7, 1),
    "gpt3-13b": (13.0, 0),
    "gpt3-15b": (15.0, 0),
    "gpt3-39b": (39.0, 0),
    "gpt3-175b": (175.0, 0),
}


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_of_the_released_checkpoint(name: str) -> None:
    assert zoo.model(name, vocab_multiple=1).num_parameters == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_round_to_the_published_figure(name: str) -> None:
    billions, digits = ROUNDED[name]
    assert round(zoo.model(name, vocab_multiple=1).num_parameters / 1e9, digits) == billions


def test_every_name_is_a_small_model_or_has_its_published_size() -> None:
    """Of the families here; those of other families, decoding and quantised forms are tested beside them."""
    configs = ("MlpConfig", "BertConfig", "GptConfig", "LlamaConfig")
    mine = {name for name in zoo.names() if type(zoo.model(name).config).__name__ in configs}
    assert {name for name in mine if not name.endswith(("-decode", "-int8", "-fp8"))} == {*SMALL, *EXACT, *ROUNDED}


def test_padding_adds_rows_of_the_table_and_nothing_else() -> None:
    padded, exact = zoo.model("gpt2-124m"), zoo.model("gpt2-124m", vocab_multiple=1)
    assert padded.config.padded_vocab == 50_304
    assert padded.num_parameters - exact.num_parameters == (50_304 - 50_257) * 768


@pytest.mark.smoke
@pytest.mark.parametrize("name", SMALL)
def test_a_step_returns_a_state_like_the_one_it_got(name: str) -> None:
    model = zoo.model(name)
    state = model.state_shapes()
    new_state, metrics = jax.eval_shape(model.step, state, model.batch_shapes())
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert _shapes(new_state) == _shapes(state)
    assert {k: (v.shape, v.dtype) for k, v in metrics.items()} == {
        "loss": ((), jnp.float32),
        "grad_norm": ((), jnp.float32),
    }


@pytest.mark.parametrize("name", SMALL)
def test_example_batches_are_shaped_as_announced_and_repeatable(name: str) -> None:
    model = zoo.model(name)
    batch = model.example_batch(jax.random.key(7), batch=3)
    assert _shapes(batch) == _shapes(model.batch_shapes(batch=3))
    again = model.example_batch(jax.random.key(7), batch=3)
    other = model.example_batch(jax.random.key(8), batch=3)
    assert jax.tree.all(jax.tree.map(np.array_equal, batch, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, batch, other))


def test_full_size_models_allocate_nothing() -> None:
    before = sum(array.nbytes for array in jax.live_arrays())
    model = zoo.model("gpt3-175b")
    out = jax.eval_shape(model.step, model.state_shapes(), model.batch_shapes(batch=512))
    after = sum(array.nbytes for array in jax.live_arrays())
    params = sum(math.prod(p.shape) * p.dtype.itemsize for p in jax.tree.leaves(out[0]["params"]))
    assert params == 4 * model.num_parameters
    assert after - before < 10_000


def test_a_scanned_program_does_not_grow_with_its_layers() -> None:
    def equations(layers: int) -> int:
        model = zoo.model("gpt-toy", layers=layers)
        return len(jax.make_jaxpr(model.step)(model.state_shapes(), model.batch_shapes()).eqns)

    assert equations(2) == equations(64)


@pytest.mark.parametrize("scan", [True, False])
def test_parameter_paths_read_well(scan: bool) -> None:
    state = zoo.model("gpt-toy", scan=scan, tied=False).state_shapes()
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    if scan:
        assert paths["params/layers/mlp/up/kernel"] == (2, 64, 256)
        assert paths["params/layers/attention/query/kernel"] == (2, 64, 8, 8)
    else:
        assert paths["params/layers_0/mlp/up/kernel"] == (64, 256)
        assert paths["params/layers_1/attention/out/kernel"] == (8, 8, 64)
    assert paths["params/token_embedding/embedding"] == (256, 64)
    assert paths["params/head/kernel"] == (64, 256)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(zoo.UnknownModelError, match="gpt3-175b") as caught:
        zoo.model("gpt3-175")
    assert caught.value.nearest[0] == "gpt3-175b"
    assert caught.value.known == zoo.names()


def test_an_unknown_option_lists_the_nearest() -> None:
    with pytest.raises(zoo.ZooOptionError, match="Nearest: layers") as caught:
        zoo.model("gpt-toy", layer=3)
    assert caught.value.option == "layer"
    assert {"layers", "learning_rate", "batch"} <= set(caught.value.known)


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("gpt-toy", {"remat": "some"}, "remat"),
        ("gpt-toy", {"dtype": "float16"}, "dtype"),
        ("gpt-toy", {"heads": 7}, "embed"),
        ("gpt-toy", {"metrics": ("accuracy",)}, "metrics"),
        ("gpt-toy", {"dropout": 1.0}, "dropout"),
        ("gpt-toy", {"layers": 0}, "layers"),
        ("llama-toy", {"kv_heads": 3}, "heads"),
        ("bert", {"loss": "nll"}, "loss"),
        ("mlp", {"hidden": 0}, "hidden"),
        ("gpt-toy-nnx", {"scan": True}, "scan"),
        ("gpt-toy-linen", {"projection": "flat"}, "projection"),
    ],
)
def test_impossible_values_name_their_option(name: str, options: dict[str, Any], option: str) -> None:
    with pytest.raises(zoo.ZooOptionError) as caught:
        zoo.model(name, **options)
    assert caught.value.option == option


def test_a_sequence_beyond_the_models_is_refused() -> None:
    with pytest.raises(zoo.ZooOptionError, match="made for sequences of 32"):
        zoo.model("gpt-toy").batch_shapes(sequence=64)


def test_options_come_on_top_of_the_models_own() -> None:
    model = zoo.model("gpt3-175b", batch=64, sequence=512, remat="dots")
    assert model.batch_shapes()["tokens"].shape == (64, 512)
    assert (model.config.remat, model.config.layers) == ("dots", 96)
    assert dataclasses.is_dataclass(model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.batch = 1


def test_metrics_can_be_left_out() -> None:
    model = zoo.model("mlp", metrics=())
    _, metrics = jax.eval_shape(model.step, model.state_shapes(), model.batch_shapes())
    assert metrics == {}


def _product_flop(jaxpr: Any) -> int:
    """2 FLOP per multiply-add of every matrix product in a jaxpr without loops."""
    total = 0
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _product_flop(inner)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
    return total


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {}),
        ("bert", {}),
        ("bert", {"loss": "tokens", "fused": False}),
        ("gpt-toy", {"scan": False}),
        ("gpt-toy", {"scan": False, "tied": False, "projection": "flat"}),
        ("gpt-toy-linen", {"scan": False}),
        ("gpt-toy-nnx", {}),
        ("llama-toy", {"scan": False}),
    ],
)
def test_the_flop_formula_counts_the_products_of_the_program(name: str, options: dict[str, Any]) -> None:
    model = zoo.model(name, **options)
    jaxpr = jax.make_jaxpr(model.step)(model.state_shapes(), model.batch_shapes())
    assert _product_flop(jaxpr.jaxpr) == model.flop_per_token * model.batch * model.sequence
