"""The command line on a real plan: plan, save, explain, diff, audit, and the problem that was solved."""

import json

import pytest

from parallelizer.cli import main
from parallelizer.store import load_plan
from passes.solve import evaluate, read_problem, solve

pytestmark = pytest.mark.smoke


@pytest.fixture
def plan_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = ["--save", "plan.json", "--code", "step.py", "--html", "plan.html", "--dump-problem", "problem.json.gz"]
    code = main(["plan", "mlp", "--topology", "cpu:4", "--batch", "256", "--mesh", "x=4", *files, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0 and answer["ok"] and answer["written"] == files[1::2]
    return tmp_path / "plan.json", answer["plan"]


def test_explain_and_diff_read_what_plan_wrote(plan_file, capsys):
    path, _ = plan_file
    assert main(["explain", str(path), "params/layers_0/kernel"]) == 0
    assert "state/params/layers_0/kernel" in capsys.readouterr().out
    assert main(["diff", str(path), str(path)]) == 0
    assert main(["explain", str(path), "params/layer_0/kernel"]) == 2
    assert "params/layers_0/kernel" in capsys.readouterr().err


def test_the_dumped_problem_has_the_plans_price(plan_file):
    path, _ = plan_file
    problem = read_problem(path.with_name("problem.json.gz"))
    plan = load_plan(str(path))
    solution = solve(problem, time_limit_s=20)
    assert solution.cost == pytest.approx(plan.objective_s, rel=1e-6)
    assert evaluate(problem, solution.choice).feasible


def test_audit_says_whether_the_program_is_as_planned(capsys):
    assert main(["audit", "mlp", "--topology", "cpu:4", "--batch", "256", "--mesh", "x=4"]) == 0
    assert "all_reduce" in capsys.readouterr().out
