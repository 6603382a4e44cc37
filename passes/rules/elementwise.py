"""Operations that act on each element on its own: every dimension may be cut, nothing moves."""

from __future__ import annotations

from passes.rules.notation import Rule
from passes.rules.registry import View, rule


@rule(
    "abs", "add", "add_any", "and", "ceil", "clamp", "conj", "convert_element_type", "copy", "copy_p", "div", "eq",
    "floor", "ge", "gt", "imag", "is_finite", "le", "lt", "max", "min", "mul", "ne", "neg", "not", "nextafter",
    "one_minus_square", "or", "population_count", "real", "reduce_precision", "rem", "round", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "square", "stop_gradient", "sub", "xor", "complex",
    "clz", "eq_to", "le_to", "lt_to", "sharding_constraint", "mesh_cast", "reshard", "pvary",
)  # fmt: skip
def cheap(view: View) -> Rule:
    return view.elementwise(1.0)


@rule(
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "cos", "cosh",
    "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma", "igammac", "integer_pow", "lgamma", "log",
    "log1p", "logistic", "polygamma", "pow", "regularized_incomplete_beta", "rsqrt", "sin", "sinh", "sqrt", "tan",
    "tanh", "zeta",
)  # fmt: skip
def transcendental(view: View) -> Rule:
    return view.elementwise(1.0)


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
