"""Primitive name -> the function that makes its rule. A new primitive is one decorated function, usually of one line:

@rule("reverse_cumsum")
def _(view):
    return view.einsum("b s -> b s", fixed={"s"})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from passes.ir import Graph, Op
from passes.rules.notation import Rule, letters, parse, rule_of


@dataclass(frozen=True, slots=True)
class View:
    """What a rule may look at: shapes, dtypes and parameters of one operation."""

    primitive: str
    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    operand_dtypes: tuple[str, ...]
    params: Mapping[str, Any]

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
_RULES: dict[str, RuleMaker] = {}


def rule(*primitives: str) -> Callable[[RuleMaker], RuleMaker]:
    """Register the decorated function as the rule of these primitives. Registering one twice is an error."""

    def register(make: RuleMaker) -> RuleMaker:
        for p in primitives:
            if p in _RULES:
                raise ValueError(f"primitive {p!r} has a rule already, made in {_RULES[p].__module__}")
            _RULES[p] = make
        return make

    return register


def has_rule(primitive: str) -> bool:
    return primitive in _RULES


def known_primitives() -> tuple[str, ...]:
    return tuple(sorted(_RULES))


def view_of(graph: Graph, op: Op) -> View:
    return View(
        op.primitive,
        tuple(graph.shape_of(o) for o in op.inputs),
        tuple(graph.values[o].shape for o in op.outputs),
        tuple(graph.value_of(o).dtype for o in op.inputs),
        op.params,
    )


def rule_for(graph: Graph, op: Op) -> Rule:
    """The rule of one operation; an unknown primitive gets the opaque rule (replicated, counted in every report)."""
    view = view_of(graph, op)
    make = _RULES.get(op.primitive)
    return view.opaque() if make is None else make(view)
