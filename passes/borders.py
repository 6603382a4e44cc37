"""What devices send each other within an operation (borders, turned positions, totals): between whom, how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from passes.groups import Group
from passes.ir import Graph, Literal, Op, Sharding
from passes.rules import Rule
from passes.rules.exchanges import Border, Turn
from passes.strategies import Strategy


@dataclass(frozen=True, slots=True)
class BorderMove:
    """One collective: blocks of value `value` (-1 for a constant), which has the sharding `form`, send or learn so many
    elements along `dim` over `axes`; `turn` and `nth` tell apart what is sent of the same block."""

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


def border_moves(
    graph: Graph, op: Op, rule: Rule, strategy: Strategy, sizes: Mapping[str, int]
) -> tuple[BorderMove, ...]:
    """What one device sends, in order. Where two dimensions are cut the second border goes with the corners."""
    cut = {f for f, axes in strategy.factors if axes}
    forms: dict[int, Sharding] = {}
    blocks: dict[int, list[int]] = {}
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
        for nth, (kind, count) in enumerate(exchange.messages(pieces, shape[dim])):
            size = count * others * graph.value_of(operand).itemsize
            moves.append(BorderMove(kind, value, forms[i], dim, axes, count * others, size, turn, nth))
        if isinstance(exchange, Border):
            blocks[i][dim] = exchange.length(pieces, blocks[i][dim])
    if cut:
        whole = Sharding(())
        moves += [BorderMove(o.kind, op.outputs[0], whole, -1, o.axes, o.elements, o.size_bytes, nth=n, runs=o.runs)
                  for n, o in enumerate(rule.own)]  # fmt: skip
    return tuple(moves)


def borders_s(
    graph: Graph, group: Group, strategy: Strategy, sizes: Mapping[str, int], price_s: Callable[..., float]
) -> float:
    """Seconds that these exchanges take in one step; `price_s(kind, axes, size_bytes)` prices one."""
    if group.leader is None or group.rule is None or not (group.rule.halos or group.rule.own):
        return 0.0
    moves = border_moves(graph, group.leader.op, group.rule, strategy, sizes)
    return group.leader.count * sum(m.runs * price_s(m.kind, m.axes, m.size_bytes) for m in moves)
