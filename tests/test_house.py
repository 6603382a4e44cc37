"""The rules of the house that a machine can check: floors, sizes of files, what may be imported and written where."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("cost_model", "passes", "parallelizer")
KEPT = (
    *FLOORS,
    "tests",
    "docs",
    "benchmarks",
    "notebooks",
    ".ci",
    "Makefile",
    "pyproject.toml",
    "README.md",
    ".gitignore",
)
MODULES = sorted(p.relative_to(ROOT).as_posix() for floor in FLOORS for p in (ROOT / floor).rglob("*.py"))


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _kept_files() -> Iterator[Path]:
    for name in KEPT:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
                yield path


def _imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported, names taken `from` a package included."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


@pytest.mark.smoke
@pytest.mark.parametrize("path", MODULES)
def test_imports_point_downward(path: str) -> None:
    floor = FLOORS.index(path.split("/")[0])
    upward = [
        f"line {line}: {name}"
        for line, name in _imports(path, ast.parse(_text(path)))
        if name.split(".")[0] in FLOORS[floor + 1 :]
    ]
    assert upward == []


@pytest.mark.parametrize("path", [p for p in MODULES if p.startswith("passes/solve/")])
def test_the_solver_sees_arrays_only(path: str) -> None:
    imported = list(_imports(path, ast.parse(_text(path))))
    ours = [
        f"line {line}: {name}"
        for line, name in imported
        if name.split(".")[0] in FLOORS and not name.startswith("passes.solve")
    ]
    jax = [
        f"line {line}: {name}" for line, name in imported if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax")
    ]
    assert ours + jax == []


@pytest.mark.parametrize("path", [p for p in MODULES if p != "parallelizer/compat.py"])
def test_private_jax_is_touched_in_compat_alone(path: str) -> None:
    tree = ast.parse(_text(path))
    private = [
        f"line {line}: {name}" for line, name in _imports(path, tree) if name.startswith(("jax._src", "jaxlib._"))
    ]
    private += [f"line {n.lineno}: ._src" for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "_src"]
    assert private == []


@pytest.mark.parametrize("path", MODULES)
def test_files_and_functions_stay_readable(path: str) -> None:
    text = _text(path)
    lines = text.count("\n")
    assert lines <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{n.name}: {n.end_lineno - n.lineno} lines" for n in functions if (n.end_lineno or 0) - n.lineno > 80]
    assert long == []


@pytest.mark.parametrize("path", MODULES)
def test_every_module_says_what_it_is(path: str) -> None:
    assert path.endswith("__init__.py") or ast.get_docstring(ast.parse(_text(path)))


def test_every_package_is_typed_and_importable() -> None:
    for floor in FLOORS:
        assert (ROOT / floor / "py.typed").exists()
    folders = {(ROOT / p).parent for p in MODULES}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_third_party_imports_are_declared_and_declared_ones_are_used() -> None:
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    needed = {re.split(r"[<>=\[! ]", d)[0] for d in project["dependencies"]}
    optional = {re.split(r"[<>=\[! ]", d)[0] for d in extras["test"]}
    imported = {name.split(".")[0] for path in MODULES for _, name in _imports(path, ast.parse(_text(path)))}
    third_party = imported - set(sys.stdlib_module_names) - set(FLOORS) - {"jaxlib"}
    assert third_party - needed - optional == set(), "imported and not declared"
    assert needed - third_party == set(), "declared and not imported"


def test_lower_bounds_are_the_versions_that_ci_installs() -> None:
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    bounds = project["dependencies"]
    bounds += [d for d in project["optional-dependencies"]["test"] if d.startswith("flax")]
    lowest = dict(re.findall(r"^(\w+)==([\d.]+)$", _text(".ci/lowest.txt"), flags=re.MULTILINE))
    for bound in bounds:
        name, low = re.findall(r"^(\w+)>=([\d.]+),<", bound)[0]
        assert f"{lowest[name]}.".startswith(f"{low}."), f"{bound}, and CI installs {lowest[name]}"


# The patterns are put together here so that this file does not match itself.
MACHINE = re.compile(
    r"(^|[^A-Za-z0-9_.])/(work|tmp|root|home|Users)"
    + r"/[A-Za-z0-9_.]|[.]lib"
    + r"rary/|[.][.]/sha"
    + r"red|python"
    + r"hosted|pypi[.]"
    + r"org"
)
UNFINISHED = re.compile(
    r"\b(TO" + r"DO|FIX" + r"ME)\b|pytest[.](mark[.])?(sk" + r"ip|xf" + r"ail)|importors" + r"kip|time[.]sl" + r"eep\("
)


def test_nothing_kept_names_a_machine() -> None:
    found = []
    for path in _kept_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [
            f"{path.relative_to(ROOT)}:{i}: {m.group()}"
            for i, row in enumerate(text.splitlines(), 1)
            if (m := MACHINE.search(row))
        ]
    assert found == []


def test_nothing_is_left_unfinished_or_skipped() -> None:
    found = []
    for path in (p for p in _kept_files() if p.suffix == ".py"):
        rows = path.read_text(encoding="utf-8").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{i}: {m.group()}"
            for i, row in enumerate(rows, 1)
            if (m := UNFINISHED.search(row))
        ]
    assert found == []


def test_layout_lists_every_module_once() -> None:
    listed = re.findall(r"^\| `([^`]+)` \| \S", _text("docs/layout.md"), flags=re.MULTILINE)
    there = {p for p in MODULES if not p.endswith("__init__.py")}
    assert sorted(set(listed) - there) == [], "listed in docs/layout.md and absent"
    assert sorted(there - set(listed)) == [], "absent from docs/layout.md"
    assert len(listed) == len(set(listed))


def test_checks_of_this_file_would_notice() -> None:
    upward = ast.parse("from ..parallelizer import api\nfrom . import b\nimport passes.ir.graph")
    names = [name for _, name in _imports("passes/ir/text.py", upward)]
    assert names == ["passes.parallelizer.api", "passes.ir.b", "passes.ir.graph"]
    assert MACHINE.search("see /wo" + "rk/x") and not MACHINE.search("a/work/x and https://host/tmp")
    assert UNFINISHED.search("# TO" + "DO later") and UNFINISHED.search("@pytest.mark.sk" + "ip")
