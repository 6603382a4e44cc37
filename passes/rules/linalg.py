"""Factorisations and transforms of whole matrices or lines: only the dimensions in front of them may be cut."""

from __future__ import annotations

from passes.rules.notation import DimFactors, Rule, rule_of
from passes.rules.registry import View, rule


@rule(
    "cholesky",
    "eigh",
    "eig",
    "qr",
    "householder_product",
    "lu",
    "svd",
    "triangular_solve",
    "schur",
    "tridiagonal_solve",
)
def matrices(view: View) -> Rule:
    """Batch dimensions pass through; the two of the matrix stay whole."""
    return _in_front(view, len(view.operands[0]) - 2)


@rule("fft")
def fft(view: View) -> Rule:
    return _in_front(view, len(view.operands[0]) - len(view.params["fft_lengths"]))


def _in_front(view: View, count: int) -> Rule:
    """The first `count` dimensions of all arrays belong together."""
    front = view.operands[0][:count]
    names = tuple(f"d{i}" for i in range(count))

    def dims(shape: tuple[int, ...]) -> tuple[DimFactors, ...]:
        same = shape[:count] == front
        return tuple((names[i],) if same and i < count else () for i in range(len(shape)))

    return rule_of(
        tuple(dims(s) for s in view.operands),
        tuple(dims(s) for s in view.results),
        dict(zip(names, front, strict=True)),
    )
