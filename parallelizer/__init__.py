"""Plans how an unmodified JAX training step is cut over devices, says what it costs and why, and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cost_model.topology import Topology
    from parallelizer.api import abstract_state, init, parallelize, plan, shard
    from parallelizer.errors import ParallelizerError
    from parallelizer.plans import Plan
    from parallelizer.store import load_plan
    from passes.rules import rule as register_rule

# Loaded at first use, so that `parallelizer doctor` starts where JAX does not.
_WHERE = {
    "ParallelizerError": "parallelizer.errors",
    "Plan": "parallelizer.plans",
    "Topology": "cost_model.topology",
    "abstract_state": "parallelizer.api",
    "init": "parallelizer.api",
    "load_plan": "parallelizer.store",
    "parallelize": "parallelizer.api",
    "plan": "parallelizer.api",
    "shard": "parallelizer.api",
}

__all__ = [
    "ParallelizerError",
    "Plan",
    "Topology",
    "abstract_state",
    "init",
    "load_plan",
    "parallelize",
    "plan",
    "register_rule",
    "shard",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "register_rule":
        return importlib.import_module("passes.rules").rule
    if name not in _WHERE:
        raise AttributeError(f"module 'parallelizer' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
