"""After warming up, solving compiles nothing more."""

import importlib

import numpy as np

from passes.solve import Edge, MemoryItem, Problem, solve, warm_up

COMPILED = ("branch", "dominance", "dual", "forest", "messages", "moves", "relink")


def _compiled():
    modules = [importlib.import_module(f"passes.solve.{name}") for name in COMPILED]
    return {(m.__name__, k): len(v.signatures) for m in modules for k, v in vars(m).items() if hasattr(v, "py_func")}


def test_nothing_is_left_to_compile():
    warm_up()
    before = _compiled()
    assert sum(before.values()) > 5
    random = np.random.default_rng(7)
    for room in (1.4, 2.0):
        problem = Problem(
            tuple(random.random(5) for _ in range(9)),
            tuple(
                Edge(u, v, random.random((5, 5))) for u in range(9) for v in range(u + 1, 9) if random.random() < 0.6
            ),
            tuple(MemoryItem(i, i, i + 3, random.random(5)) for i in range(9)),
            room,
        )
        solve(problem, time_limit_s=20)
    assert _compiled() == before
