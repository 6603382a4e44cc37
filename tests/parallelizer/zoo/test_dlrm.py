"""DLRM: published size, look-ups and products against the definition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import dlrm

OPTIONS: dict[str, Any] = {"rows": (9, 5), "dim": 4, "bottom": (4,), "top": (3, 1), "lookups": 2, "rows_multiple": 8}


def test_rows_and_parameters_are_those_that_mlperf_trains() -> None:
    config = zoo.model("dlrm-criteo").config
    assert (len(config.rows), sum(config.rows)) == (26, 187_767_399)
    perceptrons = 171_392 + 2_197_505  # 13-512-256-128 and 479-1024-1024-512-256-1
    exact = zoo.model("dlrm-criteo", rows_multiple=1)
    assert exact.num_parameters == 128 * 187_767_399 + perceptrons
    assert zoo.model("dlrm-criteo").num_parameters / exact.num_parameters < 1.0001


def test_large_tables_are_padded_and_small_ones_not() -> None:
    model = zoo.model("dlrm-toy", **OPTIONS)
    assert model.config.padded_rows == (16, 5)
    assert model.state_shapes()["params"]["tables"]["table_0"]["embedding"].shape == (16, 4)
    batch = model.example_batch(jax.random.key(0), batch=200)
    assert batch["sparse"].max(axis=(0, 2)).tolist() == [8, 4]


def test_logits_are_perceptrons_on_products_of_all_pairs() -> None:
    model = zoo.model("dlrm-toy", **OPTIONS)
    params = model.init(jax.random.key(0))["params"]
    batch = model.example_batch(jax.random.key(1), batch=3)
    logits = dlrm.apply(model.config, params, batch["dense"], batch["sparse"])

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])

    x = np.maximum(dense("bottom_0", np.asarray(batch["dense"])), 0)
    tables = [np.asarray(params["tables"][f"table_{i}"]["embedding"]) for i in (0, 1)]
    found = [t[np.asarray(batch["sparse"][:, i])].sum(axis=1) for i, t in enumerate(tables)]
    pairs = [(found[0] * x).sum(-1), (found[1] * x).sum(-1), (found[1] * found[0]).sum(-1)]
    joined = np.concatenate([x, np.stack(pairs, axis=1)], axis=1)
    wanted = dense("top_1", np.maximum(dense("top_0", joined), 0))[:, 0]
    assert np.allclose(logits, wanted, atol=1e-5)


def test_a_row_that_is_not_looked_up_stays() -> None:
    model = zoo.model("dlrm-toy", **OPTIONS)
    state = model.init(jax.random.key(0))
    batch = model.example_batch(jax.random.key(1), batch=2)
    new, _ = jax.jit(model.step)(state, batch)
    before, after = (np.asarray(s["params"]["tables"]["table_0"]["embedding"]) for s in (state, new))
    seen = set(np.asarray(batch["sparse"][:, 0]).ravel().tolist())
    moved = {row for row in range(16) if not np.array_equal(before[row], after[row])}
    assert moved and moved <= seen and len(seen) < 9


def test_the_loss_is_the_mean_of_minus_log_likelihoods() -> None:
    model = zoo.model("dlrm-toy", **OPTIONS)
    params = model.init(jax.random.key(0))["params"]
    batch = model.example_batch(jax.random.key(1), batch=4)
    logits = dlrm.apply(model.config, params, batch["dense"], batch["sparse"])
    chance = jnp.where(batch["click"] == 1, jax.nn.sigmoid(logits), 1 - jax.nn.sigmoid(logits))
    assert np.allclose(dlrm.loss(model.config, params, batch, None), -jnp.mean(jnp.log(chance)), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "option"),
    [({"rows": ()}, "rows"), ({"bottom": (8,)}, "bottom"), ({"top": (4,)}, "top"), ({"lookups": 0}, "lookups")],
)
def test_impossible_values_name_their_option(options: dict[str, Any], option: str) -> None:
    with pytest.raises(zoo.ZooOptionError) as caught:
        zoo.model("dlrm-toy", **options)
    assert caught.value.option == option
