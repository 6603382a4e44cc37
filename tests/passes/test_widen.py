"""What is almost all of an array is computed on all of it: the same results, without arrays that cannot be cut."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parallelizer.lower import lower
from parallelizer.prepared import prepared
from parallelizer.tracer import trace
from passes.ir import verify, walk
from passes.normalize import drop_dead

_RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(_RNG.normal(size=(2, 16)), "float32") for _ in range(2))
X3 = jnp.asarray(_RNG.normal(size=(2, 16, 3)), "float32")
W = jnp.asarray(_RNG.normal(size=(4, 3)), "float32")
LABELS = jnp.asarray(_RNG.integers(0, 3, (2, 16)))


def _recurrence(a, b):
    def combine(first, then):
        return first[0] * then[0], first[1] * then[0] + then[1]

    return lax.associative_scan(combine, (a, b), axis=1)[1]


def _next_token_loss(logits, labels):
    logs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logs, labels[:, 1:, None], -1).mean()


def _own_convolution(x, w):
    """A causal convolution as a sum of shifted products."""
    padded = jnp.pad(x, ((0, 0), (3, 0), (0, 0)))
    return sum(padded[:, k : k + x.shape[1]] * w[k] for k in range(4))


def _differences(x):
    return ((x[:, 1:] - x[:, :-1]) ** 2).sum()


# Per case: a function, its arguments, and how many operations that shift are left of which kind.
CASES = {
    "roll": (lambda x: jnp.roll(x, 3, 1), (X,), {"roll": 1}),
    "half": (lambda x: jnp.roll(x, 8, 1) * 2, (X,), {"roll": 1}),
    "two dimensions": (lambda x: jnp.roll(x, (1, -3), (0, 1)), (X,), {"roll": 2}),
    "gradient of a roll": (jax.grad(lambda x: (jnp.roll(x, 3, 1) ** 3).sum()), (X,), {"roll": 2, "within": 2}),
    "shift": (lambda x: jnp.pad(x[:, :-1], ((0, 0), (1, 0))), (X,), {"roll": 1, "within": 1}),
    "shift by padding": (lambda x: lax.pad(x, 0.5, ((0, 0, 0), (-2, 2, 0))), (X,), {"roll": 1, "within": 1}),
    "zero in front": (lambda x: jnp.concatenate([jnp.zeros((2, 1)), x[:, :-1]], 1), (X,), {"roll": 1, "within": 1}),
    "differences": (_differences, (X,), {"roll": 1, "within": 1}),
    "their gradient": (jax.grad(_differences), (X,), {"roll": 2, "within": 2}),
    "next token": (_next_token_loss, (X3, LABELS), {"roll": 1, "within": 1}),
    "its gradient": (jax.grad(_next_token_loss), (X3, LABELS), {"roll": 3, "within": 1}),
    "contraction": (
        lambda x, y: jnp.einsum("bse,bsf->ef", x[:, :-1], y[:, 1:, None]), (X3, X), {"roll": 1, "within": 2}
    ),
    "carry of a loop": (lambda x: lax.fori_loop(0, 3, lambda _, c: jnp.roll(c, 1, 1) + 1, x), (X,), {"roll": 1}),
    "convolution": (_own_convolution, (X3, W), {"roll": 3, "within": 3, "slice": 4}),  # rows of the kernel
    "largest step": (lambda x: (x[:, 1:] * x[:, :-1]).max(1), (X,), {"roll": 1, "within": 1}),
    "backwards": (lambda x: lax.associative_scan(jnp.add, x, axis=1, reverse=True), (X,), None),
    "recurrence": (_recurrence, (X, Y), None),
    "its gradients": (jax.grad(lambda a, b: (_recurrence(a, b) ** 2).sum(), (0, 1)), (X, Y), None),
    "odd lengths": (_recurrence, (X[:, :12], Y[:, :12]), None),
    "no spans": (lambda x: x[:, ::2] + x[:, 8:], (X,), {"slice": 2}),
    "mixed with others": (lambda x: jnp.tanh(x[:, :-1]).cumsum(1), (X,), {"slice": 1}),
}  # fmt: skip
_SHIFTS = ("roll", "within", "slice", "split", "pad", "concatenate")


@pytest.fixture(scope="module")
def results():
    """Every case as it was written and as it is prepared, all compiled together."""
    traced = {name: trace(fn, args) for name, (fn, args, _) in CASES.items()}
    graphs = {name: prepared(t.graph) for name, t in traced.items()}
    run = {name: traced[name].with_body(lower(g, None, None)) for name, g in graphs.items()}

    def together(given):
        return {n: (CASES[n][0](*args), run[n](*args)) for n, args in given.items()}

    return graphs, jax.jit(together)({name: args for name, (_, args, _) in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_prepared_programs_compute_the_same(name, results):
    graphs, found = results
    verify(graphs[name])
    want, got = found[name]
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, (_, _, left) in CASES.items() if left is not None])
def test_what_is_left_of_shifts(name, results):
    counts = Counter(v.op.primitive for v in walk(results[0][name]))
    assert {p: counts[p] for p in _SHIFTS if counts[p]} == CASES[name][2]


@pytest.mark.parametrize("name", ["recurrence", "its gradients", "backwards"])
def test_levels_of_associative_scans_can_be_halved(name, results):
    """Down to the last few elements, every array along the scanned dimension has an even number."""
    lengths = {v.shape[1] for v in results[0][name].values.values() if len(v.shape) > 1}
    assert {n for n in lengths if n > 3} == {16, 8, 4}


@pytest.mark.parametrize("name", ["no spans", "mixed with others"])
def test_programs_where_nothing_is_won_stay_as_they_are(name):
    """In the second the cumulative sum needs the 15 elements as they are: computing 16 as well would be in vain."""
    fn, args, _ = CASES[name]
    graph = trace(fn, args).graph
    assert [v.op.primitive for v in walk(prepared(graph))] == [v.op.primitive for v in walk(drop_dead(graph))]


def test_values_are_numbered_in_program_order(results):
    """Lowering relies on it."""
    graph = results[0]["its gradients"]
    assert graph.inputs == tuple(range(len(graph.inputs)))
    made = [r for v in walk(graph) for r in v.op.outputs]
    assert made == sorted(made)
    ops = [v.op.id for v in walk(graph)]
    assert ops == list(range(len(ops)))
