"""Every rule, cut in every legal way over meshes of (2, 2) and (4,) devices, computes what the whole operation does and
communicates what the rule predicts.

`make test-rules` draws several examples of each primitive and runs every assignment; `make test` runs some assignments
of one example.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from passes.rules import known_primitives
from tests.rules import computing, elementwise, moving
from tests.rules.draws import Draw
from tests.rules.harness import MESHES, cases_of, failures, operations, run_whole

EXAMPLES = {**elementwise.EXAMPLES, **moving.EXAMPLES, **computing.EXAMPLES}
FULL = os.environ.get("TESTS") == "full"
ROUNDS = 3 if FULL else 1
# Assignments per operation and mesh (evenly taken from all, from a random one on), and primitives that are compiled
# together.
MOST = dict.fromkeys(("elementwise", "moving", "computing"), 10**6) if FULL else {
    "elementwise": 2, "moving": 4, "computing": 4,
}  # fmt: skip
SHOWN = 8
AT_ONCE = {"elementwise": 16, "moving": 5, "computing": 2}


def _chunks():
    for table in (elementwise, moving, computing):
        names = [n for n in sorted(table.EXAMPLES)]
        family = table.__name__.rpartition(".")[2]
        step = AT_ONCE[family]
        yield from ((family, tuple(names[i : i + step])) for i in range(0, len(names), step))


def _spread(found, most, draw):
    step = -(-len(found) // most)
    return found[draw.choice(range(step)) :: step] if found else []


@pytest.mark.parametrize(("family", "names"), list(_chunks()))
@settings(
    max_examples=ROUNDS, phases=(Phase.generate,), derandomize=True, deadline=None,
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
@given(st.data())
def test_cut_in_every_legal_way_it_computes_the_same(family, names, data):
    draw = Draw(data, "" if FULL else names[0])
    alones = []
    for name in names:
        for make in EXAMPLES[name]:
            found = operations(name, make(draw))
            assert found, f"the example of {name} has no such operation"
            alones += found
    whole = dict(zip(map(id, alones), run_whole(alones), strict=True))
    cases = [c for a in alones for sizes in MESHES for c in _spread(cases_of(a, sizes), MOST[family], draw)]
    if cases:
        wrong = list(failures(cases, whole))
        assert not wrong, f"{len(wrong)} of {len(cases)} cases:\n" + "\n".join(wrong[:SHOWN])


# Rules that no program here meets: of explicit meshes or of the inside of local programs, of other versions of JAX, or
# run by tests of their own.
ELSEWHERE = {
    "custom_partitioning": "tests/parallelizer/test_register_rule.py",
    "log2": "JAX 0.11",
    "mulhi": "XLA for CPU (jaxlib 0.10.2) compiles it for one device only",
    "one_minus_square": "JAX 0.11",
    "pvary": "inside of shard_map",
    "reshard": "explicit meshes",
    "shard_map": "tests/parallelizer/test_register_rule.py",
}


def test_every_rule_has_an_example_and_every_example_a_rule():
    known = set(known_primitives())
    assert set(EXAMPLES) <= known
    assert known - set(EXAMPLES) <= set(ELSEWHERE)
