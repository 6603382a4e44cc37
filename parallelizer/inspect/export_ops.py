"""One operation of a JAX program as a Python expression with JAX's public functions.

The table at the end says how each primitive is spelled. A primitive that it lacks is bound by name through
`jax.extend.core.primitives` where its parameters can be written down, and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.extend.core import primitives
from jax.sharding import NamedSharding

from parallelizer.inspect.export_values import Unprintable, call, dtype, spec, value

Params = Mapping[str, Any]
Spell = Callable[[Params, list[str], Any], str]  # parameters, operands, the equation


def expression(equation: Any, operands: list[str]) -> str:
    """The expression of one equation (not a loop, branch, call or local program). Raises Unprintable."""
    name = equation.primitive.name
    if name in _SPELLINGS:
        return _SPELLINGS[name](equation.params, operands, equation)
    attribute = name.replace("-", "_") + "_p"
    if getattr(primitives, attribute, None) is not equation.primitive:
        raise Unprintable(f"the operation {name}")
    given = [f"{k}={value(v)}" for k, v in sorted(equation.params.items())]
    return call(f"primitives.{attribute}.bind", [*operands, *given])


def _with(function: str, *keys: str) -> Spell:
    """`function(operands, parameter, ...)`; parameters that are None are left out."""

    def spell(params: Params, operands: list[str], equation: Any) -> str:
        return call(function, [*operands, *(_plain(params[k]) for k in keys if params.get(k) is not None)])

    return spell


def _plain(x: Any) -> str:
    """A parameter's text; sequences as tuples, whatever class they are of."""
    if isinstance(x, np.dtype):
        return dtype(x)
    if isinstance(x, tuple | list):
        return "(" + ", ".join(map(_plain, x)) + ("," if len(x) == 1 else "") + ")"
    return value(x)


def _joined(function: str, key: str) -> Spell:
    """`function([operands], parameter)`."""
    return lambda params, operands, equation: call(function, [f"[{', '.join(operands)}]", value(params[key])])


def _float(name: str) -> Spell:
    """Functions that may carry an accuracy, which has no plain text."""

    def spell(params: Params, operands: list[str], equation: Any) -> str:
        if params.get("accuracy") is not None:
            raise Unprintable(f"{name} with an accuracy")
        return call(f"lax.{name}", operands)

    return spell


def _infix(sign: str) -> Spell:
    return lambda params, operands, equation: f"{operands[0]} {sign} {operands[1]}"


def _div(params: Params, operands: list[str], equation: Any) -> str:
    """Division of integers rounds towards zero in lax, downwards in Python."""
    floating = np.dtype(equation.invars[0].aval.dtype).kind not in "iub"
    return f"{operands[0]} / {operands[1]}" if floating else call("lax.div", operands)


def _reshape(params: Params, operands: list[str], equation: Any) -> str:
    if params.get("dimensions") is not None:
        raise Unprintable("a reshape that also transposes")
    return call("lax.reshape", [operands[0], value(tuple(params["new_sizes"]))])


def _dynamic_slice(params: Params, operands: list[str], equation: Any) -> str:
    starts = "(" + ", ".join(operands[1:]) + ("," if len(operands) == 2 else "") + ")"
    sizes = value(tuple(params["slice_sizes"]))
    return call("lax.dynamic_slice", [operands[0], starts, sizes, "allow_negative_indices=False"])


def _dynamic_update_slice(params: Params, operands: list[str], equation: Any) -> str:
    starts = "(" + ", ".join(operands[2:]) + ("," if len(operands) == 3 else "") + ")"
    return call("lax.dynamic_update_slice", [*operands[:2], starts, "allow_negative_indices=False"])


def _iota(params: Params, operands: list[str], equation: Any) -> str:
    shape = tuple(params["shape"])
    if operands or not all(isinstance(n, int | np.integer) for n in shape):
        raise Unprintable("a count of unknown length")
    return call("lax.broadcasted_iota", [dtype(params["dtype"]), value(shape), value(params["dimension"])])


def _dot(params: Params, operands: list[str], equation: Any) -> str:
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    numbers = value(((tuple(left), tuple(right)), (tuple(left_batch), tuple(right_batch))))
    precision = params["precision"]
    extra = [] if precision is None else [f"precision={value(precision)}"]
    wanted = params["preferred_element_type"]
    if wanted is not None and np.dtype(wanted) != np.result_type(*(v.aval.dtype for v in equation.invars)):
        extra.append(f"preferred_element_type={dtype(wanted)}")
    return call("lax.dot_general", [*operands, numbers, *extra])


def _numbers(kind: str, numbers: Any) -> str:
    """GatherDimensionNumbers or ScatterDimensionNumbers, without empty batching dimensions."""
    rows = ((f, getattr(numbers, f)) for f in type(numbers).__dataclass_fields__) if hasattr(
        type(numbers), "__dataclass_fields__"
    ) else zip(numbers._fields, numbers, strict=True)  # fmt: skip
    shown = [f"{f}={value(tuple(v))}" for f, v in rows if len(v) or "batching" not in f]
    return call(f"lax.{kind}", shown)


