"""Warming up compiles every hot loop, and only once."""

import importlib

from passes.solve import warm_up

COMPILED = ("branch", "dual", "forest", "messages", "moves")


def test_every_loop_is_compiled_by_warming_up():
    warm_up()
    for name in COMPILED:
        module = importlib.import_module(f"passes.solve.{name}")
        own = {k: v for k, v in vars(module).items() if hasattr(v, "py_func") and v.py_func.__module__ == module.__name__}
        assert own
        assert [k for k, v in own.items() if not v.signatures] == []
