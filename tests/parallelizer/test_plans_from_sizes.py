"""From sizes alone: which parallelism comes out when only the model, the batch or the memory changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import zoo
from parallelizer.compiled import read_collectives
from parallelizer.errors import DoesNotFitError
from parallelizer.plans import Plan


def plan_of(model: zoo.ZooModel, batch: int, **options: Any) -> Plan:
    shapes = model.state_shapes(), model.batch_shapes(batch=batch)
    return pz.plan(model.step, *shapes, topology="cpu:4", mesh={"x": 4}, donate_argnums=0, **options)


def cut_share(plan: Plan, under: str) -> float:
    """The share of the bytes below a path that is cut."""
    sizes = {a.path: (math.prod(a.shape), any(a.sharding.dims)) for a in plan.inputs if a.sharding and under in a.path}
    return sum(n for n, cut in sizes.values() if cut) / sum(n for n, _ in sizes.values())


def compiled_kinds(plan: Plan) -> Mapping[str, int]:
    found = [c for c in read_collectives(plan.compile().as_text()) if c.size_bytes > 64]
    return {kind: sum(c.count for c in found if c.kind == kind) for kind in {c.kind for c in found}}


def test_small_model_and_big_batch_is_data_parallel_with_one_gradient_reduction() -> None:
    plan = plan_of(zoo.model("mlp", hidden=32), 1024)
    assert {plan.shardings["batch/x"], plan.shardings["batch/y"]} == {P("x")}
    assert cut_share(plan, "state/") == 0.0
    assert compiled_kinds(plan) == {"all_reduce": 1}


def test_big_matrices_and_small_batch_is_tensor_parallel_by_columns_and_rows() -> None:
    plan = plan_of(zoo.model("mlp", hidden=512), 8)
    cut = [plan.shardings[f"state/params/layers_{i}/kernel"] for i in range(6)]
    assert cut == [P(None, "x"), P("x")] * 3
    assert set(compiled_kinds(plan)) == {"all_reduce"}
    gradients = 4 * 512 * 512
    assert all(c.size_bytes < gradients / 4 for c in plan.collectives), "no gradient moves"


def test_less_memory_cuts_the_optimizer_state_then_the_parameters_and_then_nothing_fits() -> None:
    model = zoo.model("mlp", hidden=32)
    ample = plan_of(model, 256)
    assert cut_share(ample, "state/") == 0.0
    plans = [ample]
    for share in (0.9, 0.8, 0.7):
        plans.append(plan_of(model, 256, memory_bytes=share * ample.cost.peak_bytes))
        assert plans[-1].cost.peak_bytes <= share * ample.cost.peak_bytes
    optimizer = [cut_share(p, "opt_state") for p in plans]
    parameters = [cut_share(p, "/params/") for p in plans]
    assert optimizer == sorted(optimizer) and optimizer[-1] > 0.9
    assert all(o >= p for o, p in zip(optimizer, parameters, strict=True))
    assert any(o > p for o, p in zip(optimizer, parameters, strict=True)), "the optimizer's state goes first"
    assert parameters[-1] > 0.0
    costs = [p.objective_s for p in plans]
    assert costs == sorted(costs), "what memory forces is never free"
    with pytest.raises(DoesNotFitError, match="missing"):
        plan_of(model, 256, memory_bytes=0.3 * ample.cost.peak_bytes)
