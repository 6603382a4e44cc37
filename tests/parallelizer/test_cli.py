"""The command line: what it reads, what it hands to the API, what it prints, and its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jax.sharding import PartitionSpec as P

import parallelizer as pz
from parallelizer import cli, doctor, targets
from parallelizer.errors import UnknownNameError, UnknownTopologyError

STEP = """
import jax
import jax.numpy as jnp

def step(w, x):
    loss, g = jax.value_and_grad(lambda w: jnp.mean((x @ w) ** 2))(w)
    return w - 0.1 * g, loss

def shapes():
    return jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((256, 64), "float32")

as_tuple = shapes()
not_a_tuple = 3
"""


class FakePlan:
    """Answers like a Plan; `calls` records what was asked of it."""

    def __init__(self, audit_ok: bool = True) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.audit_ok = audit_ok

    def summary(self) -> str:
        return "the summary"

    def to_dict(self) -> dict[str, Any]:
        return {"mesh": {"x": 8}}

    def save(self, path: str) -> None:
        self.calls.append(("save", path))

    def to_code(self, path: str) -> None:
        self.calls.append(("code", path))

    def to_html(self, path: str) -> None:
        self.calls.append(("html", path))

    def explain(self, path: str) -> str:
        return f"why {path}"

    def diff(self, other: Any) -> str:
        return "no difference"

    def audit(self) -> Any:
        ok = self.audit_ok
        return type(
            "Audit", (), {"ok": ok, "to_dict": lambda self: {"rows": []}, "__str__": lambda self: "the audit"}
        )()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's module, importable as on the command line and forgotten afterwards."""
    (tmp_path / "my_steps.py").write_text(STEP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_steps", raising=False)
    return tmp_path


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replaces `pz.plan` and `pz.load_plan`; records the call."""
    seen = SimpleNamespace(args=None, kwargs=None, plan=FakePlan())

    def plan(*args: Any, **kwargs: Any) -> FakePlan:
        seen.args, seen.kwargs = args, kwargs
        return seen.plan

    monkeypatch.setattr(pz, "plan", plan, raising=False)
    monkeypatch.setattr(pz, "load_plan", lambda path: seen.plan, raising=False)
    return seen


def test_mesh_pins_and_sizes_are_read() -> None:
    assert cli._mesh("x=8, y=64") == {"x": 8, "y": 64}
    assert [cli._bytes(t) for t in ("80e9", "80GB", "1.5g", "123")] == [
        80_000_000_000,
        80_000_000_000,
        1_500_000_000,
        123,
    ]
    assert cli._pin("params/*/kernel=x*y,-,z") == ("params/*/kernel", P(("x", "y"), None, "z"))
    assert cli._pin("w=None,x") == ("w", P(None, "x"))


@pytest.mark.parametrize(
    ("read", "text"),
    [(cli._mesh, t) for t in ("x", "x=0", "x=2,x=4", "2=x", "")]
    + [(cli._bytes, t) for t in ("much", "0", "1.2.3", "")]
    + [(cli._pin, t) for t in ("w", "=x", "w=", "w=x,", "w=1")]
    + [(cli._axes_by_dim, t) for t in ("", "batch", "batch=", "batch=1", "batch=x*", "batch=x,batch=y")],
)
def test_malformed_options_say_how_to_write_them(read: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write"):
        read(text)


def test_layouts_are_names_or_rules_by_dimension(planned: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._layout("fsdp_tensor") == "fsdp_tensor"
    assert cli._layout("batch=data, mlp=x * y,embed=-") == {"batch": "data", "mlp": ("x", "y"), "embed": None}
    rest = ["--dims", "batch=x", "--layout", "batch=data,heads=tensor", "--pin", "batch=x"]
    assert cli.main(["plan", "gpt-toy", "--topology", "cpu:8", *rest]) == 0
    assert planned.kwargs["layout"] == {"batch": "data", "heads": "tensor"}
    assert planned.kwargs["pins"] == {"batch": P("x"), "dims": {"batch": "x"}}
    assert capsys.readouterr().out.splitlines() == ["the summary"]


def test_plan_hands_everything_to_the_api(planned: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "plan gpt3-175b --topology v5p:8x8x8 --batch 512 --sequence 1024 --mesh x=8,y=64 --memory-bytes 80e9 --strict"
    )
    files = ["--save", "p.json", "--code", "p.py", "--html", "p.html", "--pin", "batch=x", "--pin", "state/*=-,y"]
    assert cli.main([*command.split(), *files]) == 0
    function, state, batch = planned.args
    assert callable(function) and {leaf.shape[0] for leaf in _leaves(batch)} == {512}
    assert max(leaf.size for leaf in _leaves(state)) > 10**9
    assert planned.kwargs == {
        "topology": "v5p:8x8x8",
        "mesh": {"x": 8, "y": 64},
        "memory_bytes": 80_000_000_000,
        "pins": {"batch": P("x"), "state/*": P(None, "y")},
        "strict": True,
        "mode": "search",
        "microbatches": 1,
        "layout": None,
        "donate_argnums": (0,),
    }
    assert planned.plan.calls == [("save", "p.json"), ("code", "p.py"), ("html", "p.html")]
    assert capsys.readouterr().out.splitlines() == ["the summary", "wrote p.json", "wrote p.py", "wrote p.html"]


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


@pytest.mark.parametrize("shapes", ["shapes", "as_tuple"])
def test_a_users_own_step(here: Path, planned: SimpleNamespace, shapes: str) -> None:
    assert cli.main(f"plan my_steps:step --shapes my_steps:{shapes} --topology cpu:8".split()) == 0
    function, w, x = planned.args
    assert function.__name__ == "step" and (w.shape, x.shape) == ((64, 64), (256, 64))
    assert planned.kwargs["pins"] is None and planned.kwargs["donate_argnums"] == ()


def test_explain_diff_and_audit_print_what_the_plan_says(
    planned: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", "p.json", "state/w"]) == 0
    assert cli.main(["diff", "a.json", "b.json"]) == 0
    assert cli.main(["audit", "mlp", "--topology", "v5e:2x4"]) == 0
    assert capsys.readouterr().out.splitlines() == ["why state/w", "no difference", "the audit"]


def test_an_audit_that_differs_exits_with_one(planned: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    planned.plan = FakePlan(audit_ok=False)
    assert cli.main(["audit", "mlp", "--topology", "v5e:2x4", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"ok": False, "rows": []}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("plan gtp2-124m --topology cpu:8", ["unknown model 'gtp2-124m'", "did you mean 'gpt2-124m'"]),
        ("plan my_step:step --shapes a:b --topology cpu:8", ["unknown module 'my_step'", "did you mean 'my_steps'"]),
        ("plan my_steps:stop --shapes a:b --topology cpu:8", ["name in my_steps 'stop'", "did you mean 'step'"]),
        ("plan my_steps:step --topology cpu:8", ["--shapes"]),
        ("plan my_steps:step --shapes my_steps:not_a_tuple --topology cpu:8", ["gives a int", "tuple"]),
        ("plan my_steps:not_a_tuple --shapes my_steps:shapes --topology cpu:8", ["not a function"]),
    ],
)
def test_wrong_names_exit_with_two_and_no_traceback(
    here: Path, planned: SimpleNamespace, capsys: pytest.CaptureFixture[str], arguments: str, parts: list[str]
) -> None:
    assert cli.main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert [p for p in parts if p not in printed.err] == [], printed.err
    assert printed.out == "" and printed.err.startswith("error: ") and "Traceback" not in printed.err


def test_an_error_of_the_api_is_json_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*args: Any, **kwargs: Any) -> None:
        raise UnknownTopologyError.of("v5z:2x2", ["v5e:2x2"])

    monkeypatch.setattr(pz, "plan", plan, raising=False)
    assert cli.main(["plan", "mlp", "--topology", "v5z:2x2", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and answer["error"] == "UnknownTopologyError" and "'v5z:2x2'" in answer["what"]


def test_an_error_inside_the_users_module_is_not_hidden(here: Path) -> None:
    (here / "broken_steps.py").write_text("import a_package_that_is_not_there", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        targets.resolve("broken_steps:step", "broken_steps:shapes")


def test_a_missing_optional_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith("parallelizer.zoo") or m.split(".")[0] == "optax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(pz, "zoo", raising=False)
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(UnknownNameError, match="pip install optax"):
        targets.resolve("gpt-toy")


@pytest.mark.parametrize(("before", "count"), [("", "5"), ("--xla_force_host_platform_device_count=8", "8")])
def test_cpu_topologies_get_at_least_their_devices_in_a_process_of_their_own(before: str, count: str) -> None:
    code = "from parallelizer import cli; cli._use_cpu_devices(5); import jax; print(len(jax.devices()))"
    env = {**os.environ, "XLA_FLAGS": before}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == count


@pytest.mark.smoke
def test_doctor_reports_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["versions"]["jax"] and report["devices"]["platform"] == "cpu"
    assert {c["platform"]: c["usable"] for c in report["compilers"]}["tpu"] is True
    assert any(name.startswith("v5e") for name in report["topologies"])


def test_doctor_says_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "0.10.2" if name in ("jax", "numpy", "rich") else None)
    monkeypatch.setattr(doctor, "_DEVICES", "raise SystemExit('libtpu is of another version')")
    monkeypatch.setattr(
        doctor, "_COMPILE", doctor._COMPILE.replace("try:", "import sys; sys.modules['libtpu'] = None\ntry:")
    )
    report = doctor.examine(["cpu:N"])
    text = report.to_text()
    assert report.problems == (
        "highspy is not installed",
        "jaxlib is not installed",
        "no devices: libtpu is of another version",
    )
    assert not report.to_dict()["ok"] and not report.compilers[0].usable
    assert "highspy      not installed" in text and "    cpu:N" in text and "problem: highspy is not installed" in text
    assert "no; libtpu is not installed" in text and "pip install 'parallelizer[tpu]'" in text


def test_doctor_does_not_wait_for_ever() -> None:
    process = doctor._ask("import threading; threading.Event().wait()")
    assert doctor._answer(process, 0.2) == (None, "no answer within 0.2 s")
