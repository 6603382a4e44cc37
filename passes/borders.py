"""What devices send each other within an operation (borders, turned positions, totals): between whom, how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from passes.groups import Group
from passes.ir import Graph, Literal, Op, Sharding, walk
from passes.rules import Rule, rule_for
from passes.rules.exchanges import Border, Exchange, Turn
from passes.strategies import Strategy


@dataclass(frozen=True, slots=True)
class BorderMove:
    """One collective: blocks of value `value` (-1 for a constant), which has the sharding `form`, send or learn so many
    elements along `dim` over `axes`; `turn` and `nth` tell apart what is sent of the same block. `readers` operations
    need it, and where they are cut alike it is sent once."""

    kind: str
    value: int
    form: Sharding
    dim: int
    axes: tuple[str, ...]
    elements: int
    size_bytes: int
    turn: int = 0
    nth: int = 0
    runs: int = 1
    readers: int = 1


def border_moves(
    graph: Graph, op: Op, rule: Rule, strategy: Strategy, sizes: Mapping[str, int]
) -> tuple[BorderMove, ...]:
    """What one device sends, in order. Where two dimensions are cut the second border goes with the corners."""
    cut = {f for f, axes in strategy.factors if axes}
    forms: dict[int, Sharding] = {}
    blocks: dict[int, list[int]] = {}
    shared = _readers(graph) if rule.halos else {}
    moves = []
    for exchange in rule.exchanges(cut):
        i, operand, dim = exchange.operand, op.inputs[exchange.operand], exchange.dim
        shape = graph.shape_of(operand)
        if i not in blocks:
            forms[i] = Sharding(tuple(strategy.axes_of(d[0]) if d else () for d in rule.operands[i]))
            blocks[i] = list(forms[i].local_shape(shape, sizes))
        others = math.prod(n for d, n in enumerate(blocks[i]) if d != dim)
        value = -1 if isinstance(operand, Literal) else operand
        axes = strategy.axes_of(exchange.factor)
        pieces = math.prod(sizes[a] for a in axes)
        turn = exchange.by if isinstance(exchange, Turn) else 0
        for kind, count, nth in exchange.messages(pieces, shape[dim]):
            size = count * others * graph.value_of(operand).itemsize
            readers = max(1, shared.get((value, replace(exchange, factor="", operand=0)), 1))
            moves.append(BorderMove(kind, value, forms[i], dim, axes, count * others, size, turn, nth, readers=readers))
        if isinstance(exchange, Border):
            blocks[i][dim] = exchange.length(pieces, blocks[i][dim])
    if cut:
        whole = Sharding(())
        moves += [BorderMove(o.kind, op.outputs[0], whole, -1, o.axes, o.elements, o.size_bytes, nth=n, runs=o.runs)
                  for n, o in enumerate(rule.own)]  # fmt: skip
    return tuple(moves)


def _readers(graph: Graph) -> Mapping[tuple[int, Exchange], int]:
    """How many operations need the same exchange of the same value: the gradient of a kernel needs the borders that
    the convolution had, and compilers send them once."""
    known = graph.memo.get("exchanges")
    if known is None:
        known = graph.memo["exchanges"] = Counter(
            (o, replace(h, factor="", operand=0))
            for v in walk(graph)
            if not v.op.regions
            for h in rule_for(graph, v.op).halos
            if not isinstance(o := v.op.inputs[h.operand], Literal)
        )
    return cast(Mapping[tuple[int, Exchange], int], known)


def borders_s(
    graph: Graph, group: Group, strategy: Strategy, sizes: Mapping[str, int], price_s: Callable[..., float]
) -> float:
    """Seconds that these exchanges take in one step; `price_s(kind, axes, size_bytes)` prices one."""
    if group.leader is None or group.rule is None or not (group.rule.halos or group.rule.own):
        return 0.0
    moves = border_moves(graph, group.leader.op, group.rule, strategy, sizes)
    return group.leader.count * sum(m.runs / m.readers * price_s(m.kind, m.axes, m.size_bytes) for m in moves)
