"""Which methods run at which size: the one table.

The size is the number of strategies, in presolve those of the problem at hand, later those of the core that is left.
Presolve, bounds and search run at every size; what differs is what they may spend:

| strategies up to | region tables | regions grown to | ascent | moves | elites | branches | HiGHS up to | cut share |
|---|---|---|---|---|---|---|---|---|
| 200 | 4,000,000 | 60 nodes | 150 turns | 50 | 2 | 50 | 100,000 | 2 % |
| 6,000 | 4,000,000 | 40 nodes | 300 turns | 300 | 4 | 20 | 100,000 | 5 % |
| 20,000 | 1,000,000 | 12 nodes | 400 turns | 1,000 | 4 | 2 | 100,000 | 15 % |
| more | 1,000,000 | 6 nodes | 300 turns | 1,000 | 4 | none | none | 25 % |

Region tables: entries of the largest table when nodes that memory does not touch are eliminated (`eliminate`). Ascent:
turns of the first dual ascent (`dual`), later ones half as long. Moves: of the first burst of search (`search`), then
doubling; elites: best choices of earlier bursts that later ones are relinked with (`relink`). Branches: of branch and
bound between bursts (`branch`), then doubling; none where a branch costs more than it tells. HiGHS (`exact`): asked
once per core, after 300 branches, if its program has at most so many variables. Cut share: presolve runs again when
the bound forbids that share of the strategies (`dual.cut`). A core that falls apart is solved in parts (`parts`), each
by its own line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """One line of the table; `strategies` is the largest size it is for."""

    strategies: int
    region_entries: int
    region_nodes: int
    turns: int
    moves: int
    elites: int
    branches: int
    milp_entries: int
    cut_share: float


EFFORTS = (
    Effort(200, 4_000_000, 60, 150, 50, 2, 50, 100_000, 0.02),
    Effort(6_000, 4_000_000, 40, 300, 300, 4, 20, 100_000, 0.05),
    Effort(20_000, 1_000_000, 12, 400, 1_000, 4, 2, 100_000, 0.15),
    Effort(2**62, 1_000_000, 6, 300, 1_000, 4, 0, 0, 0.25),
)


def effort_for(strategies: int) -> Effort:
    """The line for a problem or core of that many strategies."""
    return next(e for e in EFFORTS if strategies <= e.strategies)
