"""Reshards: the steps lead where they should, cost what they say, and nothing cheaper exists."""

import itertools

import pytest

from cost_model.collectives import collective_s
from cost_model.mesh import logical_mesh
from cost_model.topology import parse_topology
from passes.ir import Sharding
from passes.reshard import Forms, Reshards, plan_reshard

MESH = logical_mesh(parse_topology("cpu:8"), {"x": 2, "y": 4})


def _s(*dims):
    return Sharding(tuple(tuple(d) for d in dims))


@pytest.mark.parametrize("shape", [(8, 16), (16, 4, 8)])
def test_all_pairs_have_steps_that_change_one_thing_at_a_time(shape):
    table = Reshards(MESH).table(shape, 4)
    for source, target in itertools.product(table.forms.dims, repeat=2):
        now = Sharding(source)
        for step in table.steps(source, target):
            before, after = now.axes, step.to.axes
            if step.kind == "all_gather":
                assert set(after) == set(before) - set(step.axes)
                assert now.dims[step.dim] == (*step.to.dims[step.dim], *step.axes)
            elif step.kind == "slice":
                assert set(after) == set(before) | set(step.axes)
                assert step.size_bytes == 0
            else:
                assert set(after) == set(before)
            now = step.to
        assert now.dims == target


def test_the_price_is_the_sum_of_the_steps_and_obeys_the_triangle():
    table = Reshards(MESH).table((8, 16), 4)
    n = len(table.forms.dims)
    for i, j in itertools.product(range(n), repeat=2):
        source, target = table.forms.dims[i], table.forms.dims[j]
        steps = table.steps(source, target)
        own = sum(1e-9 if s.kind == "slice" else collective_s(s.kind, MESH, s.axes, s.size_bytes) for s in steps)
        assert table.cost[i, j] == pytest.approx(own, rel=1e-6)
    for k in range(n):
        assert (table.cost <= table.cost[:, k, None] + table.cost[None, k, :] + 1e-12).all()


@pytest.mark.parametrize(
    ("source", "target", "kinds"),
    [
        (_s("x", ""), _s("x", ""), []),
        (_s("x", ""), _s("", ""), ["all_gather"]),
        (_s("xy", ""), _s("", ""), ["all_gather"]),
        (_s("", ""), _s("x", "y"), ["slice", "slice"]),
        (_s("y", ""), _s("", "y"), ["all_to_all"]),
        (_s("xy", ""), _s("yx", ""), ["permute"]),
        (_s("xy", ""), _s("x", ""), ["all_gather"]),
    ],
)
def test_the_expected_collectives(source, target, kinds):
    assert sorted(s.kind for s in plan_reshard((64, 64), 4, source, target, MESH)) == sorted(kinds)


def test_gathering_the_major_axis_costs_a_permute_more():
    table = Reshards(MESH).table((1 << 12, 1 << 12), 4)
    minor, major = table.price((("x", "y"), ()), (("x",), ())), table.price((("y", "x"), ()), (("x",), ()))
    assert major > minor
    assert len(table.steps((("y", "x"), ()), (("x",), ()))) > 1


def test_cuts_that_do_not_divide_are_no_forms():
    assert all(not dims[0] for dims in Forms((("x", 2), ("y", 4)), (1, 8)).dims)
    with pytest.raises(KeyError):
        plan_reshard((3, 8), 4, _s("x", ""), _s("", ""), MESH)


def test_sizes_are_the_larger_of_operand_and_result():
    (step,) = plan_reshard((8, 16), 4, _s("x", "y"), _s("", "y"), MESH)
    assert step.size_bytes == 8 * 16 * 4 // 4
    (step,) = plan_reshard((8, 16), 4, _s("x", ""), _s("", "x"), MESH)
    assert step.size_bytes == 8 * 16 * 4 // 2


def test_the_number_of_forms_is_the_number_of_placements():
    """Axes on dimensions or none, with every order on one dimension: 1 + 2r + r(r+1) for two axes."""
    for rank in (1, 2, 3):
        assert len(Forms((("x", 2), ("y", 4)), (8,) * rank).dims) == 1 + 2 * rank + rank * (rank + 1)
