"""Lines along a window cut over devices: when they may be, and whole training steps with the neighbours' exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import parallelizer as pz
from parallelizer.tracer import trace
from passes.rules import rule_for

_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _rule(fn, *shapes):
    graph = trace(fn, tuple(jnp.ones(s) for s in shapes)).graph
    return rule_for(graph, graph.ops[-1])


def _conv(strides, padding, **options):
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=_NUMBERS, **options)


@pytest.mark.parametrize(
    ("strides", "padding", "kernel", "size", "borders"),
    [
        ((1, 1), "SAME", 3, 16, (1, 1)),
        ((1, 1), "SAME", 5, 16, (2, 2)),
        ((1, 1), "SAME", 2, 16, (0, 1)),
        ((2, 2), "SAME", 3, 16, (0, 1)),  # one row more below than above: as TensorFlow pads
        ((2, 2), [(1, 1), (1, 1)], 3, 16, (1, 0)),  # as PyTorch pads: ResNet's
        ((2, 2), [(3, 3), (3, 3)], 7, 16, (3, 2)),  # ResNet's first
        ((4, 4), "VALID", 4, 16, (0, 0)),  # patches: nothing moves
        ((2, 2), "SAME", 1, 16, (0, 0)),
    ],
)
def test_borders_of_convolutions(strides, padding, kernel, size, borders):
    rule = _rule(_conv(strides, padding), (2, size, size, 3), (kernel, kernel, 3, 4))
    assert rule.sizes["s0"] == size // strides[0]
    found = [(b.before, b.after) for b in rule.halos if b.factor == "s0"]
    assert found == ([borders] if any(borders) else [])


def test_a_block_must_hold_the_border_of_its_neighbour():
    """A kernel of 9 reads 4 rows of either side: blocks of 3 rows of 12 do not have them."""
    rule = _rule(_conv((1, 1), "SAME"), (1, 12, 12, 2), (9, 9, 2, 2))
    assert rule.fits("s0", 3) and not rule.fits("s0", 4) and rule.fits("s0", 1)


def test_results_that_lie_nearly_with_their_blocks_have_borders_that_drift():
    """12 lines of which 10 are left: in two blocks, each of 5 lines made of its own 6 and one of the other's."""
    rule = _rule(_conv((1, 1), "VALID"), (1, 12, 12, 2), (3, 3, 2, 2))
    assert rule.sizes["s0"] == 2 and rule.fits("s0", 2)
    (border,) = (h for h in rule.halos if h.factor == "s0")
    assert [border.needs(p, 2) for p in range(2)] == [(0, 1), (1, 0)] and border.length(2, 6) == 7


def test_results_that_do_not_lie_with_their_blocks_stay_whole():
    """11 lines of 13 cannot be cut alike; 8 of 16 lie too far from where they came from."""
    for size, kernel in ((13, 3), (16, 9)):
        rule = _rule(_conv((1, 1), "VALID"), (1, size, size, 2), (kernel, kernel, 2, 2))
        assert not any(f.startswith("s") for f in rule.cuttable())


def test_windows_side_by_side_need_no_neighbour():
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    rule = _rule(pool, (2, 12, 16, 3))
    assert rule.halos == () and {rule.sizes[f] for f in rule.cuttable()} == {2, 6, 8, 3}


def _step(kernels, images):
    def loss(kernels):
        x = images
        for k in kernels[:-1]:
            x = jnp.maximum(_conv((1, 1), "SAME")(x, k), 0)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        return (_conv((2, 2), "SAME")(x, kernels[-1]) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(kernels)
    return [k - 0.1 * g for k, g in zip(kernels, grads, strict=True)], value


def test_one_large_image_is_cut_into_strips_and_compiled_as_planned():
    """With one image there is no batch to cut: its rows are, and every permute of the plan is in the program."""
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(rng.normal(size=(3, 3, n, 8)) * 0.1, "float32") for n in (3, 8, 8)]
    image = jnp.asarray(rng.normal(size=(1, 256, 256, 3)), "float32")
    step = pz.parallelize(_step, mesh={"x": 8})
    got, want = step(kernels, image), jax.jit(_step)(kernels, image)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=1e-6)
    planned = [c for c in step.plan.collectives if c.kind == "permute"]
    assert planned and all(c.why == "borders of windows" for c in planned)
    assert not any(c.kind == "all_gather" for c in step.plan.collectives)
    assert step.plan.audit().ok


def test_a_high_picture_on_a_tpu_is_cut_in_two_dimensions():
    """2048 x 2048 pixels over 4 x 4 devices: borders of both dimensions are priced, and worth it."""
    shapes = [jax.ShapeDtypeStruct((3, 3, n, 32), "float32") for n in (3, 32, 32)]
    image = jax.ShapeDtypeStruct((1, 2048, 2048, 3), "float32")
    plan = pz.plan(_step, shapes, image, topology="v5e:4x4", mesh={"x": 4, "y": 4})
    axes = {c.axes for c in plan.collectives if c.kind == "permute"}
    assert {a for on in axes for a in on} == {"x", "y"}
    one = pz.plan(_step, shapes, image, topology="v5e:1x1")
    assert plan.cost.step_s < one.cost.step_s / 10
