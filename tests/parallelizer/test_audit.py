"""The audit: what agrees passes, what differs is named with the user's line, on the CPU compiler and on given texts."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import parallelizer as pz
from cost_model.topology import parse_topology
from parallelizer import zoo
from parallelizer.audit import Audit, compare
from parallelizer.compiled import CompiledCollective, CompiledMemory
from parallelizer.errors import AheadOfTimeError
from parallelizer.plans import Plan


def step(w: Any, x: Any) -> Any:
    def loss(w: Any) -> Any:
        return jnp.mean(jnp.square(x @ w))

    return w - 0.1 * jax.grad(loss)(w)


def plan_of(dtype: Any = jnp.float32, topology: str = "cpu:4") -> Plan:
    """Data parallel: the gradient of a [128, 32] matrix is summed over four devices."""
    w, x = jax.ShapeDtypeStruct((128, 32), dtype), jax.ShapeDtypeStruct((1 << 14, 128), dtype)
    pins = {"x": jax.sharding.PartitionSpec("x"), "w": jax.sharding.PartitionSpec()}
    return pz.plan(step, w, x, topology=topology, mesh={"x": 4}, pins=pins)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of()


def collective(kind: str, size: int, op: int, groups: frozenset[tuple[int, ...]], **rest: Any) -> CompiledCollective:
    return CompiledCollective(
        kind=kind, groups=groups, size_bytes=size, operand_bytes=size, result_bytes=size, padded_bytes=size,
        dtypes=("f32",), count=1, members=1, member_bytes=(size,), member_op_names=("",), asynchronous=False,
        op_name=f"jit(step)/pz{op}/shard_map/psum" if op >= 0 else "", source_file="", source_line=0, name="c",
        computation="main", **rest,
    )  # fmt: skip


ALL = frozenset({(0, 1, 2, 3)})
SUM_BYTES = 128 * 32 * 4


def gradient_op(plan: Plan) -> int:
    return plan.collectives[0].op


def audit_of(plan: Plan, *found: CompiledCollective, peak: float = 1.0, topology: str = "v5e:2x2") -> Audit:
    memory = CompiledMemory(0, 0, 0, 0, int(peak * plan.cost.peak_bytes))
    return compare(plan, found, memory, parse_topology(topology))


def test_compiled_program_of_a_gradient_sum_is_as_planned(plan: Plan) -> None:
    audit = plan.audit()
    assert audit.ok and not audit.mismatches
    (row,) = audit.rows
    assert (row.kind, row.axes, row.predicted_bytes, row.compiled_bytes) == ("all_reduce", ("x",), SUM_BYTES, SUM_BYTES)
    assert (row.predicted_count, row.compiled_count, row.ratio) == (1, 1, 1.0)
    assert audit.topology == "cpu:4" and not audit.memory_judged
    assert audit.predicted_peak_bytes == plan.cost.peak_bytes


def test_sixteen_bit_numbers_travel_as_float32_on_cpu() -> None:
    audit = plan_of(jnp.bfloat16).audit()
    assert audit.ok, str(audit)
    assert audit.rows[0].predicted_bytes == SUM_BYTES
    assert any("float32" in n for n in audit.notes)


def test_a_missing_collective_is_named_with_the_users_line(plan: Plan) -> None:
    audit = audit_of(plan)
    assert not audit.ok
    (missing,) = audit.mismatches
    line = inspect.getsourcelines(step)[1] + 2
    assert missing.what == "missing" and missing.kind == "all_reduce" and missing.axes == ("x",)
    assert f"test_audit.py:{line}" in missing.source and missing.op == gradient_op(plan)
    assert "missing: all_reduce over x" in str(audit) and f"test_audit.py:{line}" in str(audit)


def test_an_unplanned_collective_is_led_back_to_its_operation(plan: Plan) -> None:
    op = gradient_op(plan)
    good = collective("all_reduce", SUM_BYTES, op, ALL)
    audit = audit_of(plan, good, collective("all_gather", 1 << 20, op, ALL))
    assert not audit.ok
    (unplanned,) = audit.mismatches
    assert (unplanned.what, unplanned.kind, unplanned.compiled_bytes) == ("unplanned", "all_gather", 1 << 20)
    assert unplanned.primitive == "dot_general" and "test_audit.py" in unplanned.source
    assert [r.ok for r in audit.rows] == [False, True]


def test_other_bytes_at_the_same_operation_differ(plan: Plan) -> None:
    audit = audit_of(plan, collective("all_reduce", 2 * SUM_BYTES, gradient_op(plan), ALL))
    (differs,) = audit.mismatches
    assert not audit.ok and differs.what == "differs"
    assert (differs.predicted_bytes, differs.compiled_bytes) == (SUM_BYTES, 2 * SUM_BYTES)
    assert audit.rows[0].ratio == 2.0


@pytest.mark.parametrize(("size", "ok"), [(int(SUM_BYTES * 1.019), True), (SUM_BYTES + 8192, False)])
def test_two_percent_are_allowed(plan: Plan, size: int, ok: bool) -> None:
    assert audit_of(plan, collective("all_reduce", size, gradient_op(plan), ALL)).ok is ok


def test_a_merged_collective_that_kept_another_name_still_counts(plan: Plan) -> None:
    audit = audit_of(plan, collective("all_reduce", SUM_BYTES, gradient_op(plan) + 1, ALL))
    assert audit.ok and not audit.mismatches


def test_scalars_are_latency_and_never_fail(plan: Plan) -> None:
    good = collective("all_reduce", SUM_BYTES, gradient_op(plan), ALL)
    audit = audit_of(plan, good, *(collective("all_reduce", 4, -1, ALL) for _ in range(1000)))
    assert audit.ok and not audit.mismatches
    assert any("1000 compiled" in n for n in audit.notes)


def test_small_reduce_scatter_spelled_as_a_sliced_all_reduce_counts_as_planned(plan: Plan) -> None:
    planned = replace(plan, collectives=(replace(plan.collectives[0], kind="reduce_scatter"),))
    spelled = collective("all_reduce", SUM_BYTES, gradient_op(plan), ALL, member_sliced=(True,))
    audit = audit_of(planned, spelled)
    assert audit.ok and audit.rows[0].kind == "reduce_scatter" and audit.rows[0].respelled_bytes == SUM_BYTES
    assert any("compiled as all_reduce" in n for n in audit.notes)


def test_a_large_reduce_scatter_spelled_as_an_all_reduce_differs(plan: Plan) -> None:
    large = replace(plan.collectives[0], kind="reduce_scatter", size_bytes=1 << 20)
    spelled = collective("all_reduce", 1 << 20, gradient_op(plan), ALL, member_sliced=(True,))
    audit = audit_of(replace(plan, collectives=(large,)), spelled)
    assert not audit.ok and {m.what for m in audit.mismatches} == {"missing", "unplanned"}


def test_gathers_that_a_compiler_narrows_count_half_and_are_noted(plan: Plan) -> None:
    gather = replace(plan.collectives[0], kind="all_gather")
    narrow = replace(collective("all_gather", SUM_BYTES // 2, gradient_op(plan), ALL), dtypes=("bf16",))
    audit = audit_of(replace(plan, collectives=(gather,)), narrow)
    assert audit.ok and audit.rows[0].predicted_bytes == SUM_BYTES // 2
    assert any("16-bit" in n for n in audit.notes)


def test_groups_that_are_no_axis_are_listed_under_the_axes_that_they_span(plan: Plan) -> None:
    audit = audit_of(plan, collective("all_reduce", SUM_BYTES, gradient_op(plan), frozenset({(0, 1), (2, 3)})))
    assert audit.rows[0].axes == ("x",) and any("only a part" in n for n in audit.notes)


@pytest.mark.parametrize(("peak", "ok"), [(1.14, True), (0.86, True), (1.2, False), (0.8, False)])
def test_memory_is_judged_where_the_compiler_schedules_for_it(plan: Plan, peak: float, ok: bool) -> None:
    good = collective("all_reduce", SUM_BYTES, gradient_op(plan), ALL)
    judged = audit_of(plan, good, peak=peak)
    assert judged.ok is ok and judged.memory_judged and judged.memory_ratio == pytest.approx(peak, rel=1e-4)
    assert audit_of(plan, good, peak=peak, topology="cpu:4").ok


def test_forms_for_machines_and_notebooks(plan: Plan) -> None:
    audit = audit_of(plan, collective("all_gather", 1 << 20, -1, ALL))
    data = json.loads(json.dumps(audit.to_dict()))
    assert data["ok"] is False and data["rows"][0]["ratio"] is None and len(data["mismatches"]) == 2
    page = audit._repr_html_()
    assert page.startswith("<div>") and "all_gather" in page and "differs from the plan" in page
    assert "no collectives" in str(compare(replace(plan, collectives=()), [], None, parse_topology("cpu:4")))


def test_a_topology_without_its_compiler_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else real(name, *a))
    with pytest.raises(AheadOfTimeError, match="libtpu"):
        plan.audit("v5e:2x2")


@pytest.mark.parametrize("options", [{"scan": True}, {"remat": "full"}], ids=["mask read in a loop", "barriers"])
def test_bert_compiles_as_planned(options: dict[str, Any]) -> None:
    """Its mask is repeated over heads outside the loop and cut inside; its barriers pass many values at once."""
    model = zoo.model("bert", **options)
    shapes = model.state_shapes(), model.batch_shapes(batch=8)
    audit = pz.plan(model.step, *shapes, topology="cpu:8", mesh={"x": 2, "y": 4}, donate_argnums=0).audit()
    assert audit.ok and not audit.mismatches and audit.compiled_bytes > 1e5, str(audit)
