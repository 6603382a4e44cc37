"""One long sequence cut along its positions: shifts, rolls, running sums, VALID windows and associative scans move
borders and totals instead of the sequence, and the compiled program moves what was planned."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import parallelizer as pz
from passes.rules.exchanges import Border, Totals, Turn

_RNG = np.random.default_rng(0)
LENGTH, CHANNELS = 32768, 4
SEQUENCE = jnp.asarray(_RNG.normal(size=(1, LENGTH, CHANNELS)) * 0.1, "float32")
KERNEL = jnp.asarray(_RNG.normal(size=(CHANNELS, CHANNELS)), "float32")


def _trained(forward):
    def step(w, x):
        value, grad = jax.value_and_grad(lambda w: (forward(jnp.tanh(x @ w)) ** 2).mean())(w)
        return w - 0.1 * grad, value

    return step


def _recurrence(x):
    """A linear recurrence whose decays are the sequence's own: the core of S5 and Mamba."""

    def combine(first, then):
        return first[0] * then[0], first[1] * then[0] + then[1]

    return lax.associative_scan(combine, (jax.nn.sigmoid(x), x), axis=1)[1]


def _valid(x):
    """A window without padding: 8 positions fewer are left."""
    kernel = jnp.ones((9, CHANNELS, CHANNELS)) / 9
    return lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


# Only forwards in `make test`: compiling every level takes its time.
SCANS = [lambda w, x: (w, (_recurrence(jnp.tanh(x @ w)) ** 2).mean())]
if os.environ.get("TESTS") == "full":
    SCANS.append(_trained(_recurrence))

# Per case: what is computed of the sequence, and the kinds of collectives that may be larger than sums of weights.
STEPS = {
    "next position": (lambda x: x[:, 1:] - x[:, :-1], {"permute"}),
    "roll": (lambda x: jnp.roll(x, 5, 1) * x, {"permute"}),
    "shift by padding": (lambda x: jnp.pad(x[:, :-2], ((0, 0), (2, 0), (0, 0))) * x, {"permute"}),
    "valid windows": (_valid, {"permute"}),
    "running sum": (lambda x: jnp.cumsum(x, 1), {"all_gather"}),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_sequence_cut_by_positions_is_not_gathered(name):
    forward, kinds = STEPS[name]
    fn = _trained(forward)
    step = pz.parallelize(fn, mesh={"x": 8}, pins={"x": (None, "x")})
    for a, b in zip(
        jax.tree.leaves(step(KERNEL, SEQUENCE)), jax.tree.leaves(jax.jit(fn)(KERNEL, SEQUENCE)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-7)
    moved = [c for c in step.plan.collectives if c.kind != "all_reduce"]
    assert moved and {c.kind for c in moved} <= kinds
    assert max(c.size_bytes for c in moved) < SEQUENCE.nbytes / 64
    assert step.plan.audit().ok


@pytest.mark.parametrize("fn", SCANS, ids=range(len(SCANS)))
def test_an_associative_scan_is_cut_along_what_it_scans(fn):
    """All but the last levels are cut; every level moves one position."""
    step = pz.parallelize(fn, mesh={"x": 8}, pins={"x": (None, "x")})
    for a, b in zip(
        jax.tree.leaves(step(KERNEL, SEQUENCE)), jax.tree.leaves(jax.jit(fn)(KERNEL, SEQUENCE)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-7)
    plan = step.plan
    borders = [c for c in plan.collectives if c.kind == "permute"]
    assert borders and all(c.size_bytes == CHANNELS * 4 for c in borders)
    assert max(c.size_bytes for c in plan.collectives) < SEQUENCE.nbytes
    assert plan.audit().ok


def test_borders_that_drift():
    """Of 20 elements 16 are left, from the third on, in 4 blocks: 4 elements of 5 each, and what the others lack."""
    border = Border("d", 0, 0, -2, 2, 4)
    assert [border.needs(p, 4) for p in range(4)] == [(-2, 1), (-1, 0), (0, -1), (1, -2)]
    assert border.reach(4) == (1, 1) and border.length(4, 5) == 4
    assert border.messages(4, 20) == (("permute", 1, 0), ("permute", 1, 1))
    assert border.fits(4, 20) and not border.fits(3, 20)
    assert not Border("d", 0, 0, 2, 0, 14).fits(2, 16)  # the second block would need 9 elements before its 8


@pytest.mark.parametrize(
    ("by", "parts", "sent"),
    [
        (1, ((1, 3, 1), (0, 0, 3)), [1]),
        (4, ((1, 0, 4),), [4]),
        (6, ((2, 2, 2), (1, 0, 2)), [2, 2]),
        (15, ((0, 1, 3), (3, 0, 1)), [1]),
    ],
)
def test_a_turned_block_is_put_together_from_two(by, parts, sent):
    turn = Turn("d", 0, 0, by)
    assert turn.parts(4, 16) == parts
    assert [n for _, n, _ in turn.messages(4, 16)] == sent


def test_totals_are_one_element_of_every_block():
    assert Totals("d", 0, 0).messages(8, 64) == (("all_gather", 8, 0),)
