"""Certified optimisation on arrays: one strategy per node, pair costs per edge, memory within a limit at every time."""

from .door import Incumbent, Solution, solve
from .files import problem_from_json, read_problem, write_problem
from .problem import Edge, Evaluation, MemoryItem, Problem, ProblemError, choice_cost, evaluate
from .warm import warm_up

__all__ = [
    "Edge",
    "Evaluation",
    "Incumbent",
    "MemoryItem",
    "Problem",
    "ProblemError",
    "Solution",
    "choice_cost",
    "evaluate",
    "problem_from_json",
    "read_problem",
    "solve",
    "warm_up",
    "write_problem",
]
