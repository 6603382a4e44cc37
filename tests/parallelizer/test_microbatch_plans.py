"""`microbatches=` from the user's side: the same results, files, errors, and the way out of memory that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parallelizer as pz
from parallelizer import errors, zoo


def _loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"])
    return jnp.mean((hidden @ params["v"] - batch["y"]) ** 2)


def _step(params, batch):
    loss, gradient = jax.value_and_grad(_loss)(params, batch)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), loss


def _arguments(examples=32, width=64):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(16, width)), "v": rng.normal(size=(width, 1))}
    batch = {"x": rng.normal(size=(examples, 16)), "y": rng.normal(size=(examples, 1))}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, batch))


def _equal(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("microbatches", [4, {"batch/*": 4}, {"batch/x": 2, "batch/y": 2}])
def test_the_decorated_step_computes_what_the_step_computes(microbatches):
    step, plain = pz.parallelize(_step, microbatches=microbatches), jax.jit(_step)
    params, batch = _arguments()
    other = params
    for _ in range(3):
        params, loss = step(params, batch)
        other, same = plain(other, batch)
        _equal((params, loss), (other, same))
    assert any(v.op.primitive == "scan" for v in step.plan.live.priced.program.grouping.visits)


def test_a_transformer_step_in_microbatches():
    model = zoo.model("gpt-toy", layers=2, optimizer="sgd", learning_rate=0.1)
    state, batch = model.init(jax.random.key(0)), model.example_batch(jax.random.key(1), batch=16)
    found = pz.parallelize(model.step, microbatches=2)(state, batch)
    _equal(found, jax.jit(model.step)(state, batch))


def test_saved_plans_know_their_microbatches(tmp_path):
    params, batch = _arguments()
    made = pz.plan(_step, params, batch, topology="cpu:8", microbatches=4)
    made.save(tmp_path / "plan.json")
    again = pz.load_plan(tmp_path / "plan.json")
    _equal(again.apply(_step)(params, batch), _step(params, batch))
    assert made.graph_hash != pz.plan(_step, params, batch, topology="cpu:8").graph_hash


def test_parts_that_do_not_divide_the_batch():
    params, batch = _arguments()
    for wrong in (5, 0, {"batch/x": 4, "batch/y": 2}):
        with pytest.raises(errors.MicrobatchCountError) as caught:
            pz.plan(_step, params, batch, topology="cpu:8", microbatches=wrong)
        assert "32 examples" in str(caught.value)


def test_a_step_whose_results_would_change_is_refused_with_its_line():
    def normalized(params, batch):
        x = batch["x"] / jnp.std(batch["x"] @ params["w"])
        return jax.grad(lambda p: jnp.mean((x @ p["w"] @ p["v"] - batch["y"]) ** 2 * jnp.max(x @ p["w"])))(params)

    params, batch = _arguments()
    with pytest.raises(errors.MicrobatchRefusedError) as caught:
        pz.plan(normalized, params, batch, topology="cpu:8", microbatches=4)
    assert "test_microbatch_plans.py" in str(caught.value)


def test_what_does_not_fit_is_offered_microbatches():
    """Activations of a wide hidden layer fill the memory; parts of the batch do not, and the plan named does fit."""
    shapes = jax.eval_shape(lambda: _arguments(4096, 4096))
    whole = pz.plan(_step, *shapes, topology="cpu:8")
    limit = whole.cost.peak_bytes // 2
    with pytest.raises(errors.DoesNotFitError) as caught:
        pz.plan(_step, *shapes, topology="cpu:8", memory_bytes=limit)
    offered = [line for line in str(caught.value).splitlines() if "microbatches=" in line]
    assert offered
    count = int(offered[0].split("microbatches=")[1].split()[0])
    assert pz.plan(_step, *shapes, topology="cpu:8", memory_bytes=limit, microbatches=count).cost.peak_bytes <= limit