def _indexing_extra(params: Params) -> list[str]:
    extra = [f"{k}=True" for k in ("indices_are_sorted", "unique_indices") if params[k]]
    return [*extra, f"mode={value(params['mode'])}"]


def _gather(params: Params, operands: list[str], equation: Any) -> str:
    numbers = _numbers("GatherDimensionNumbers", params["dimension_numbers"])
    extra = _indexing_extra(params)
    if params["fill_value"] is not None:
        extra.append(f"fill_value={value(params['fill_value'])}")
    return call("lax.gather", [*operands, numbers, value(tuple(params["slice_sizes"])), *extra])


def _scatter(name: str) -> Spell:
    def spell(params: Params, operands: list[str], equation: Any) -> str:
        numbers = _numbers("ScatterDimensionNumbers", params["dimension_numbers"])
        return call(f"lax.{name}", [*operands, numbers, *_indexing_extra(params)])

    return spell


def _convolution(params: Params, operands: list[str], equation: Any) -> str:
    numbers = params["dimension_numbers"]
    fields = [value(tuple(x)) for x in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)]
    given = [f"dimension_numbers=lax.ConvDimensionNumbers({', '.join(fields)})"]
    for key in ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count", "precision"):
        if params[key] is not None:
            given.append(f"{key}={value(params[key])}")
    if params["preferred_element_type"] is not None:
        given.append(f"preferred_element_type={dtype(params['preferred_element_type'])}")
    return call(
        "lax.conv_general_dilated", [*operands, *(value(params[k]) for k in ("window_strides", "padding")), *given]
    )


def _arg(name: str) -> Spell:
    def spell(params: Params, operands: list[str], equation: Any) -> str:
        (axis,) = params["axes"]
        return call(f"lax.{name}", [operands[0], value(axis), dtype(params["index_dtype"])])

    return spell


def _sort(params: Params, operands: list[str], equation: Any) -> str:
    keys = ("dimension", "is_stable", "num_keys")
    if len(operands) == 1:  # in a list so that the result is one, too
        operands = [operands[0] + ","]
    return call("lax.sort", [f"({', '.join(operands)})", *(f"{k}={value(params[k])}" for k in keys)])


def _top_k(params: Params, operands: list[str], equation: Any) -> str:
    return call("lax.top_k", [operands[0], value(params["k"]), f"axis={value(params['axis'])}"])


def _whole_axis(params: Params) -> None:
    if params.get("axis_index_groups") is not None:
        raise Unprintable("a collective over a part of an axis")


def _axes(names: Any) -> str:
    """One name for one axis, a tuple for several."""
    names = tuple(names) if isinstance(names, tuple | list | frozenset | set) else (names,)
    return value(names[0] if len(names) == 1 else names)


def _all_reduce(name: str) -> Spell:
    def spell(params: Params, operands: list[str], equation: Any) -> str:
        _whole_axis(params)
        made = [call(f"lax.{name}", [o, _axes(params["axes"])]) for o in operands]
        return made[0] if len(made) == 1 else f"({', '.join(made)})"

    return spell


def _all_gather(params: Params, operands: list[str], equation: Any) -> str:
    _whole_axis(params)
    tiled = f"tiled={params['tiled']}"
    return call(
        "lax.all_gather", [*operands, _axes(params["axis_name"]), f"axis={params['all_gather_dimension']}", tiled]
    )


def _reduce_scatter(params: Params, operands: list[str], equation: Any) -> str:
    _whole_axis(params)
    dim = f"scatter_dimension={params['scatter_dimension']}"
    return call("lax.psum_scatter", [*operands, _axes(params["axis_name"]), dim, f"tiled={params['tiled']}"])


def _all_to_all(params: Params, operands: list[str], equation: Any) -> str:
    _whole_axis(params)
    dims = [f"{k}={params[k]}" for k in ("split_axis", "concat_axis", "tiled")]
    return call("lax.all_to_all", [*operands, _axes(params["axis_name"]), *dims])


def _ppermute(params: Params, operands: list[str], equation: Any) -> str:
    pairs = value([tuple(p) for p in params["perm"]])
    return call("lax.ppermute", [*operands, _axes(params["axis_name"]), pairs])


def _constraint(params: Params, operands: list[str], equation: Any) -> str:
    """A constraint of the plan, or the user's own: its axes have to be the mesh's."""
    sharding = params["sharding"]
    if not isinstance(sharding, NamedSharding) or params.get("unconstrained_dims"):
        raise Unprintable("a sharding constraint that is no PartitionSpec")
    return call("cut", ["mesh", *operands, spec(sharding.spec)])


