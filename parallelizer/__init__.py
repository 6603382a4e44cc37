"""Plans how an unmodified JAX training step is cut over devices, says what it costs and why, and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cost_model.topology import Topology
    from parallelizer.api import abstract_state, init, parallelize, plan, shard
    from parallelizer.errors import ParallelizerError
    from parallelizer.pins import hint
    from parallelizer.plans import Plan
    from parallelizer.register import register_rule
    from parallelizer.store import load_plan
    from parallelizer.transfer import Transfer, plan_transfer

# Loaded at first use, so that `parallelizer doctor` starts where JAX does not.
_WHERE = {
    "ParallelizerError": "parallelizer.errors",
    "Plan": "parallelizer.plans",
    "Topology": "cost_model.topology",
    "Transfer": "parallelizer.transfer",
    "abstract_state": "parallelizer.api",
    "hint": "parallelizer.pins",
    "init": "parallelizer.api",
    "load_plan": "parallelizer.store",
    "parallelize": "parallelizer.api",
    "plan": "parallelizer.api",
    "plan_transfer": "parallelizer.transfer",
    "register_rule": "parallelizer.register",
    "shard": "parallelizer.api",
}

__all__ = [
    "ParallelizerError",
    "Plan",
    "Topology",
    "Transfer",
    "abstract_state",
    "hint",
    "init",
    "load_plan",
    "parallelize",
    "plan",
    "plan_transfer",
    "register_rule",
    "shard",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'parallelizer' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
