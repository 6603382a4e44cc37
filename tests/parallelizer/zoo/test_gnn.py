"""Graph networks: published size, one interaction against the definition, and padding that changes nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from parallelizer import zoo
from parallelizer.zoo import gnn

# Unoptimised code compiles in half the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_graphcast_has_as_many_parameters_as_published() -> None:
    assert zoo.model("graphcast").num_parameters == pytest.approx(36.7e6, rel=0.01)


def test_meshgraphnet_has_the_parameters_of_fifteen_steps_128_wide() -> None:
    def perceptron(inputs: int, outputs: int = 128) -> int:
        return (inputs + 1) * 128 + 129 * 128 + 129 * outputs + (256 if outputs == 128 else 0)

    wanted = 15 * (perceptron(3 * 128) + perceptron(2 * 128)) + perceptron(12) + perceptron(4) + perceptron(128, 3)
    assert zoo.model("meshgraphnet").num_parameters == wanted


def test_an_interaction_sums_over_the_edges_that_reach_a_node() -> None:
    config = zoo.model("gnn-toy").config
    params = gnn._init_interaction(config, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    senders, receivers = np.array([0, 1, 2, 0]), np.array([1, 1, 0, 1])
    edges = jax.random.normal(keys[0], (4, 2, 16))
    sources, targets = jax.random.normal(keys[1], (3, 2, 16)), jax.random.normal(keys[2], (2, 2, 16))
    new_edges, new_nodes = gnn.interact(config, params, edges, sources, targets, (senders, receivers))
    for b in range(2):
        arrived = np.zeros((2, 16), np.float32)
        for i, (s, r) in enumerate(zip(senders, receivers, strict=True)):
            seen = np.concatenate([edges[i, b], sources[s, b], targets[r, b]])
            message = np.asarray(gnn._mlp(config, params["edge"], seen))
            assert np.allclose(new_edges[i, b], edges[i, b] + message, atol=1e-5)
            arrived[r] += message
        update = gnn._mlp(config, params["node"], np.concatenate([targets[:, b], arrived], axis=-1))
        assert np.allclose(new_nodes[:, b], targets[:, b] + update, atol=1e-5)


@pytest.mark.parametrize("name", ["gnn-toy", "graphcast-toy"])
def test_padding_is_not_felt(name: str) -> None:
    """What lies in the padding reaches neither results of real nodes nor the loss."""
    model = zoo.model(name)
    config = model.config
    params, batch = jit(model.init)(jax.random.key(0))["params"], model.example_batch(jax.random.key(1), batch=2)
    other = {**batch, "nodes": batch["nodes"].at[config.nodes :].add(7.0)}
    for kind, (count, _, _) in config.kinds.items():
        features = batch[kind]["features"].at[count:].add(3.0)
        other[kind] = {**batch[kind], "features": features}
    forward, loss = jit(partial(gnn.apply, config)), jit(partial(gnn.loss, config, key=None))
    a, b = forward(params, batch), forward(params, other)
    assert np.array_equal(a[: config.nodes], b[: config.nodes])
    assert not np.array_equal(a[config.nodes :], b[config.nodes :])
    assert np.array_equal(loss(params, batch), loss(params, other))
    assert np.allclose(loss(params, batch), np.mean(np.square(a - batch["targets"])[: config.nodes]), rtol=1e-5)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("name", ["gnn-toy", "graphcast-toy"])
def test_example_batches_are_shaped_as_announced_and_steps_as_their_state(name: str) -> None:
    model = zoo.model(name)
    batch, state = model.example_batch(jax.random.key(0), batch=3), model.state_shapes()
    assert _shapes(batch) == _shapes(model.batch_shapes(batch=3))
    assert _shapes(jax.eval_shape(model.step, state, batch)[0]) == _shapes(state)
