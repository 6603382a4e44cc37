"""Every notebook runs from the top in a fresh process, shows what its text promises, and is kept without outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a notebook must say when it runs; every notebook has an entry.
SHOWS = {
    "first_plan": (
        "proven best",
        "everything else free to change",
        "did you mean 'state/params/layers/mlp/up/kernel'",
        "\nloss ",
        "compiled for cpu:8: as planned",
        "pinned by the user",
        "SHARDINGS: ",
        "nothing fits in memory",
        "SHARDINGS: all 64 arguments are cut alike",
    )
}
SECONDS_PER_CELL = 240


def _run(path: Path, folder: Path) -> Any:
    """Execute a copy in `folder`; the notebook itself has to ask for its devices."""
    notebook = nbformat.read(path, as_version=4)
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    env["IPYTHONDIR"] = str(folder)
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env)
    return notebook


def _outputs(notebook: Any) -> list[Any]:
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_and_shows_what_it_says(path: Path, tmp_path: Path) -> None:
    outputs = _outputs(_run(path, tmp_path))
    text = "".join(o.text for o in outputs if o.output_type == "stream")
    pages = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert [words for words in SHOWS[path.stem] if words not in text + "".join(pages)] == []
    assert str(ROOT) not in "".join([text, *pages])
    for line in re.findall(r"^loss (.+)$", text, re.MULTILINE):
        losses = [float(x) for x in line.split()]
        assert len(losses) == 10 and losses[-1] < losses[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert code and all(c.outputs == [] and c.execution_count is None for c in code)
    assert notebook.cells[0].cell_type == "markdown"


def test_every_notebook_has_its_promises() -> None:
    assert sorted(SHOWS) == [p.stem for p in NOTEBOOKS]
