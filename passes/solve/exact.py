"""The reduced problem as a mixed-integer program in HiGHS.

One binary per strategy, one row per node. An edge's costs sit on flow variables between the distinct rows and columns
of its matrix, whose row sums equal the strategies' (the local polytope, tight on trees). One row per time that can
bind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .core import Core

# HiGHS is loaded where it is called: in one process with OR-tools, which brings its own, whichever comes second fails.
if TYPE_CHECKING:
    import highspy


@dataclass(frozen=True, slots=True, eq=False)
class MilpResult:
    """`choice` [nodes] or None; `bound` on the core's cost as HiGHS reports it (not certified); `proved` infeasible."""

    choice: np.ndarray | None
    bound: float
    infeasible: bool
    optimal: bool


@dataclass(slots=True)
class _Rows:
    """Sparse rows under construction."""

    row: list[np.ndarray]
    col: list[np.ndarray]
    value: list[np.ndarray]
    low: list[np.ndarray]
    high: list[np.ndarray]
    count: int = 0

    def add(self, row: np.ndarray, col: np.ndarray, value: np.ndarray) -> None:
        self.row.append(row + self.count)
        self.col.append(col)
        self.value.append(value)

    def close(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low.append(low)
        self.high.append(high)
        self.count += low.size


def milp_entries(core: Core) -> int:
    """Number of variables the program would have."""
    return sum(c.size for c in core.costs) + sum(int(np.isfinite(e.matrix).sum()) for e in core.edges)


def solve_milp(
    core: Core, time_limit_s: float, seed: int = 0, start: np.ndarray | None = None, relax_memory: bool = False
) -> MilpResult:
    """Minimise the core's cost, or with `relax_memory` the largest over-use alone (then `bound` is bytes).

    HiGHS works with tolerances: the caller checks the choice and, for a proof, does not trust `bound` below them.
    """
    offsets = np.concatenate([[0], np.cumsum([c.size for c in core.costs])]).astype(np.int64)
    cost = [np.zeros(int(offsets[-1])) if relax_memory else np.concatenate([*core.costs, np.zeros(0)])]
    binaries = int(offsets[-1])
    count = binaries
    rows = _Rows([], [], [], [], [])
    owner = np.repeat(np.arange(len(core.costs)), np.diff(offsets))
    rows.add(owner, np.arange(binaries), np.ones(binaries))
    rows.close(np.ones(len(core.costs)), np.ones(len(core.costs)))
    for e in core.edges:
        r, c = np.nonzero(np.isfinite(e.matrix))
        flow = count + np.arange(r.size)
        count += r.size
        cost.append(np.zeros(r.size) if relax_memory else e.matrix[r, c])
        for part, map_, node in ((r, e.row_of, e.u), (c, e.col_of, e.v)):
            size = int(map_.max()) + 1
            rows.add(part, flow, np.ones(flow.size))
            rows.add(map_, offsets[node] + np.arange(map_.size), -np.ones(map_.size))
            rows.close(np.zeros(size), np.zeros(size))
    room = core.room
    scale = max(1.0, float(room.max(initial=1.0)))
    for item in core.items:
        strategies = np.flatnonzero(item.usage)
        span = np.arange(item.first, item.last)
        row = np.repeat(span, strategies.size)
        rows.add(
            row, np.tile(offsets[item.node] + strategies, span.size), np.tile(item.usage[strategies] / scale, span.size)
        )
    if relax_memory:
        rows.add(np.arange(room.size), np.full(room.size, count), -np.ones(room.size))
        cost.append(np.ones(1))
        count += 1
    rows.close(np.full(room.size, -np.inf), room / scale)
    solver, cost_scale = _load(rows, np.concatenate(cost), count, binaries, relax_memory)
    for option, value in (("time_limit", max(0.01, time_limit_s)), ("random_seed", seed), ("threads", 1)):
        solver.setOptionValue(option, value)
    if start is not None:
        import highspy

        solution = highspy.HighsSolution()
        values = np.zeros(count)
        values[offsets[:-1] + start] = 1.0
        solution.col_value = values.tolist()
        solver.setSolution(solution)
    solver.run()
    return _result(solver, offsets, binaries, scale if relax_memory else 1.0 / cost_scale)


def _load(rows: _Rows, cost: np.ndarray, count: int, binaries: int, relax_memory: bool) -> tuple[highspy.Highs, float]:
    import highspy

    row, col = np.concatenate(rows.row), np.concatenate(rows.col)
    value = np.concatenate(rows.value)
    # HiGHS misbehaves on repeated entries (a node may have overlapping items), so they are summed.
    key, first = np.unique(col * rows.count + row, return_inverse=True)
    value = np.bincount(first, weights=value, minlength=key.size)
    col, row = key // rows.count, key % rows.count
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = count, rows.count
    # HiGHS's tolerances are absolute: bring the costs to a range where they mean something.
    largest = float(np.abs(cost).max(initial=0.0))
    scale = 1.0 if largest == 0 or relax_memory else 2.0 ** np.floor(np.log2(1e6 / largest))
    lp.col_cost_ = cost * scale
    lp.col_lower_ = np.zeros(count)
    upper = np.ones(count)
    if relax_memory:
        upper[-1] = np.inf
    lp.col_upper_ = upper
    lp.row_lower_, lp.row_upper_ = np.concatenate(rows.low), np.concatenate(rows.high)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    matrix: Any = lp.a_matrix_  # highspy's stubs mix up the types of its fields
    matrix.start_ = np.searchsorted(col, np.arange(count + 1)).astype(np.int32)
    matrix.index_ = row.astype(np.int32)
    matrix.value_ = value
    lp.integrality_ = [highspy.HighsVarType.kInteger] * binaries + [highspy.HighsVarType.kContinuous] * (
        count - binaries
    )
    lp.offset_ = 0.0
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 1e-9)
    solver.setOptionValue("mip_feasibility_tolerance", 1e-9)
    solver.setOptionValue("primal_feasibility_tolerance", 1e-9)
    solver.setOptionValue("dual_feasibility_tolerance", 1e-9)
    solver.passModel(lp)
    return solver, float(scale)


def _result(solver: highspy.Highs, offsets: np.ndarray, binaries: int, factor: float) -> MilpResult:
    import highspy

    status = solver.getModelStatus()
    info = solver.getInfo()
    infeasible = status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)
    choice = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        values = np.asarray(solver.getSolution().col_value)[:binaries]
        choice = np.array(
            [int(values[a:b].argmax()) for a, b in zip(offsets[:-1], offsets[1:], strict=True)], dtype=np.int64
        )
    bound = info.mip_dual_bound * factor
    return MilpResult(choice, bound, infeasible, status == highspy.HighsModelStatus.kOptimal)
