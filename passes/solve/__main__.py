"""`python -m passes.solve PROBLEM.json[.gz] --time-limit 60`: prints the choice as the contest wants it, `[]`
without one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from .door import Incumbent, solve
from .files import read_problem
from .problem import ProblemError

# Left of the time limit for the last move, printing and the interpreter's exit.
_MARGIN_S = 1.5


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 with a choice, 1 without, 2 for an unreadable problem."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m passes.solve", description=__doc__)
    parser.add_argument("problem", help="contest JSON, plain or gzip")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds, reading and printing included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="walkers side by side")
    parser.add_argument("--verbose", action="store_true", help="incumbents and the result on standard error")
    options = parser.parse_args(argv)

    def show(news: Incumbent) -> None:
        if options.verbose:
            cost = "none" if news.cost is None else f"{news.cost:.12g}"
            print(
                f"{news.elapsed_s:8.2f} s  cost {cost}  bound {news.bound:.12g}  {news.stage}",
                file=sys.stderr,
                flush=True,
            )

    try:
        problem = read_problem(options.problem)
    except (ProblemError, OSError) as error:
        print(f"{options.problem}: {error}", file=sys.stderr)
        print([])
        return 2
    left = options.time_limit - (time.monotonic() - begin) - min(_MARGIN_S, 0.1 * options.time_limit)
    found = solve(problem, max(0.0, left), options.seed, options.workers, show)
    if options.verbose:
        over = f", over by {found.over_bytes} bytes" if found.status == "infeasible" else ""
        print(f"{found.status}: cost {found.cost}, bound {found.bound}, gap {found.gap:.3g}{over}", file=sys.stderr)
    print([] if found.choice is None else list(found.choice))
    return 0 if found.choice is not None else 1


if __name__ == "__main__":
    sys.exit(main())
