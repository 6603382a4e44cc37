"""FLOP of every rule beside XLA's own count for the unsharded operation, and loops multiplied.

XLA counts transcendental functions apart; here both counts are added, one per element as in the rules. What the rules
count otherwise is listed, with why: prices are right to a constant there, and none of it is a product.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parallelizer.lower import lower
from parallelizer.tracer import trace
from passes.ir.graph import walk
from passes.rules import rule_for
from tests.rules.draws import Seeded
from tests.rules.harness import operations
from tests.rules.test_every_rule import EXAMPLES, FULL

_SERIES = "spelled out by JAX as a polynomial or a series of many operations; counted as one per element"
_FACTOR = "a library call on CPU, which XLA does not count; counted as Golub and Van Loan do"
_SORTED = "comparisons of a sorting network or of pairs; counted as none"
_SCAN = "lowered as a window as long as the line (n squared); counted as one per element, what a scan needs"
_INDEX = "arithmetic on indices is counted by XLA"
_BITS = "XLA counts the rounds of the generator; counted as one per element"
_EXPECTED = {
    **dict.fromkeys(("acos", "acosh", "asin", "asinh", "atanh", "bessel_i0e", "bessel_i1e", "cosh"), _SERIES),
    **dict.fromkeys(("digamma", "erf_inv", "erfc", "exp2", "igamma", "igamma_grad_a", "igammac"), _SERIES),
    **dict.fromkeys(("logistic", "nextafter", "one_minus_square", "polygamma", "regularized_incomplete_beta"), _SERIES),
    **dict.fromkeys(("sinh", "zeta", "select_n", "conj", "clamp", "log2", "integer_pow", "lgamma"), _SERIES),
    **dict.fromkeys(("cholesky", "cholesky_update", "eig", "eigh", "hessenberg", "householder_product"), _FACTOR),
    **dict.fromkeys(("lu", "lu_pivots_to_permutation", "ormqr", "qr", "schur", "svd", "symmetric_product"), _FACTOR),
    **dict.fromkeys(("triangular_solve", "tridiagonal", "tridiagonal_solve"), _FACTOR),
    **dict.fromkeys(("sort", "top_k", "approx_top_k", "argmax", "argmin"), _SORTED),
    **dict.fromkeys(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _SCAN),
    **dict.fromkeys(("gather", "scatter", "scatter-add", "scatter-sub", "scatter-mul", "bitcast_convert_type"), _INDEX),
    **dict.fromkeys(("scatter-min", "scatter-max", "dynamic_slice", "dynamic_update_slice"), _INDEX),
    **dict.fromkeys(("random_bits", "random_fold_in", "random_seed", "random_split", "threefry2x32"), _BITS),
    **dict.fromkeys(("rng_bit_generator", "random_gamma"), _BITS),
    "fft": "XLA counts 4 n log2 n for real and 8 for complex lines; counted as 5 n log2 n, as FFT libraries do",
    "within": "the comparison of positions is counted by XLA",
    "ragged_dot_general": "spelled out for CPU as one product per group with masks; counted as each row once",
    "scaled_dot": "scaling is counted by XLA, the contraction alone here",
    "reduce": "the function that is folded is counted by XLA, one per element and array here",
    "select_and_gather_add": "spelled out as a window over pairs packed in integers",
    "select_and_scatter_add": "one comparison per position of a window; XLA counts the sum as well",
}  # fmt: skip


def _counted(alone):
    """XLA's FLOP for one operation: what it computes plus its transcendental functions; -1 is its word for none."""
    found = jax.jit(lower(alone.graph, None, None)).lower(*alone.operands).cost_analysis() or {}
    return sum(max(0.0, found.get(k, 0.0)) for k in ("flops", "transcendentals"))


def _examples(name, seed):
    return [a for i, make in enumerate(EXAMPLES[name]) for a in operations(name, make(Seeded(seed + i)))]


@pytest.mark.parametrize("seed", range(20 if FULL else 3))
@pytest.mark.parametrize("name", ["dot_general", "conv_general_dilated"])
def test_products_count_what_xla_counts(name, seed):
    """Batched, complex, mixed, strided, dilated, grouped, transposed, padded, and all their gradients: exactly."""
    for alone in _examples(name, 10 * seed):
        assert alone.rule.flop == pytest.approx(_counted(alone), rel=0.01), (name, alone.op.params)


@pytest.mark.parametrize("part", range(4))
def test_every_other_rule_counts_what_xla_counts_or_says_why_not(part):
    names = [n for n in sorted(EXAMPLES) if n not in _EXPECTED][part::4]
    for name in names:
        for alone in _examples(name, 5):
            assert alone.rule.flop == pytest.approx(_counted(alone), rel=0.01), name


def test_what_is_counted_otherwise_really_is():
    """The list above names nothing that XLA counts as we do."""
    alike = []
    for name in ("sort", "cholesky", "eigh", "fft", "lgamma", "ragged_dot_general", "random_bits"):
        found = _examples(name, 5)
        if all(a.rule.flop == pytest.approx(_counted(a), rel=0.01) for a in found):
            alike.append(name)
    assert not alike
    assert set(_EXPECTED) <= set(EXAMPLES) | {"log2", "one_minus_square"}


def test_loops_multiply():
    """A scanned stack of layers counts as the same stack written out, which is what XLA counts."""
    ws, x = jnp.ones((5, 16, 16)), jnp.ones((4, 8, 16))

    def layer(h, w):
        h = h @ w
        return lax.conv_general_dilated(h, w[None, :3, :].reshape(3, 16, 1)[:, :1].repeat(16, 1), (1,), "SAME",
                                        dimension_numbers=("NWC", "WIO", "NWC")).repeat(16, -1)  # fmt: skip

    def scanned(ws, x):
        return lax.scan(lambda h, w: (lax.scan(lambda g, _: (layer(g, w), None), h, None, length=2)[0], None), x, ws)[0]

    def written(ws, x):
        for w in ws:
            x = layer(layer(x, w), w)
        return x

    def total(fn):
        graph = trace(fn, (ws, x)).graph
        rules = [(v.count, rule_for(graph, v.op)) for v in walk(graph)]
        return sum(count * rule.flop for count, rule in rules if rule.kind == "contraction")

    assert total(jax.grad(lambda *a: scanned(*a).sum(), (0, 1))) == total(
        jax.grad(lambda *a: written(*a).sum(), (0, 1))
    )
    per_layer = 2 * 4 * 8 * 16 * 16 + 2 * 4 * 16 * (8 * 3 - 2)
    assert total(scanned) == total(written) == 10 * per_layer
    assert np.isclose(jax.jit(written).lower(ws, x).cost_analysis()["flops"], total(written), rtol=0.01)
