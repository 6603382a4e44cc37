"""Primitive name -> the function that makes its rule.

A new primitive is one decorated function, usually of one line:

@rule("reverse_cumsum")
def _(view):
    return view.einsum("b s -> b s", fixed={"s"})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from passes.ir import Graph, Op
from passes.rules.notation import Rule, letters, parse, rule_of


@dataclass(frozen=True, slots=True)
class View:
    """What a rule may look at: shapes, dtypes and parameters of one operation. `name` is what the user calls it, for
    primitives that run anything (a kernel's name, the target of a foreign call), else empty."""

    primitive: str
    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    operand_dtypes: tuple[str, ...]
    params: Mapping[str, Any]
    name: str = ""

    def einsum(self, text: str, **options: Any) -> Rule:
        return parse(text, self.operands, self.results, **options)

    @property
    def result_elements(self) -> int:
        return math.prod(self.results[0])

    def opaque(self) -> Rule:
        """Everything whole: what is used for a primitive without a rule."""
        operands = tuple(tuple(() for _ in s) for s in self.operands)
        results = tuple(tuple(() for _ in s) for s in self.results)
        return Rule(operands, results, {}, kind="opaque")

    def whole(self) -> Rule:
        """Everything whole, and known to be so."""
        return replace(self.opaque(), kind="local")

    def elementwise(self, flop_per_element: float = 1.0, kind: str = "elementwise") -> Rule:
        """Arrays of the result's rank share every dimension, but for those of size 1 that are repeated; scalars take
        no part."""
        shape = self.results[0]
        names = letters(len(shape))
        dims = tuple((n,) for n in names)
        arrays = tuple(
            tuple((n,) if a == b else () for n, a, b in zip(names, s, shape, strict=True))
            if len(s) == len(shape)
            else tuple(() for _ in s)
            for s in self.operands
        )
        results = tuple(dims for _ in self.results)
        return rule_of(
            arrays,
            results,
            dict(zip(names, shape, strict=True)),
            flop=flop_per_element * self.result_elements,
            kind=kind,
        )

    def along(self, fixed_dims: set[int], *, flop: float = 0.0, kind: str = "movement") -> Rule:
        """All arrays have one rank and share the dimensions that have equal sizes; `fixed_dims` stay whole."""
        rank = len(self.results[0])
        shape = self.results[0]
        names = letters(rank)

        def dims_of(s: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
            if len(s) != rank:
                return tuple(() for _ in s)
            return tuple((names[d],) if d not in fixed_dims and s[d] == shape[d] else () for d in range(rank))

        return rule_of(
            tuple(dims_of(s) for s in self.operands),
            tuple(dims_of(s) for s in self.results),
            dict(zip(names, shape, strict=True)),
            flop=flop,
            kind=kind,
        )


RuleMaker = Callable[[View], Rule]
UserRule = Callable[[View], Rule | str | None]
_RULES: dict[str, RuleMaker] = {}


@dataclass(frozen=True, slots=True)
class Registered:
    """A user's rule: `make` gives the rule, its text, or None for an operation that it is not about. `where` is the
    user's line. `local` computes what one device makes of its blocks, where the operation itself does not:
    `local(params, *blocks)` gives the block or blocks of the results."""

    make: UserRule
    where: str
    local: Callable[..., Any] | None = None


class DuplicateRule(ValueError):
    """`primitive` has a rule already, made at `first`."""

    def __init__(self, primitive: str, first: str, built_in: bool) -> None:
        super().__init__(f"primitive {primitive!r} has a rule already, made in {first}")
        self.primitive, self.first, self.built_in = primitive, first, built_in


_USERS: dict[str, Registered] = {}


_BY_SHAPE: set[str] = set()


def rule(*primitives: str, by_shape: bool = False) -> Callable[[RuleMaker], RuleMaker]:
    """Register the decorated function as the rule of these primitives. Registering one twice is an error.

    `by_shape`: the rule follows from the shapes alone, so that equal shapes need not be asked about again.
    """

    def register(make: RuleMaker) -> RuleMaker:
        for p in primitives:
            if p in _RULES:
                raise DuplicateRule(p, _RULES[p].__module__, True)
            _RULES[p] = make
            if by_shape:
                _BY_SHAPE.add(p)
        return make

    return register


def register_user(primitive: str, registered: Registered, replaces: bool = False) -> None:
    """Keep a user's rule for a primitive, or for "primitive:name". Raises DuplicateRule; built-in rules are never
    replaced."""
    if primitive in _RULES:
        raise DuplicateRule(primitive, _RULES[primitive].__module__, True)
    if primitive in _USERS and not replaces:
        raise DuplicateRule(primitive, _USERS[primitive].where, False)
    _USERS[primitive] = registered


def forget_user(primitive: str) -> None:
    """Take a user's rule away again. KeyError where there is none."""
    del _USERS[primitive]


def has_rule(primitive: str) -> bool:
    return primitive in _RULES or primitive in _USERS


def known_primitives() -> tuple[str, ...]:
    return tuple(sorted(_RULES))


def known_rule(view: View) -> Rule | None:
    """What the built-in rule says of an operation; None where there is none."""
    return _RULES[view.primitive](view) if view.primitive in _RULES else None


def given_name(op: Op) -> str:
    """What the user calls an operation whose primitive runs anything: a kernel's name, a foreign call's target."""
    for key in ("target_name", "call_target_name", "name"):
        found = op.params.get(key)
        if isinstance(found, str):
            return found
    call = op.params.get("call")  # custom_partitioning
    debug = getattr(getattr(call, "jaxpr", call), "debug_info", None)
    return str(getattr(op.params.get("name_and_src_info"), "name", "") or getattr(debug, "func_name", ""))


def rule_name(op: Op) -> str:
    """The most exact name that a rule for this operation can be registered by."""
    name = given_name(op)
    return f"{op.primitive}:{name}" if name else op.primitive


def registered_for(op: Op) -> tuple[str, Registered] | None:
    """The user's rule for this operation and the key that it is registered by: the more exact one first."""
    for key in (rule_name(op), op.primitive):
        if key in _USERS:
            return key, _USERS[key]
    return None


def view_of(graph: Graph, op: Op) -> View:
    return View(
        op.primitive,
        tuple(graph.shape_of(o) for o in op.inputs),
        tuple(graph.values[o].shape for o in op.outputs),
        tuple(graph.value_of(o).dtype for o in op.inputs),
        op.params,
        given_name(op),
    )


def user_rule(registered: Registered, view: View) -> Rule | None:
    """What a user's rule says of an operation. RuleError where it contradicts the operation.

    However it is priced, its blocks are computed by the operation itself: compilers know nothing of it.
    """
    made = registered.make(view)
    if made is None:
        return None
    found = view.einsum(made) if isinstance(made, str) else made
    return replace(found, kind=found.kind if found.kind in ("contraction", "opaque") else "local")


def rule_for(graph: Graph, op: Op) -> Rule:
    """The rule of one operation; an unknown primitive gets the opaque rule (replicated, counted in every report)."""
    known = graph.memo.get(op.id)
    if known is not None and known[0] is op:
        return cast(Rule, known[1])
    make = _RULES.get(op.primitive)
    if op.primitive in _BY_SHAPE:
        assert make is not None
        shapes = (make, graph.values[op.outputs[0]].shape, len(op.outputs), *map(graph.shape_of, op.inputs))
        found = graph.memo.get(shapes)
        if found is None:
            found = graph.memo[shapes] = make(view_of(graph, op))
    else:
        found = _asked(graph, op, make)
    graph.memo[op.id] = op, found
    return cast(Rule, found)


def _asked(graph: Graph, op: Op, make: RuleMaker | None) -> Rule:
    view = view_of(graph, op)
    own = registered_for(op) if _USERS else None
    if own is not None:
        found = user_rule(own[1], view)
        if found is not None:
            return found
    return view.opaque() if make is None else make(view)
