"""Decision groups: who leads, who follows, and what is asked of others."""

import jax
import jax.numpy as jnp
import pytest

from parallelizer import zoo
from parallelizer.tracer import trace
from passes.grouping import group_values
from passes.groups import FREE, SCALAR, Alias, Place
from passes.normalize import drop_dead

F = jnp.float32


def _shape(*s, dtype=F):
    return jax.ShapeDtypeStruct(s, dtype)


def _grouped(fn, *args, donate=()):
    graph = drop_dead(trace(fn, args, donate_argnums=donate).graph)
    return graph, group_values(graph, (2, 4, 8))


def _leaders(grouping):
    return [g.leader.op.primitive for g in grouping.groups.values() if g.kind in ("op", "join")]


def test_element_wise_work_follows_its_input():
    graph, grouping = _grouped(lambda x: jnp.tanh(x * 2.0) + x, _shape(8, 16))
    assert _leaders(grouping) == []
    assert {grouping.place(v).group for v in (*graph.inputs, *graph.outputs)} == {0}


def test_two_arrays_that_meet_make_a_join_and_meet_once():
    _, grouping = _grouped(lambda x, y: ((x + y) * x - y).astype(jnp.bfloat16), _shape(8, 16), _shape(8, 16))
    assert _leaders(grouping) == ["add"]


def test_a_contraction_leads_and_what_follows_takes_its_form():
    graph, grouping = _grouped(lambda x, w, b: jax.nn.relu(x @ w + b), _shape(8, 16), _shape(16, 32), _shape(32))
    assert _leaders(grouping) == ["dot_general"]
    out = grouping.place(graph.outputs[0])
    assert grouping.groups[out.group].kind == "op"
    bias = graph.inputs[2]
    want = next(w for w in grouping.wants if w.value == bias)
    assert want.consumer == out.group and want.slots == (1,)


def test_broadcasts_are_aliases_of_their_source():
    graph, grouping = _grouped(lambda x: jnp.broadcast_to(x, (4, 8)), _shape(8))
    state = grouping.states[graph.outputs[0]]
    assert state == Alias(graph.inputs[0], (-1, 0))


def test_statistics_follow_and_are_finished_where_their_dimension_is_cut():
    _, grouping = _grouped(lambda x: x - x.mean(-1, keepdims=True), _shape(8, 16))
    assert _leaders(grouping) == []
    (finish,) = grouping.groups[0].finishes
    assert finish.classes == (1,) and finish.combine == "sum" and finish.result_dims == (0,)


def test_reductions_over_leading_dimensions_lead():
    _, grouping = _grouped(lambda x: x.sum((0, 1)), _shape(4, 8, 16))
    assert _leaders(grouping) == ["reduce_sum"]


def test_splitting_heads_follows_and_limits_the_cut():
    graph, grouping = _grouped(lambda x: x.reshape(4, 8, 2, 32), _shape(4, 8, 64))
    place = grouping.place(graph.outputs[0])
    assert place.dims == (0, 1, 2, -1) or _leaders(grouping) == ["reshape"]
    graph, grouping = _grouped(lambda x: x.reshape(4, 8, 16, 4), _shape(4, 8, 64))
    assert grouping.place(graph.outputs[0]).dims == (0, 1, 2, -1)
    assert grouping.groups[0].limits[2] == 16


def test_merging_dimensions_that_could_be_cut_leads():
    _, grouping = _grouped(lambda x: x.reshape(32, 16), _shape(4, 8, 16))
    assert _leaders(grouping) == ["reshape"]


def test_constants_counters_and_random_bits_are_free():
    graph, grouping = _grouped(lambda k: jax.random.uniform(k, (8, 16)), jax.eval_shape(lambda: jax.random.key(0)))
    assert grouping.states[graph.inputs[0]] is SCALAR
    assert grouping.states[graph.outputs[0]] is FREE


def test_optimizer_moments_of_one_parameter_decide_together():
    def step(state, g):
        p, m, v = state
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        return (p - m / (jnp.sqrt(v) + 1e-8) * jnp.sum(p @ p), m, v)

    graph, grouping = _grouped(step, (_shape(16, 16),) * 3, _shape(16, 16))
    p, m, v = (grouping.place(i) for i in graph.inputs[:3])
    assert m.group == v.group != p.group


def test_a_while_carry_is_one_group_in_condition_body_and_result():
    def fn(w, x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: jnp.tanh(c @ w), x)

    graph, grouping = _grouped(fn, _shape(16, 16), _shape(8, 16))
    loop = next(op for op in graph.ops if op.primitive == "while")
    test, body = loop.regions
    place = grouping.place(loop.outputs[0])
    assert grouping.groups[place.group].kind == "carry"
    assert grouping.place(test.inputs[-1]) == grouping.place(body.inputs[-1]) == place
    assert {w.role for w in grouping.wants if w.consumer == place.group} == {"enter", "return"}
    assert grouping.place(body.inputs[0]) == grouping.place(graph.inputs[0]), "what a loop only reads stays as it is"


