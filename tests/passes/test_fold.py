"""Layers that are alike decide together: what folding finds, that its prices are exact, and what it may cost."""

import os
import time

import pytest

from cost_model.mesh import logical_mesh
from cost_model.topology import parse_topology
from parallelizer import zoo
from parallelizer.tracer import trace
from passes.fold import fold
from passes.grouping import group_values
from passes.ir import Sharding
from passes.lifted import lifted
from passes.mesh_search import MeshSearch
from passes.meshes import possible_cuts
from passes.normalize import drop_dead
from passes.program import analyse
from passes.question import Question, answer, least, whole_problem
from passes.solve import evaluate, solve

TOPOLOGY = parse_topology("v5e:2x4")
SIZES = {"x": 2, "y": 4}
ALWAYS = 0  # every program is folded, however small

PROGRAMS = {
    "gpt-toy": {"scan": False, "layers": 3},
    "llama-toy": {"scan": False, "layers": 3},
    "mlp": {"layers": 6, "hidden": 256},
}


# `make test-full` takes all of them.
TRIED = sorted(PROGRAMS) if os.environ.get("TESTS") == "full" else ("llama-toy", "mlp")


def _program(name, **options):
    model = zoo.model(name, **options)
    graph = drop_dead(
        trace(model.step, (model.state_shapes(), model.batch_shapes(batch=32)), donate_argnums=(0,)).graph
    )
    return analyse(graph, group_values(graph, possible_cuts(SIZES)))


def _search(program, small):
    return MeshSearch(fold(program, "tpu", small=small), logical_mesh(TOPOLOGY, SIZES), {})


def _soon():
    return time.monotonic() + 60.0


def _between(free, share):
    """A limit between the least peak there is and that of the cheapest choice."""
    most = free.question.peak_bytes(free.answer.solution.choice)
    lean = free.question.peak_bytes(least(free.question, 10.0))
    assert lean < most
    return lean + share * (most - lean)


def test_deeper_models_have_no_more_classes():
    deep, deeper = (fold(_program("gpt-toy", scan=False, layers=n), "tpu", small=ALWAYS) for n in (6, 12))
    assert len(deeper.class_of) > 1.8 * len(deep.class_of)
    assert len(deeper.classes) == len(deep.classes)


def test_groups_with_different_pins_are_not_alike():
    program = _program("gpt-toy", scan=False, layers=6)
    free = fold(program, "tpu", small=ALWAYS)
    members = next(c for c in free.classes if len(c) >= 4 and program.grouping.groups[c[0]].kind == "input")
    groups = [program.grouping.groups[g] for g in members[:2]]
    pins = {g.root: Sharding((("x",), *((),) * (len(g.limits) - 1))) for g in groups}
    held = fold(program, "tpu", pins, small=ALWAYS)
    assert held.class_of[members[0]] == held.class_of[members[1]] != held.class_of[members[2]]


@pytest.mark.parametrize("name", TRIED)
def test_a_choice_per_class_is_priced_as_the_whole_program(name):
    search = _search(_program(name, **PROGRAMS[name]), ALWAYS)
    assert not search.folding.trivial
    found = search.solve(1e12, _soon())
    whole = evaluate(whole_problem(found.question.priced(None)), found.choice)
    assert whole.cost == pytest.approx(found.cost_s, rel=1e-9)
    peak = found.question.peak_bytes(found.answer.solution.choice)
    assert whole.peak_bytes + search.folding.occupied.loose_bytes == pytest.approx(peak, rel=1e-9)


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize("name", TRIED)
def test_folding_costs_next_to_nothing_and_its_bound_holds(name, share):
    """Against the program in which every group decides for itself, whose answer is proven where time allows."""
    program = _program(name, **PROGRAMS[name])
    apart, together = _search(program, 10**9), _search(program, ALWAYS)
    assert apart.folding.trivial
    free = apart.solve(1e12, _soon())
    limit = 1e12 if share is None else _between(free, share)
    best = apart.solve(limit, _soon())
    folded = together.solve(limit, _soon())
    refined = together.refine(folded, limit, _soon())
    assert best.bound_s * (1 - 1e-9) <= refined.cost_s <= folded.cost_s
    assert refined.cost_s <= best.cost_s * (1.01 if share is None else 1.03)
    assert refined.bound_s <= best.cost_s * (1 + 1e-9)
    assert refined.bound_s >= best.cost_s * (0.9 if share is None else 0.8)
    assert refined.question.folding is folded.question.folding


def test_memory_looked_at_where_it_binds_is_memory_looked_at_everywhere():
    search = _search(_program("mlp", layers=3), 10**9)
    question = Question(search.pricer, search.folding, search.all_strategies())
    free = answer(question, None, _soon())
    peak = question.peak_bytes(free.solution.choice)
    refused = 0
    for share in (0.95, 0.8, 0.6, 0.45, 0.02):
        few = answer(question, share * peak, _soon())
        whole = solve(whole_problem(question.priced(share * peak)), time_limit_s=30)
        assert (few.solution.choice is None) == (whole.choice is None)
        if whole.choice is None:
            refused += 1
            continue
        assert few.solution.cost == pytest.approx(whole.cost, rel=1e-9)
        assert question.peak_bytes(few.solution.choice) <= share * peak * (1 + 1e-9)
    assert refused


def test_any_price_of_memory_gives_a_bound():
    search = _search(_program("mlp", **PROGRAMS["mlp"]), ALWAYS)
    free = search.solve(1e12, _soon())
    limit = _between(free, 0.5)
    folded = search.solve(limit, _soon())
    assert folded.answer.positions
    for price in (0.0, 1e-12, 1e-10, 1e-8, 1e-3):
        prices = dict.fromkeys(folded.answer.positions, price)
        assert lifted(folded.question, limit, prices).bound_s <= folded.cost_s * (1 + 1e-9)
