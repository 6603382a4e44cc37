"""The assignment problem and its exact evaluation: arrays in, nothing else known.

One strategy is chosen per node. The objective is the sum of node costs and of edge costs, a matrix per edge. Memory
items say how many bytes a node's strategy keeps live over a half-open interval of times; at every time the live bytes
must stay within the limit. An entry that is infinite or at least `IMPOSSIBLE` (1e18, the contest's marker) may not be
chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IMPOSSIBLE = 1e18


class ProblemError(ValueError):
    """The arrays do not describe a problem. `where` names the part, for example "edges[3]"."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """Cost between two nodes: `matrix[row_of[strategy of u], col_of[strategy of v]]`.

    `matrix` is float64 or int64 [rows, cols]; infinite or >= 1e18 entries are impossible. `row_of` [strategies of u]
    and `col_of` [strategies of v] map strategies to rows and columns (many strategies may share one); None is the
    identity.
    """

    u: int
    v: int
    matrix: np.ndarray
    row_of: np.ndarray | None = None
    col_of: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MemoryItem:
    """`usage[s]` bytes are live while `start <= time < end` if `node` takes strategy s. `start == end`: never live."""

    node: int
    start: int
    end: int
    usage: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Nodes, edges and memory. `memory_limit` in bytes; None means memory is not constrained.

    Raises `ProblemError` when the arrays contradict each other (wrong lengths, unknown nodes, NaN, negative usage).
    """

    node_costs: tuple[np.ndarray, ...]
    edges: tuple[Edge, ...] = ()
    memory: tuple[MemoryItem, ...] = ()
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        sizes = [_checked_costs(f"nodes[{i}]", c, 1).shape[0] for i, c in enumerate(self.node_costs)]
        checked: set[int] = set()
        for i, edge in enumerate(self.edges):
            _check_edge(f"edges[{i}]", edge, sizes, checked)
        for i, item in enumerate(self.memory):
            _check_item(f"memory[{i}]", item, sizes)
        if self.memory_limit is not None and (math.isnan(self.memory_limit) or self.memory_limit == -math.inf):
            raise ProblemError("memory_limit", f"must be a number of bytes, got {self.memory_limit}")

    @property
    def integral(self) -> bool:
        """Whether every cost is an integer, so that a cost is exact and a bound may be rounded up."""
        return all(c.dtype.kind in "iu" for c in self.node_costs) and all(
            e.matrix.dtype.kind in "iu" for e in self.edges
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a choice costs. `cost` is an exact int for integer problems and infinite if an impossible entry is chosen.

    `peak_bytes` is the largest sum of live usages, first reached at `peak_time`; `over_bytes` is what exceeds the
    limit.
    """

    cost: float
    peak_bytes: float
    peak_time: int | None
    over_bytes: float
    feasible: bool


def _checked_costs(where: str, costs: np.ndarray, ndim: int) -> np.ndarray:
    if not isinstance(costs, np.ndarray) or costs.ndim != ndim or costs.dtype.kind not in "iuf":
        raise ProblemError(where, f"costs must be a {ndim}-dimensional array of numbers")
    if costs.dtype.kind == "f" and costs.size:
        low = costs.min()
        if math.isnan(low) or low == -math.inf:
            raise ProblemError(where, "costs must not be NaN or minus infinity")
    return costs


def _check_edge(where: str, edge: Edge, sizes: Sequence[int], checked: set[int]) -> None:
    for node in (edge.u, edge.v):
        if not 0 <= node < len(sizes):
            raise ProblemError(where, f"node {node} does not exist, there are {len(sizes)}")
    if edge.u == edge.v:
        raise ProblemError(where, f"joins node {edge.u} to itself")
    if id(edge.matrix) not in checked:
        _checked_costs(where, edge.matrix, 2)
        checked.add(id(edge.matrix))
    for axis, (node, table) in enumerate(((edge.u, edge.row_of), (edge.v, edge.col_of))):
        rows = edge.matrix.shape[axis]
        if table is None:
            if rows != sizes[node]:
                raise ProblemError(where, f"matrix is {edge.matrix.shape}, node {node} has {sizes[node]} strategies")
            continue
        if table.shape != (sizes[node],) or table.dtype.kind not in "iu":
            raise ProblemError(where, f"the map of node {node} must hold {sizes[node]} integers")
        if table.size and (table.min() < 0 or table.max() >= rows):
            raise ProblemError(where, f"the map of node {node} points outside the matrix {edge.matrix.shape}")


def _check_item(where: str, item: MemoryItem, sizes: Sequence[int]) -> None:
    if not 0 <= item.node < len(sizes):
        raise ProblemError(where, f"node {item.node} does not exist, there are {len(sizes)}")
    if item.start > item.end:
        raise ProblemError(where, f"the interval [{item.start}, {item.end}) ends before it starts")
    usage = item.usage
    if usage.shape != (sizes[item.node],) or usage.dtype.kind not in "iuf":
        raise ProblemError(where, f"usage must hold {sizes[item.node]} numbers, one per strategy of node {item.node}")
    if usage.size and not (usage.min() >= 0 and usage.max() < math.inf):
        raise ProblemError(where, "usage must be finite and not negative")


def exact_sum(values: Sequence[float]) -> float:
    """Sum without rounding error: of ints as an int, otherwise correctly rounded."""
    if all(isinstance(v, int) for v in values):
        return sum(values)
    return math.fsum(values)


def choice_cost(problem: Problem, choice: Sequence[int]) -> float:
    """Node plus edge cost of `choice` [nodes], memory ignored; infinite if an entry is impossible."""
    terms = [c[s].item() for c, s in zip(problem.node_costs, choice, strict=True)]
    for e in problem.edges:
        r, c = choice[e.u], choice[e.v]
        row = r if e.row_of is None else e.row_of[r]
        col = c if e.col_of is None else e.col_of[c]
        terms.append(e.matrix[row, col].item())
    if terms and max(terms) >= IMPOSSIBLE:
        return math.inf
    return exact_sum(terms)


def evaluate(problem: Problem, choice: Sequence[int]) -> Evaluation:
    """Exact cost and peak of `choice` [nodes]. Raises `ProblemError` for a choice of wrong length or range."""
    if len(choice) != len(problem.node_costs):
        raise ProblemError("choice", f"has {len(choice)} entries for {len(problem.node_costs)} nodes")
    for node, (strategy, costs) in enumerate(zip(choice, problem.node_costs, strict=True)):
        if not 0 <= strategy < costs.shape[0]:
            raise ProblemError(f"choice[{node}]", f"{strategy} is not one of {costs.shape[0]} strategies")
    cost = choice_cost(problem, choice)
    changes: dict[int, list[float]] = {}
    for item in problem.memory:
        size = item.usage[choice[item.node]].item()
        if size and item.start < item.end:
            changes.setdefault(item.start, []).append(size)
            changes.setdefault(item.end, []).append(-size)
    live: float = 0
    peak: float = 0
    peak_time = None
    for time in sorted(changes):
        live = exact_sum([live, *changes[time]])
        if live > peak:
            peak, peak_time = live, time
    over = 0 if problem.memory_limit is None else max(0, peak - problem.memory_limit)
    return Evaluation(cost, peak, peak_time, over, over == 0 and cost < math.inf)
