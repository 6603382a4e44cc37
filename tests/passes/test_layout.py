"""The search against brute force, and the properties that every plan must have."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cost_model.mesh import logical_mesh
from cost_model.topology import parse_topology
from parallelizer import zoo
from parallelizer.tracer import trace
from passes.fold import fold
from passes.grouping import group_values
from passes.ir import Sharding
from passes.layout import MemoryError_, search_layout, search_on_mesh
from passes.mesh_search import MeshSearch
from passes.meshes import candidate_meshes, possible_cuts
from passes.normalize import drop_dead
from passes.pinning import PinError
from passes.program import analyse
from passes.question import Question, whole_problem
from passes.solve import evaluate, solve

F = jnp.float32


def _shape(*s):
    return jax.ShapeDtypeStruct(s, F)


def _sgd(state, batch):
    w = state
    x, y = batch

    def loss(w):
        return jnp.mean((jnp.tanh(x @ w) - y) ** 2)

    return w - 0.1 * jax.grad(loss)(w)


def _two_layers(state, batch):
    a, b = state
    return jnp.sum(jnp.maximum(batch @ a, 0.0) @ b)


def _attention(state, batch):
    scores = jnp.einsum("bqd,bkd->bqk", batch @ state, batch)
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), batch).sum()


TINY = {
    "sgd, big batch": (_sgd, (_shape(4, 4), (_shape(64, 4), _shape(64, 4)))),
    "sgd, big weights": (_sgd, (_shape(64, 64), (_shape(2, 64), _shape(2, 64)))),
    "two layers": (_two_layers, ((_shape(16, 64), _shape(64, 16)), _shape(4, 16))),
    "attention": (_attention, (_shape(8, 8), _shape(4, 16, 8))),
}


def _problem(fn, args, sizes, topology="cpu:4", limit=None):
    graph = drop_dead(trace(fn, args).graph)
    mesh = logical_mesh(parse_topology(topology), sizes)
    search = MeshSearch(fold(analyse(graph, group_values(graph, possible_cuts(sizes))), "cpu"), mesh, {})
    question = Question(search.pricer, search.folding, search.all_strategies())
    return graph, mesh, whole_problem(question.priced(limit))


def _brute_force(problem):
    best = np.inf
    for choice in itertools.product(*(range(len(c)) for c in problem.node_costs)):
        found = evaluate(problem, choice)
        if found.feasible:
            best = min(best, found.cost)
    return best


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("tight", [False, True])
def test_the_search_finds_what_trying_everything_finds(name, tight):
    fn, args = TINY[name]
    graph, mesh, problem = _problem(fn, args, {"x": 4})
    combinations = np.prod([float(len(c)) for c in problem.node_costs])
    assert combinations < 3e5, "too large to try everything"
    limit = 1e12
    if tight:
        free = search_on_mesh(graph, mesh, 10**12, {}, 10.0)
        peaks = evaluate(problem, free.choice).peak_bytes
        limit = peaks * 0.7
        graph, mesh, problem = _problem(fn, args, {"x": 4}, limit=limit)
    solution = solve(problem, time_limit_s=20)
    best = _brute_force(problem)
    if best == np.inf:
        assert solution.choice is None
    else:
        assert solution.cost == pytest.approx(best, rel=1e-9)
        assert solution.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("sizes", [{"x": 8}, {"x": 2, "y": 4}])
def test_a_plan_is_no_worse_than_any_uniform_layout(sizes):
    """Batch cut over everything, or nothing cut at all: both are in the space, so the best is not above them."""
    model = zoo.model("mlp")
    graph = drop_dead(trace(model.step, (model.state_shapes(), model.batch_shapes(batch=64))).graph)
    mesh = logical_mesh(parse_topology("cpu:8"), sizes)
    free = search_on_mesh(graph, mesh, 10**12, {}, 20.0)
    everything = tuple(sizes)
    for dims in ((everything, ()), ((), ())):
        pins = {
            v: Sharding(dims) for v, p in zip(graph.inputs, graph.input_paths, strict=True) if p.startswith("batch/")
        }
        pins |= {
            v: Sharding.replicated(len(graph.values[v].shape))
            for v, p in zip(graph.inputs, graph.input_paths, strict=True)
            if p.startswith("state/params")
        }
        assert free.cost_s <= search_on_mesh(graph, mesh, 10**12, pins, 20.0).cost_s * (1 + 1e-9)
    assert free.bound_s <= free.cost_s


def test_three_axes_are_no_worse_than_the_two_that_they_contain():
    graph = drop_dead(trace(*_case("two layers")).graph)
    topology = parse_topology("cpu:8")
    two = search_on_mesh(graph, logical_mesh(topology, {"x": 2, "y": 4}), 10**12, {}, 20.0)
    three = search_on_mesh(graph, logical_mesh(topology, {"x": 2, "y": 2, "z": 2}), 10**12, {}, 20.0)
    assert three.cost_s <= two.cost_s * 1.02
    assert three.bound_s <= three.cost_s


def _case(name):
    fn, args = TINY[name]
    return fn, args


def test_the_same_input_gives_the_same_plan():
    graph = drop_dead(trace(*_case("two layers")).graph)
    meshes = candidate_meshes(parse_topology("cpu:8"))
    one, _ = search_layout(graph, meshes, 10**12)
    two, _ = search_layout(graph, meshes, 10**12)
    assert one.choice == two.choice and one.mesh.sizes == two.mesh.sizes


def test_less_memory_cuts_more_until_nothing_fits():
    model = zoo.model("mlp", hidden=128)
    graph = drop_dead(
        trace(model.step, (model.state_shapes(), model.batch_shapes(batch=512)), donate_argnums=(0,)).graph
    )
    mesh = logical_mesh(parse_topology("cpu:8"), {"x": 8})
    free = search_on_mesh(graph, mesh, 10**12, {}, 20.0)
    costs, peaks = [free.cost_s], [free.footprint.peak_bytes]
    limit = free.footprint.peak_bytes
    with pytest.raises(MemoryError_) as refused:
        for _ in range(12):
            limit = int(limit * 0.8)
            found = search_on_mesh(graph, mesh, limit, {}, 20.0)
            assert found.footprint.peak_bytes <= limit
            costs.append(found.cost_s)
            peaks.append(found.footprint.peak_bytes)
    assert len(costs) > 2
    assert costs == sorted(costs)
    assert refused.value.needed_bytes > refused.value.limit_bytes
    fits = search_on_mesh(graph, mesh, refused.value.needed_bytes, {}, 20.0)
    assert fits.footprint.peak_bytes <= refused.value.needed_bytes, "what is said to be enough is enough"


def test_pins_are_kept_and_impossible_ones_refused():
    graph = drop_dead(trace(*_case("two layers")).graph)
    mesh = logical_mesh(parse_topology("cpu:4"), {"x": 4})
    weights = graph.inputs[0]
    pin = Sharding((("x",), ()))
    assert search_on_mesh(graph, mesh, 10**12, {weights: pin}, 10.0).realized.layout.values[weights] == pin
    odd = drop_dead(trace(lambda a: a * 2.0, (_shape(3, 4),)).graph)
    with pytest.raises(PinError):
        search_on_mesh(odd, mesh, 10**12, {odd.inputs[0]: Sharding((("x",), ()))}, 10.0)


def test_candidate_meshes_are_all_factorisations_up_to_renaming():
    sizes = [m.axis_sizes for m in candidate_meshes(parse_topology("v5p:4x4x4"))]
    assert sizes == [(64,), (8, 8), (16, 4), (32, 2)]
    nodes = [m.axis_sizes for m in candidate_meshes(parse_topology("h100:8x2"))]
    assert nodes == [(16,), (2, 8), (4, 4), (8, 2)]
