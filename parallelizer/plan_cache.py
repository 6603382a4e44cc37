"""What searches found, kept on disk, so that the same question is not searched twice.

One small JSON file per question in the user's cache folder, named by a hash of everything that the answer depends on:
the program, the machine with its measured constants, the meshes, the memory, what is fixed, and the planner itself.
What is read is checked against the program before it is used, so that a stale or broken file costs a search and nothing
else. PARALLELIZER_CACHE is the folder to use instead; empty: nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import cost_model
import passes
from cost_model.mesh import LogicalMesh
from parallelizer.store import write_atomically
from passes.ir import Graph, Sharding, walk
from passes.layout import Found, Looked, search_layout
from passes.recall import Remembered, from_json, recall, remembered, to_json
from passes.rules.registry import registered_for

VARIABLE = "PARALLELIZER_CACHE"

# Files beyond these are deleted, the ones longest unused first.
_MOST_FILES = 256


def cache_folder() -> Path | None:
    """Where answers are kept; None where the user wants none kept."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given) if given else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parallelizer"


def cached_search(
    graph: Graph, digest: str, meshes: Sequence[LogicalMesh], limit_bytes: int, pins: Mapping[int, Sharding],
    time_limit_s: float, apart: bool, versions: Mapping[str, str],
) -> tuple[Found, tuple[Looked, ...]]:  # fmt: skip
    """`passes.layout.search_layout`, or its answer from before. `digest` is the hash of the graph; raises what it
    raises."""
    folder = cache_folder()
    if folder is None or any(registered_for(v.op) for v in walk(graph)):  # the user's rules are code, not data
        return search_layout(graph, meshes, limit_bytes, pins, time_limit_s, apart=apart)
    path = folder / f"{_key(graph, digest, meshes, limit_bytes, pins, apart, versions)}.json"
    known = _read(path)
    again = None if known is None else recall(graph, meshes, limit_bytes, pins, known, apart)
    if again is not None:
        return again
    found, looked = search_layout(graph, meshes, limit_bytes, pins, time_limit_s, apart=apart)
    answer = remembered(found, looked, meshes)
    # An answer that the deadline cut short is searched again: more time may find more.
    if answer is not None and sum(x.search_s for x in looked) < 0.9 * time_limit_s:
        _write(path, json.dumps(to_json(answer)))
    return found, looked


def _key(
    graph: Graph, digest: str, meshes: Sequence[LogicalMesh], limit_bytes: int, pins: Mapping[int, Sharding],
    apart: bool, versions: Mapping[str, str],
) -> str:  # fmt: skip
    # Value ids are counted anew in every process in the same order, and so are the same for the same program.
    donated = sorted(graph.donated), sorted(graph.carried.items())
    fixed = sorted((v, str(s)) for v, s in pins.items())
    asked = (digest, donated, limit_bytes, fixed, apart, [repr(mesh) for mesh in meshes])
    return hashlib.sha256(repr((asked, sorted(versions.items()), _planner())).encode()).hexdigest()[:40]


@cache
def _planner() -> str:
    """A hash of the planner's own sources: another planner may find another answer."""
    found = hashlib.sha256()
    for package in (cost_model, passes):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()


def _read(path: Path) -> Remembered | None:
    try:
        text = path.read_text(encoding="utf-8")
        os.utime(path)
        return from_json(json.loads(text))
    except (OSError, ValueError):
        return None


def _write(path: Path, text: str) -> None:
    """Keep an answer; a folder that cannot be written to keeps none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(path), text)
        files = sorted(path.parent.glob("*.json"), key=lambda f: f.stat().st_mtime)
        for old in files[:-_MOST_FILES]:
            old.unlink(missing_ok=True)
    except OSError:
        return
