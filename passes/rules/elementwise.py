"""Operations that act on each element on its own: every dimension may be cut, nothing moves."""

from __future__ import annotations

from passes.rules.notation import Rule
from passes.rules.registry import View, rule


@rule(
    "abs", "add", "add_any", "and", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type", "div", "eq",
    "eq_to", "floor", "ge", "gt", "imag", "is_finite", "le", "le_to", "lt", "lt_to", "max", "min", "mul", "mulhi",
    "ne", "neg", "nextafter", "not", "one_minus_square", "or", "population_count", "real", "reduce_precision",
    "rem", "round", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "square",
    "sub", "threefry2x32", "xor", by_shape=True,
)  # fmt: skip
def cheap(view: View) -> Rule:
    return view.elementwise(1.0)


@rule(
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "cos", "cosh",
    "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "integer_pow", "lgamma", "log", "log1p", "log2",
    "logistic", "polygamma", "pow", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "zeta",
    by_shape=True,
)  # fmt: skip
def transcendental(view: View) -> Rule:
    return view.elementwise(1.0)


@rule("igamma", "igamma_grad_a", "igammac", "regularized_incomplete_beta")
def iterated(view: View) -> Rule:
    """Series that run until every element is exact: left to the compiler, devices would ask each other in every
    round."""
    return view.elementwise(1.0, kind="lines")


@rule("copy", "device_put", "name", "pvary", "reshard", "sharding_constraint", "stop_gradient", by_shape=True)
def same(view: View) -> Rule:
    """What says something about an array and computes nothing."""
    return view.elementwise(0.0)


@rule("bitcast_convert_type")
def bitcast(view: View) -> Rule:
    """Equal element sizes keep the shape; otherwise the minor-most dimension is split or merged and stays whole."""
    if view.operands[0] == view.results[0]:
        return view.elementwise(0.0)
    common = min(len(view.operands[0]), len(view.results[0]))
    names = [f"d{i}" for i in range(common)]
    same = [view.operands[0][i] == view.results[0][i] for i in range(common)]

    def dims(shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
        return tuple((names[i],) if i < common and same[i] else () for i in range(len(shape)))

    sizes = {names[i]: view.operands[0][i] for i in range(common) if same[i]}
    return Rule((dims(view.operands[0]),), (dims(view.results[0]),), sizes)