def _barrier(params: Params, operands: list[str], equation: Any) -> str:
    inner = operands[0] if len(operands) == 1 else f"({', '.join(operands)})"
    return call("lax.optimization_barrier", [inner])


def _bits(params: Params, operands: list[str], equation: Any) -> str:
    shape = value(tuple(params["shape"]))
    return call("jax.random.bits", [operands[0], shape, f"jnp.uint{params['bit_width']}"])


def _keys(function: str) -> Spell:
    """Functions that make random keys of a kind."""

    def spell(params: Params, operands: list[str], equation: Any) -> str:
        name = getattr(params["impl"], "name", None)
        if not isinstance(name, str):
            raise Unprintable("a kind of random keys without a name")
        return call(function, [operands[0], f"impl={value(name)}"])

    return spell


_FLOAT = ("sin", "cos", "tan", "tanh", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "cbrt", "logistic")
_SAME = (
    "abs", "sign", "floor", "ceil", "is_finite", "square", "erf", "erfc", "erf_inv", "lgamma", "digamma", "real",
    "imag", "conj", "complex", "population_count", "clz", "max", "min", "pow", "rem", "atan2", "nextafter", "select_n",
    "clamp", "stop_gradient", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "bessel_i0e",
    "bessel_i1e", "igamma", "igammac", "zeta", "polygamma", "regularized_incomplete_beta", "shift_left",
    "shift_right_arithmetic", "shift_right_logical",
)  # fmt: skip
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor")
_SCATTERS = ("scatter", "scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max")
_SIGNS = {
    "add": "+", "add_any": "+", "sub": "-", "mul": "*", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "and": "&", "or": "|", "xor": "^",
}  # fmt: skip

_SPELLINGS: Mapping[str, Spell] = {
    **{name: _float(name) for name in _FLOAT},
    **{name: _with(f"lax.{name}") for name in _SAME},
    **{name: _with(f"lax.{name}", "axis", "reverse") for name in _CUMULATIVE},
    **{name: _with(f"lax.{name}", "axes") for name in _REDUCTIONS},
    **{name: _scatter(name) for name in _SCATTERS},
    **{name.replace("_", "-"): _scatter(name) for name in _SCATTERS},
    **{name: _infix(sign) for name, sign in _SIGNS.items()},
    "div": _div,
    "neg": lambda params, operands, equation: f"-{operands[0]}",
    "not": lambda params, operands, equation: f"~{operands[0]}",
    "copy": _with("jnp.copy"),
    "copy_p": _with("jnp.copy"),
    "integer_pow": _with("lax.integer_pow", "y"),
    "round": _with("lax.round", "rounding_method"),
    "broadcast_in_dim": _with("lax.broadcast_in_dim", "shape", "broadcast_dimensions"),
    "reshape": _reshape,
    "slice": _with("lax.slice", "start_indices", "limit_indices", "strides"),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "concatenate": _joined("lax.concatenate", "dimension"),
    "stack": _joined("jnp.stack", "axis"),
    "unstack": lambda params, operands, equation: call("jnp.unstack", [*operands, f"axis={value(params['axis'])}"]),
    "tile": _with("jnp.tile", "reps"),
    "iota": _iota,
    "transpose": _with("lax.transpose", "permutation"),
    "squeeze": _with("lax.squeeze", "dimensions"),
    "expand_dims": _with("lax.expand_dims", "dimensions"),
    "rev": _with("lax.rev", "dimensions"),
    "pad": _with("lax.pad", "padding_config"),
    "split": _with("lax.split", "sizes", "axis"),
    "convert_element_type": _with("lax.convert_element_type", "new_dtype"),
    "bitcast_convert_type": _with("lax.bitcast_convert_type", "new_dtype"),
    "reduce_precision": _with("lax.reduce_precision", "exponent_bits", "mantissa_bits"),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "argmax": _arg("argmax"),
    "argmin": _arg("argmin"),
    "sort": _sort,
    "top_k": _top_k,
    "optimization_barrier": _barrier,
    "sharding_constraint": _constraint,
    "psum": _all_reduce("psum"),
    "pmax": _all_reduce("pmax"),
    "pmin": _all_reduce("pmin"),
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "ppermute": _ppermute,
    "axis_index": lambda params, operands, equation: call("lax.axis_index", [_axes(params["axis_name"])]),
    "random_bits": _bits,
    "random_split": _with("jax.random.split", "shape"),
    "random_fold_in": _with("jax.random.fold_in"),
    "random_unwrap": _with("jax.random.key_data"),
    "random_wrap": _keys("jax.random.wrap_key_data"),
    "random_seed": _keys("jax.random.key"),
}
INFIX = frozenset(_SIGNS) | {"div"}
ELEMENTWISE = INFIX | frozenset([*_FLOAT, *_SAME, "neg", "not", "copy", "integer_pow", "convert_element_type"])
