"""The contest's format, whole and broken."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.solve import ProblemError, evaluate, problem_from_json, read_problem, solve, write_problem
from passes.solve.__main__ import main
from tests.passes.solve.problems import random_problem

# The contest's own example.
EXAMPLE: dict[str, Any] = {
    "problem": {
        "name": "example",
        "nodes": {
            "intervals": [[30, 70], [40, 70], [50, 120], [110, 140], [110, 150]],
            "costs": [[15], [55, 65], [25, 45, 35], [85, 75], [95]],
            "usages": [[10], [25, 25], [15, 20, 15], [10, 10], [15]],
        },
        "edges": {
            "nodes": [[0, 1], [0, 2], [1, 3], [2, 4], [3, 4]],
            "costs": [[30, 40], [50, 10, 40], [90, 10, 20, 80], [60, 20, 30], [70, 60]],
        },
        "usage_limit": 50,
    }
}


def test_example_is_solved_with_proof() -> None:
    found = solve(problem_from_json(EXAMPLE))
    assert (found.choice, found.cost, found.bound, found.status) == ((0, 0, 2, 1, 0), 445, 445, "optimal")


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_written_problems_read_back_alike(tmp_path: Path, name: str) -> None:
    for seed in range(40):
        problem = random_problem(seed)
        write_problem(problem, tmp_path / name)
        again = read_problem(tmp_path / name)
        rng = np.random.default_rng(seed)
        for _ in range(5):
            choice = [int(rng.integers(c.size)) for c in problem.node_costs]
            assert evaluate(again, choice) == evaluate(problem, choice), seed
    assert [p.name for p in tmp_path.iterdir()] == [name]


def broken(path: list[Any], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(EXAMPLE)
    at = document["problem"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (["nodes"], [], "problem.nodes"),
        (["edges"], None, "problem.edges"),
        (["nodes", "costs"], [[1]], "nodes"),
        (["nodes", "costs", 1], ["a", 2], "nodes.costs[1]"),
        (["nodes", "costs", 1], [True, 2], "nodes.costs[1]"),
        (["nodes", "costs", 1], [float("nan"), 2], "nodes[1]"),
        (["nodes", "costs", 1], [-(2**70), 2], "nodes.costs[1]"),
        (["nodes", "intervals", 0], [70, 30], "memory[0]"),
        (["nodes", "intervals", 0], [1.5, 30], "nodes.intervals[0]"),
        (["nodes", "usages", 1], [-1, 25], "memory[1]"),
        (["nodes", "usages", 1], [25], "memory[1]"),
        (["nodes", "usages", 1], [float("inf"), 25], "memory[1]"),
        (["nodes", "usages", 1], [2**63, 25], "nodes.usages[1]"),
        (["edges", "nodes", 0], [0, 9], "edges.nodes[0]"),
        (["edges", "nodes", 2], [1, 1], "edges[2]"),
        (["edges", "nodes", 0], [0, 1, 2], "edges.nodes[0]"),
        (["edges", "costs", 0], [30], "edges.costs[0]"),
        (["usage_limit"], "50", "usage_limit"),
        (["usage_limit"], float("nan"), "memory_limit"),
    ],
)
def test_malformed_documents_name_the_place(path: list[Any], value: Any, where: str) -> None:
    with pytest.raises(ProblemError) as caught:
        problem = problem_from_json(broken(path, value))
        assert problem is None, "accepted"
    assert caught.value.where == where


def test_damaged_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress(json.dumps(EXAMPLE).encode())
    for data in (b"", b"{", b"\x1f\x8bxx", whole[:-20], b"\xff\xfe", b"[1]"):
        path = tmp_path / "bad.json"
        path.write_bytes(data)
        with pytest.raises(ProblemError):
            read_problem(path)
        assert main([str(path)]) == 2
        assert capsys.readouterr().out == "[]\n"


def test_command_line_prints_the_choice_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "example.json"
    path.write_text(json.dumps(EXAMPLE))
    assert main([str(path), "--time-limit", "30", "--verbose"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1]) == [0, 0, 2, 1, 0]
    assert "optimal: cost 445" in shown.err
    path.write_text(json.dumps(broken(["usage_limit"], 10)))
    assert main([str(path), "--time-limit", "30", "--verbose"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "[]\n"
    assert "infeasible" in shown.err
