"""Factorisations and transforms of whole matrices or lines: only the dimensions in front of them may be cut."""

from __future__ import annotations

import math

from passes.rules.notation import DimFactors, Rule, rule_of
from passes.rules.registry import View, rule


@rule(
    "cholesky", "eig", "eigh", "hessenberg", "householder_product", "lu", "ormqr", "qr", "schur",
    "svd", "symmetric_product", "triangular_solve", "tridiagonal",
)  # fmt: skip
def matrices(view: View) -> Rule:
    """Batch dimensions pass through; the two of the matrix stay whole."""
    return _in_front(view, len(view.operands[0]) - 2)


@rule("tridiagonal_solve", "lu_pivots_to_permutation")
def lines(view: View) -> Rule:
    """The first operand's last dimension is a diagonal, or a list of pivots."""
    return _in_front(view, len(view.operands[0]) - 1)


@rule("cholesky_update")
def whole(view: View) -> Rule:
    """One matrix at a time: nothing may be cut."""
    return _in_front(view, 0)


@rule("fft")
def fft(view: View) -> Rule:
    """5 n log2 n FLOP for a transform of n elements (Cooley, Tukey 1965; the count that FFT libraries quote)."""
    lengths = view.params["fft_lengths"]
    count = len(view.operands[0]) - len(lengths)
    n = math.prod(lengths)
    flop = 5.0 * n * math.log2(n) * math.prod(view.operands[0][:count]) if n > 1 else 0.0
    return _in_front(view, count, flop)


def _in_front(view: View, count: int, flop: float = 0.0) -> Rule:
    """The first `count` dimensions of all arrays belong together. Compilers gather the operands of these operations
    where it is left to them, so they run as local programs."""
    front = view.operands[0][:count]
    names = tuple(f"d{i}" for i in range(count))

    def dims(shape: tuple[int, ...]) -> tuple[DimFactors, ...]:
        return tuple((names[i],) if i < count else () for i in range(len(shape)))

    assert all(s[:count] == front for s in (*view.operands, *view.results))
    return rule_of(
        tuple(dims(s) for s in view.operands),
        tuple(dims(s) for s in view.results),
        dict(zip(names, front, strict=True)),
        flop=flop,
        kind="lines",
    )
