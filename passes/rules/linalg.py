"""Factorisations and transforms of whole matrices or lines: only the dimensions in front of them may be cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from passes.rules.notation import DimFactors, Rule, rule_of
from passes.rules.registry import View, rule

# FLOP for one m x n matrix (m at least n), from G. Golub, C. Van Loan, Matrix Computations, 4th edition: sections 4.2
# (Cholesky), 3.2 (LU), 5.2 (QR, here with Q formed), 8.3 (symmetric eigenvalues with vectors), 7.5 (eigenvalues with
# Schur vectors), 8.6 (singular values with both sets of vectors), 7.4 (Hessenberg form), 8.3 (tridiagonal form).
_FLOP: Mapping[str, Callable[[float, float], float]] = {
    "cholesky": lambda m, n: n**3 / 3,
    "eig": lambda m, n: 25 * n**3,
    "eigh": lambda m, n: 9 * n**3,
    "hessenberg": lambda m, n: 10 / 3 * n**3,
    "householder_product": lambda m, n: 2 * m * n**2 - 2 / 3 * n**3,
    "lu": lambda m, n: m * n**2 - n**3 / 3,
    "qr": lambda m, n: 4 * m * n**2 - 4 / 3 * n**3,
    "schur": lambda m, n: 25 * n**3,
    "svd": lambda m, n: 14 * m * n**2 + 8 * n**3,
    "tridiagonal": lambda m, n: 4 / 3 * n**3,
}


@rule(*_FLOP)
def matrices(view: View) -> Rule:
    """Batch dimensions pass through; the two of the matrix stay whole."""
    *batch, rows, columns = view.operands[0]
    m, n = max(rows, columns), min(rows, columns)
    return _in_front(view, len(batch), math.prod(batch) * _FLOP[view.primitive](m, n))


@rule("triangular_solve", "ormqr", "symmetric_product")
def products(view: View) -> Rule:
    """A matrix with a structure applied to another one; the multiply-adds of the triangle, reflectors or product."""
    *batch, rows, columns = view.operands[0]
    other = math.prod(view.operands[-1][len(batch) :])
    flop = {
        "triangular_solve": float(other * columns),
        "ormqr": 4.0 * other * columns,
        "symmetric_product": 2.0 * rows * rows * columns,
    }
    return _in_front(view, len(batch), math.prod(batch) * flop[view.primitive])


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