def test_branches_that_yield_one_place_follow_it_and_others_decide():
    def follows(x, p):
        return jax.lax.cond(p, lambda v: v * 2, lambda v: v, x)

    graph, grouping = _grouped(follows, _shape(8, 16), _shape(dtype=jnp.bool_))
    assert grouping.place(graph.outputs[0]) == grouping.place(graph.inputs[0]) and not grouping.wants

    def decides(x, w, p):
        return jax.lax.cond(p, lambda v: v @ w, lambda v: v, x)

    graph, grouping = _grouped(decides, _shape(8, 16), _shape(16, 16), _shape(dtype=jnp.bool_))
    place = grouping.place(graph.outputs[0])
    assert grouping.groups[place.group].kind == "made"
    branches = [w for w in grouping.wants if w.role == "branch"]
    assert [w.consumer for w in branches] == [place.group] * 2 and [w.runs for w in branches] == [0.5, 0.5]
    product = next(v for v in grouping.visits if v.op.primitive == "dot_general")
    assert (product.count, product.runs) == (1, 0.5)


def test_a_stack_that_others_read_too_is_brought_to_the_loop():
    def fn(x, c):
        return jax.lax.scan(lambda c, t: (c + t, None), c, x)[0], x.sum()

    graph, grouping = _grouped(fn, _shape(8, 16, 4), _shape(16, 4))
    scan = next(op for op in graph.ops if op.primitive == "scan")
    stack, inside = grouping.place(graph.inputs[0]), grouping.place(scan.regions[0].inputs[1])
    assert stack.group != inside.group and grouping.groups[stack.group].limits[stack.dims[0]] == 8
    (want,) = [w for w in grouping.wants if w.value == graph.inputs[0]]
    assert (want.role, want.consumer, want.slots) == ("enter", inside.group, (None, 0, 1))


def test_a_stack_that_only_the_loop_reads_is_stored_as_the_loop_reads_it_unless_pinned():
    def fn(x, c):
        return jax.lax.scan(lambda c, t: (c + t, None), c, x)[0]

    graph, grouping = _grouped(fn, _shape(8, 16, 4), _shape(16, 4))
    stack = grouping.place(graph.inputs[0])
    assert grouping.groups[stack.group].limits[stack.dims[0]] == 1
    pinned = group_values(graph, (2, 4, 8), pinned=graph.inputs[:1])
    stack = pinned.place(graph.inputs[0])
    assert pinned.groups[stack.group].limits[stack.dims[0]] == 8


def test_a_loop_carry_has_one_sharding():
    def fn(x, ws):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h), x, ws)

    graph, grouping = _grouped(fn, _shape(8, 16), _shape(3, 16, 16))
    scan = next(op for op in graph.ops if op.primitive == "scan")
    body = scan.regions[0]
    carry = grouping.place(body.inputs[0])
    assert grouping.groups[carry.group].kind == "carry"
    assert grouping.place(scan.outputs[0]) == carry
    assert {w.role for w in grouping.wants if w.consumer == carry.group} == {"enter", "return"}
    counts = {w.role: w.count for w in grouping.wants if w.consumer == carry.group}
    assert counts == {"enter": 1, "return": 3}
    weights = grouping.place(graph.inputs[1])
    assert grouping.groups[weights.group].limits[weights.dims[0]] == 1, "the scanned dimension stays whole"
    assert grouping.place(body.inputs[1]).dims == weights.dims[1:]
    assert grouping.place(scan.outputs[1]).dims == (-1, *carry.dims)


def test_sums_of_contractions_may_be_finished_once():
    """The gradient of an input that feeds three projections."""
    _, grouping = _grouped(lambda a, b, c, w: a @ w + b @ w + c @ w, *(_shape(8, 16),) * 3, _shape(16, 4))
    assert sum(g.defers for g in grouping.groups.values()) == 4
    assert sum(g.sums for g in grouping.groups.values()) == 2


@pytest.mark.parametrize("name", ["mlp", "gpt-toy", "llama-toy", "bert"])
@pytest.mark.parametrize("scan", [True, False])
def test_every_value_of_the_zoo_has_a_state_and_no_primitive_is_unknown(name, scan):
    model = zoo.model(name) if name in ("mlp", "bert") else zoo.model(name, scan=scan)
    graph, grouping = _grouped(model.step, model.state_shapes(), model.batch_shapes())
    assert grouping.unknown == ()
    for visit in grouping.visits:
        for v in visit.op.outputs:
            state = grouping.states[v]
            if isinstance(state, Place):
                assert state.group in grouping.groups and len(state.dims) == len(graph.values[v].shape)
    for want in grouping.wants:
        assert len(want.slots) == len(graph.values[want.value].shape)
