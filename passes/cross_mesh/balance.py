"""Who carries how much when each of several loads may be split over some carriers: the least largest load, exactly.

Loads with the same carriers are one group. Where groups share no carrier the answer is a division; otherwise a linear
program, whose dual prices give a lower bound that holds whatever the solver's tolerances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Balance:
    """`shares[g]` maps each carrier of group g to the amount it carries; no carrier needs more than `time_s` and none
    could do with less than `bound_s`."""

    shares: tuple[dict[int, float], ...]
    time_s: float
    bound_s: float


def balance(amounts: Sequence[float], carriers: Sequence[Sequence[int]], rates: Mapping[int, float]) -> Balance:
    """Split `amounts[g]` over `carriers[g]` so that the largest amount / rate of a carrier is as small as possible."""
    groups = range(len(amounts))
    users: dict[int, list[int]] = {}
    for g in groups:
        for c in carriers[g]:
            users.setdefault(c, []).append(g)
    if all(len(u) == 1 for u in users.values()):
        shares, times = [], [0.0]
        for g in groups:
            total = sum(rates[c] for c in carriers[g])
            shares.append({c: amounts[g] * rates[c] / total for c in carriers[g]})
            times.append(amounts[g] / total)
        return Balance(tuple(shares), max(times), max(times))
    equal = _equal(amounts, carriers, rates, users)
    return equal if equal.time_s <= equal.bound_s * (1 + 1e-12) else _program(amounts, carriers, rates, users)


def _equal(
    amounts: Sequence[float],
    carriers: Sequence[Sequence[int]],
    rates: Mapping[int, float],
    users: Mapping[int, Sequence[int]],
) -> Balance:
    """Every group over all of its carriers in proportion: the best where things are symmetric, as they mostly are."""
    shares = []
    load = dict.fromkeys(users, 0.0)
    for amount, mine in zip(amounts, carriers, strict=True):
        total = sum(rates[c] for c in mine)
        shares.append({c: amount * rates[c] / total for c in mine})
        for c in mine:
            load[c] += amount * rates[c] / total
    alone = dict.fromkeys(users, 0.0)
    for amount, mine in zip(amounts, carriers, strict=True):
        if len(mine) == 1:
            alone[mine[0]] += amount
    bound = max([sum(amounts) / sum(rates[c] for c in users), *(alone[c] / rates[c] for c in users)], default=0.0)
    return Balance(tuple(shares), max((load[c] / rates[c] for c in users), default=0.0), bound)


def _program(
    amounts: Sequence[float],
    carriers: Sequence[Sequence[int]],
    rates: Mapping[int, float],
    users: Mapping[int, Sequence[int]],
) -> Balance:
    """Minimise T with sum of shares = amount per group and sum of shares <= rate * T per carrier, in relative units."""
    import highspy

    scale = max(sum(amounts), 1e-300)
    speed = max(rates[c] for c in users)
    columns = [(g, c) for g, mine in enumerate(carriers) for c in mine]
    names = sorted(users)
    row_of = {c: len(amounts) + i for i, c in enumerate(names)}
    rows: list[list[tuple[int, float]]] = [[] for _ in range(len(amounts) + len(names))]
    for j, (g, c) in enumerate(columns):
        rows[g].append((j, 1.0))
        rows[row_of[c]].append((j, 1.0))
    last = len(columns)
    for c in names:
        rows[row_of[c]].append((last, -rates[c] / speed))
    solver = _solver(highspy)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = last + 1, len(rows)
    lp.col_cost_ = np.array([0.0] * last + [1.0])
    lp.col_lower_, lp.col_upper_ = np.zeros(last + 1), np.full(last + 1, highspy.kHighsInf)
    right = [a / scale for a in amounts]
    lp.row_lower_ = np.array(right + [-highspy.kHighsInf] * len(names))
    lp.row_upper_ = np.array(right + [0.0] * len(names))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.cumsum([0, *map(len, rows)])
    lp.a_matrix_.index_ = np.array([j for row in rows for j, _ in row])
    lp.a_matrix_.value_ = np.array([v for row in rows for _, v in row])
    solver.passModel(lp)
    solver.run()
    solution = solver.getSolution()
    values, duals = np.maximum(np.array(solution.col_value[:last]), 0.0), np.array(solution.row_dual)
    shares = _exact_shares(amounts, columns, values)
    load = dict.fromkeys(names, 0.0)
    for share in shares:
        for c, amount in share.items():
            load[c] += amount
    # Any prices w >= 0 with sum(w * rate) = 1 prove that T >= sum over groups of amount * its cheapest carrier's price.
    prices = {c: abs(float(duals[row_of[c]])) for c in names}
    worth = sum(prices[c] * rates[c] for c in names)
    paid = sum(a * min(prices[c] for c in mine) for a, mine in zip(amounts, carriers, strict=True))
    bound = max(paid / worth if worth > 0 else 0.0, sum(amounts) / sum(rates[c] for c in names))
    return Balance(shares, max(load[c] / rates[c] for c in names), bound)


def _exact_shares(
    amounts: Sequence[float], columns: Sequence[tuple[int, int]], values: np.ndarray
) -> tuple[dict[int, float], ...]:
    """The solver's shares without dust, scaled to add up; a group too small for the solver to see is split evenly."""
    found: list[dict[int, float]] = [{} for _ in amounts]
    for (g, c), value in zip(columns, values, strict=True):
        found[g][c] = float(value)
    out = []
    for amount, share in zip(amounts, found, strict=True):
        most = max(share.values())
        kept = {c: v for c, v in share.items() if v > 1e-9 * most} if most > 0 else dict.fromkeys(share, 1.0)
        total = sum(kept.values())
        out.append({c: amount * v / total for c, v in kept.items()})
    return tuple(out)


def _solver(highspy: Any) -> Any:
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("random_seed", 0)
    return solver
