"""The borders that neighbours exchange where a dimension with a window is cut: from whom, and how many bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from passes.groups import Group
from passes.ir import Graph, Literal, Op, Sharding
from passes.rules import Rule
from passes.strategies import Strategy


@dataclass(frozen=True, slots=True)
class BorderMove:
    """One permute: blocks of value `value` (-1 for a constant), which has the sharding `form`, get the elements before
    (`side` 0) or after (1) them along `dim` from the neighbour along `axes`."""

    value: int
    form: Sharding
    dim: int
    side: int
    axes: tuple[str, ...]
    elements: int
    size_bytes: int


def border_moves(
    graph: Graph, op: Op, rule: Rule, strategy: Strategy, sizes: Mapping[str, int]
) -> tuple[BorderMove, ...]:
    """What one device sends, in order. Where two dimensions are cut the second border goes with the corners."""
    cut = {f for f, axes in strategy.factors if axes}
    forms: dict[int, Sharding] = {}
    blocks: dict[int, list[int]] = {}
    moves = []
    for border in rule.borders(cut):
        i, operand = border.operand, op.inputs[border.operand]
        if i not in blocks:
            forms[i] = Sharding(tuple(strategy.axes_of(d[0]) if d else () for d in rule.operands[i]))
            blocks[i] = list(forms[i].local_shape(graph.shape_of(operand), sizes))
        others = math.prod(n for d, n in enumerate(blocks[i]) if d != border.dim)
        value = -1 if isinstance(operand, Literal) else operand
        axes = strategy.axes_of(border.factor)
        for side, count in enumerate((border.before, border.after)):
            if count:
                elements = count * others
                size = elements * graph.value_of(operand).itemsize
                moves.append(BorderMove(value, forms[i], border.dim, side, axes, elements, size))
        blocks[i][border.dim] += border.before + border.after
    return tuple(moves)


def borders_s(
    graph: Graph, group: Group, strategy: Strategy, sizes: Mapping[str, int], price_s: Callable[..., float]
) -> float:
    """Seconds that the neighbours' exchange takes in one step; `price_s(kind, axes, size_bytes)` prices one."""
    if group.leader is None or group.rule is None or not group.rule.halos:
        return 0.0
    moves = border_moves(graph, group.leader.op, group.rule, strategy, sizes)
    return group.leader.count * sum(price_s("permute", m.axes, m.size_bytes) for m in moves)
