"""What axes are for, kinds of arguments, and like things in one row, on plans written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cost_model.mesh import logical_mesh
from cost_model.topology import parse_topology
from parallelizer.inspect import facts
from parallelizer.plans import Array, Choice, Collective, Cost, Memory, Plan
from passes.ir import Layout, Sharding

Dims = tuple[tuple[str, ...], ...]
WHOLE: Dims = ((), ())
X: Dims = (("x",), ())
Y: Dims = ((), ("y",))


def _array(path: str, dims: Dims, shape: tuple[int, ...] = (64, 128), dtype: str = "float32") -> Array:
    return Array(path, shape, dtype, Sharding(dims))


def _plan(inputs: Sequence[Array], outputs: Sequence[Array], **more: Any) -> Plan:
    mesh = logical_mesh(parse_topology("v5e:2x4"), {"x": 2, "y": 4})
    given: dict[str, Any] = {
        "donated": (), "collectives": (), "choices": (), "tried": (), "unknown": (), "pins": {}, "versions": {},
        "layout": Layout((("x", 2), ("y", 4)), {}, {}, {}),
    } | more  # fmt: skip
    return Plan(
        function="step", graph_hash="0" * 64, topology="v5e:2x4", mesh=mesh, inputs=tuple(inputs), primitives={},
        outputs=tuple(outputs), cost=Cost(1.0, 0.8, 0.2, 0.1, 1000), objective_s=1.1, bound=1.1, gap=0.0,
        status="optimal", search_s=0.5, memory=Memory(2000, (("arguments", 1000),), ()), **given,
    )  # fmt: skip


def _training(batch: Dims, kernel: Dims, moments: Dims, collectives: Sequence[Collective] = (), **more: Any) -> Plan:
    state = [_array("params/kernel", kernel), _array("opt_state/mu/kernel", moments), _array("step", (), (), "int32")]
    inputs = [_array(f"state/{a.path}", a.sharding.dims, a.shape, a.dtype) for a in state if a.sharding]
    inputs.append(_array("batch/x", batch, (32, 16), "int32"))
    outputs = [_array(f"0/{a.path}", a.sharding.dims, a.shape, a.dtype) for a in state if a.sharding]
    return _plan(inputs, [*outputs, _array("1/loss", (), ())], collectives=tuple(collectives), **more)


def _moves(array: str, axes: tuple[str, ...], kind: str = "all_gather", op: int = 3) -> Collective:
    return Collective(kind, axes, 1000, 2, "model.py:1 (f)", array, "brought to where it is used", op)


GATHER = _moves("state/params/kernel", ("x",))


def test_kinds_of_arguments() -> None:
    plan = _training(X, WHOLE, X)
    assert facts.kinds_of_arguments(plan) == {
        "state/params/kernel": "parameters",
        "state/opt_state/mu/kernel": "optimizer state",
        "state/step": "other state",
        "batch/x": "batch",
    }


def test_separate_arguments_and_donated_ones_are_state() -> None:
    arrays = [_array("w/a", WHOLE), _array("scale", WHOLE), _array("x", X)]
    plan = _plan(arrays, [_array("0/a", WHOLE), _array("1", WHOLE)])
    assert facts.carried_roots(plan) == {"w"}
    assert facts.carried_roots(_plan(arrays, [_array("0/a", WHOLE)], donated=(1,))) == {"w", "scale"}


@pytest.mark.parametrize(
    ("plan", "used"),
    [
        (_training(X, WHOLE, WHOLE), {"x": "data", "y": "nothing is cut over it"}),
        (_training(X, WHOLE, X), {"x": "data + sharded optimizer state", "y": "nothing is cut over it"}),
        (_training(X, Y, Y), {"x": "data", "y": "tensor"}),
        (_training(X, X, X, [GATHER]), {"x": "data + fsdp", "y": "nothing is cut over it"}),
        (_training((("x",), ("y",)), WHOLE, WHOLE), {"x": "data", "y": "sequence"}),
        (
            _training((("x", "y"), ()), Y, Y, [_moves("state/params/kernel", ("y",))]),
            {"x": "data", "y": "data + fsdp"},
        ),
    ],
    ids=["data", "zero", "tensor", "fsdp", "sequence", "both"],
)  # fmt: skip
def test_axes_are_named_in_the_words_of_the_field(plan: Plan, used: Mapping[str, str]) -> None:
    assert facts.roles(plan) == used


def test_leaving_arrays_are_not_fsdp_and_activations_count() -> None:
    leaves = _moves("state/params/kernel", ("y",), op=-1)
    assert facts.roles(_training(X, Y, Y, [leaves]))["y"] == "tensor"
    between = _moves("dot_general at model.py:1", ("y",))
    assert facts.roles(_training(X, WHOLE, WHOLE, [between]))["y"] == "tensor in part"
    cut = Layout((("x", 2), ("y", 4)), {7: Sharding(((), ("y",)))}, {}, {})
    assert facts.roles(_training(X, WHOLE, WHOLE, layout=cut))["y"] == "activations"
    hidden = Choice(("dot_general at model.py:1",), (32, 16, 8), Sharding(((), ("y",), ())), "cheapest", None, 0.0)
    assert facts.roles(_training(X, WHOLE, WHOLE, choices=(hidden,)))["y"] == "sequence"


def test_gathers_through_another_array_of_the_decision_are_fsdp() -> None:
    both = ("state/opt_state/mu/kernel", "state/params/kernel")
    together = Choice(both, (64, 128), Sharding(X), "cheapest", None, 0.0)
    plan = _training(X, X, X, [_moves(both[0], ("x",))], choices=(together,))
    assert facts.roles(plan)["x"] == "data + fsdp"
    assert facts.traffic(plan)[0].array == "params/kernel"


def test_rows_hold_the_optimizers_arrays_and_all_layers() -> None:
    params = [_array(f"state/params/layers_{i}/{m}/kernel", Y) for i in range(3) for m in ("up", "down")]
    moments = [
        _array(f"state/opt_state/{k}/layers_{i}/{m}/kernel", X if m == "up" else Y)
        for k in ("mu", "nu")
        for i in range(3)
        for m in ("up", "down")
    ]
    closest = [
        Choice((a.path,), a.shape, Sharding(Y), "cheapest", Sharding(X), 1e-3 * (9 - i)) for i, a in enumerate(params)
    ]
    outputs = [_array(a.path.replace("state/", "0/", 1), WHOLE) for a in (*params, *moments)]
    plan = _plan([*params, *moments, _array("batch/x", X)], outputs, choices=tuple(closest))
    up, down, batch = facts.argument_rows(plan)
    assert (up.section, up.label, up.state) == ("state/params/", "layers_{0..2}/up/kernel", "[x, -]")
    assert (down.label, down.state) == ("layers_{0..2}/down/kernel", "same")
    assert (batch.section, batch.label, batch.kind, batch.state) == ("batch/", "x", "batch", "")
    whole = 64 * 128 * 4
    assert up.device_bytes == 3 * (whole // 4 + 2 * whole // 2)
    assert down.device_bytes == 3 * 3 * whole // 4
    assert [c.extra_s for c in up.choices] == sorted(c.extra_s for c in up.choices)
    assert len(up.choices) == 3


def test_like_collectives_are_summed() -> None:
    layers = [_moves(f"state/params/layers_{i}/w", ("x",)) for i in range(4)]
    inputs = [_array(f"state/params/layers_{i}/w", X) for i in range(4)]
    other = _moves("dot_general at model.py:1", ("x",), "reduce_scatter")
    loop = _moves("", ("y",), "all_to_all")
    outputs = [_array(a.path.replace("state/", "0/", 1), X) for a in inputs]
    rows = facts.traffic(_plan(inputs, outputs, collectives=(*layers, other, loop)))
    assert [(t.array, t.count, t.total_bytes) for t in rows] == [
        ("params/layers_{0..3}/w", 8, 8000),
        ("dot_general", 2, 2000),
        ("carried by a loop", 2, 2000),
    ]


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("bool", 1), ("int8", 1), ("complex64", 8), ("key<fry>", 8)]
)
def test_sizes_of_elements(dtype: str, size: int) -> None:
    assert facts.itemsize(dtype) == size


def test_common_start_never_takes_a_whole_path() -> None:
    assert facts.common_start(["a/b/c", "a/b/d"]) == "a/b/"
    assert facts.common_start(["a/b"]) == "a/"
    assert facts.common_start(["a", "a/b"]) == ""
    assert facts.common_start([]) == ""
