"""`pz.register_rule`: how a primitive that JAX or the user made may be cut, checked before it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax

from parallelizer.errors import BadRuleError, DuplicateRuleError
from parallelizer.islands import Local, run_local
from passes.ir import Graph, Op, Sharding, walk
from passes.rules import Rule, RuleError, View, view_of
from passes.rules.notation import factor_sizes, read_arrays
from passes.rules.registry import DuplicateRule, Registered, UserRule, register_user, registered_for, user_rule

_AXIS = "cut"  # the mesh axis of trials


def register_rule(
    primitive: str,
    rule: str | None = None,
    *,
    local: Callable[..., Any] | None = None,
    replace: bool = False,
    **options: Any,
) -> Any:
    """Say how the operations of a primitive may be cut. Without a rule they are whole on every device.

    With the rule's text the rule is registered at once: `register_rule("my_matmul", "b m k, b k n -> b m n")`; options
    are those of `View.einsum` (sizes, reduced, fixed, flop). Without, it decorates a function that is given a `View` of
    each operation (shapes, dtypes, params, name) and returns the text, `view.einsum(text, ...)`, `view.whole()`, or
    None for an operation that the rule is not about.

    `primitive` is the primitive's name, or "primitive:name" for those that run anything: "pallas_call:my_kernel",
    "ffi_call:my_target". A device runs the operation itself on its blocks; where that needs other parameters (a
    `pallas_call` is made for one shape), `local(params, *blocks)` computes the blocks of the results instead.
    `replace` allows to replace a rule that was registered before.

    Raises DuplicateRuleError, and BadRuleError for a text that cannot be a rule. What contradicts the shapes of a
    program is refused when that program is planned.
    """
    if rule is None:

        def decorate(make: UserRule) -> UserRule:
            code = getattr(make, "__code__", None)
            where = f"{code.co_filename}:{code.co_firstlineno} ({make.__name__})" if code is not None else repr(make)
            _register(primitive, Registered(make, where, local), replace)
            return make

        if options:
            raise TypeError(f"register_rule takes {', '.join(options)} with the rule's text; here view.einsum does")
        return decorate
    frame = sys._getframe(1)
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    text = rule
    _check_text(primitive, text, options, where)
    _register(primitive, Registered(lambda view: view.einsum(text, **options), where, local), replace)
    return None


def _register(primitive: str, registered: Registered, replaces: bool) -> None:
    try:
        register_user(primitive, registered, replaces)
    except DuplicateRule as error:
        raise DuplicateRuleError.of(primitive, error.first, registered.where, error.built_in) from error


def _check_text(primitive: str, text: str, options: dict[str, Any], where: str) -> None:
    """What is wrong whatever the shapes."""
    try:
        operands, results = read_arrays(text)
    except RuleError as error:
        raise BadRuleError.of(primitive, str(error), where) from error
    arrays = (*operands, *results)
    for array in arrays:
        named = [f for dim in array for f in dim]
        twice = next((f for f in named if named.count(f) > 1), None)
        if twice is not None:
            reason = f"rule {text!r}: factor {twice!r} occurs {named.count(twice)} times in one array"
            raise BadRuleError.of(primitive, reason, where)
    alone = {dim[0] for array in arrays for dim in array if len(dim) == 1} | set(options.get("sizes") or {})
    missing = sorted({f for array in arrays for dim in array for f in dim} - alone)
    if missing:
        reason = f"rule {text!r}: factors {missing} occur in compound dimensions only and have no size; give sizes={{}}"
        raise BadRuleError.of(primitive, reason, where)


# ---- at first use ----
def check_rules(graph: Graph) -> None:
    """Refuse registered rules that contradict the operations of this program. Raises BadRuleError."""
    checked: set[tuple[Any, ...]] = set()
    for visit in walk(graph):
        found = registered_for(visit.op)
        if found is None:
            continue
        key, registered = found
        view = view_of(graph, visit.op)
        # Layers repeat: equal operations are tried once. (Parameters that are equal are mostly the same object.)
        same = (key, view.operands, view.results, view.operand_dtypes, tuple(map(id, view.params.values())))
        if same in checked:
            continue
        checked.add(same)
        try:
            made = user_rule(registered, view)
            if made is not None:
                _check(made, view)
                _try_cuts(made, view, visit.op)
        except RuleError as error:
            raise BadRuleError.of(
                key, str(error), registered.where, str(visit.op.source or ""), _arrays(view)
            ) from error


def _arrays(view: View) -> list[tuple[str, str]]:
    rows = [
        (f"operand {i}", f"{dtype}{list(shape)}")
        for i, (shape, dtype) in enumerate(zip(view.operands, view.operand_dtypes, strict=True))
    ]
    return rows + [(f"result {i}", str(list(shape))) for i, shape in enumerate(view.results)]


def _check(rule: Rule, view: View) -> None:
    """Factors have one size everywhere, occur once in an array, and are on every result or on none."""
    if rule.kind == "opaque":
        return
    for what, arrays, shapes in (("operand", rule.operands, view.operands), ("result", rule.results, view.results)):
        ranks, real = [len(a) for a in arrays], [len(s) for s in shapes]
        if ranks != real:
            raise RuleError(f"{what}s of {ranks} dimensions are described, the operation has {what}s of {real}")
    missing = {f for array in (*rule.operands, *rule.results) for dim in array for f in dim} - set(rule.sizes)
    if missing:
        raise RuleError(f"factors {sorted(missing)} have no size")
    factor_sizes("the rule", (rule.operands, rule.results), (view.operands, view.results), rule.sizes)
    for what, arrays in (("operand", rule.operands), ("result", rule.results)):
        for i, array in enumerate(arrays):
            named = [f for dim in array for f in dim]
            for f in named:
                if named.count(f) > 1:
                    raise RuleError(f"factor {f!r} occurs {named.count(f)} times in {what} {i}")
    for f in rule.cuttable():
        on = [f in {g for dim in array for g in dim} for array in rule.results]
        taken = any(f in dim for array in rule.operands for dim in array)
        if any(on) and not all(on) and taken:
            i = on.index(False)
            raise RuleError(
                f"factor {f!r} is on a result but not on result {i}: what a device computes of that would be a part of "
                f"a sum; name it in fixed={{{f!r}}}"
            )
        if not any(on) and len(rule.results) > 1:
            raise RuleError(
                f"factor {f!r} is summed, and the operation has {len(rule.results)} results: only one result can be "
                f"finished by a sum; name it in fixed={{{f!r}}}"
            )


def _try_cuts(rule: Rule, view: View, op: Op) -> None:
    """Run the operation on blocks, in shapes only: cut each factor and compare what comes out."""
    if any(name.startswith("key") for name in view.operand_dtypes):
        return  # keys have no shapes that blocks could be made of
    for factor in rule.cuttable():
        pieces = next((n for n in range(2, rule.sizes[factor] + 1) if rule.sizes[factor] % n == 0), 1)
        operands, results = (
            tuple(Sharding(tuple((_AXIS,) if factor in dim else () for dim in array)) for array in arrays)
            for arrays in (rule.operands, rule.results)
        )
        local = Local(op, operands, results, view.operands, view.results, {_AXIS: pieces}, ())
        kinds = [jax.numpy.dtype(name) for name in view.operand_dtypes]
        blocks = [jax.ShapeDtypeStruct(local.operand_block(i), kind) for i, kind in enumerate(kinds)]
        shown = ", ".join(str(list(b.shape)) for b in blocks)
        try:
            made = jax.eval_shape(lambda *b, local=local: run_local(local, list(b)), *blocks)
        except Exception as error:  # whatever a user's operation raises on shapes that it cannot take
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise RuleError(
                f"with factor {factor!r} cut into {pieces}, the operation fails on blocks {shown}: "
                f"{type(error).__name__}: {first} (give local= to compute the blocks, or fixed={{{factor!r}}})"
            ) from error
        wanted = [local.result_block(i) for i in range(len(results))]
        got = [tuple(m.shape) for m in made]
        if got != wanted:
            raise RuleError(
                f"with factor {factor!r} cut into {pieces}, blocks {shown} should give {_list(wanted)}, and the "
                f"operation gives {_list(got)} (give local= to compute the blocks, or fixed={{{factor!r}}})"
            )


def _list(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(s)) for s in shapes)
