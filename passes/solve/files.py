"""The contest's JSON format (ASPLOS / EuroSys 2025 intra-operator parallelism), plain or gzip, extended additively.

Fields beyond the contest's, written only when a problem needs them: `nodes.extra_memory` (further items of a node as
`[node, start, end, [usage...]]`), `edges.rows` and `edges.cols` (factored edges: null or the map of strategies).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .problem import Edge, MemoryItem, Problem, ProblemError

_INT64_MAX = 2**63 - 1


def read_problem(path: str | os.PathLike[str]) -> Problem:
    """Read a problem. Raises `ProblemError` naming the field for anything malformed and OSError for unreadable
    files.
    """
    raw = Path(path).read_bytes()
    try:
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        document = json.loads(text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ProblemError(str(path), f"damaged gzip data ({error})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(str(path), f"not JSON ({error})") from error
    return problem_from_json(document)


def problem_from_json(document: Any) -> Problem:
    """Build a problem from the parsed document, with or without its outer `problem` key. Equal matrices are shared."""
    if isinstance(document, dict) and "problem" in document:
        document = document["problem"]
    nodes, edges = _field(document, "problem", "nodes", dict), _field(document, "problem", "edges", dict)
    costs_json = _field(nodes, "nodes", "costs", list)
    intervals = _field(nodes, "nodes", "intervals", list)
    usages = _field(nodes, "nodes", "usages", list)
    if not len(costs_json) == len(intervals) == len(usages):
        raise ProblemError("nodes", f"{len(costs_json)} costs, {len(intervals)} intervals, {len(usages)} usages")
    costs = tuple(_numbers(f"nodes.costs[{i}]", c) for i, c in enumerate(costs_json))
    memory = []
    for i, (interval, usage) in enumerate(zip(intervals, usages, strict=True)):
        if usage is None or (usage == [] and len(costs_json[i])):
            continue  # a node without memory: the contest always gives usages, our writer leaves them out
        start, end = _interval(f"nodes.intervals[{i}]", interval)
        memory.append(_item(f"nodes.usages[{i}]", i, start, end, usage))
    for i, extra in enumerate(nodes.get("extra_memory", [])):
        where = f"nodes.extra_memory[{i}]"
        if not isinstance(extra, list) or len(extra) != 4:
            raise ProblemError(where, "must be [node, start, end, usages]")
        node = _integer(where, extra[0])
        memory.append(_item(where, node, *_interval(where, extra[1:3]), extra[3]))
    limit = document.get("usage_limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float))):
        raise ProblemError("usage_limit", f"must be a number, got {limit!r}")
    return Problem(costs, _edges_from_json(edges, costs), tuple(memory), limit)


def _edges_from_json(edges: dict[str, Any], costs: tuple[np.ndarray, ...]) -> tuple[Edge, ...]:
    pairs, flat = _field(edges, "edges", "nodes", list), _field(edges, "edges", "costs", list)
    rows_json, cols_json = edges.get("rows", [None] * len(pairs)), edges.get("cols", [None] * len(pairs))
    if not len(pairs) == len(flat) == len(rows_json) == len(cols_json):
        raise ProblemError(
            "edges", f"{len(pairs)} nodes, {len(flat)} costs, {len(rows_json)} rows, {len(cols_json)} cols"
        )
    shared: dict[tuple[int, int, str, bytes], np.ndarray] = {}
    result = []
    for i, pair in enumerate(pairs):
        where = f"edges.nodes[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ProblemError(where, "must be two nodes (hyperedges are not supported)")
        u, v = _integer(where, pair[0]), _integer(where, pair[1])
        for node in (u, v):
            if not 0 <= node < len(costs):
                raise ProblemError(where, f"node {node} does not exist, there are {len(costs)}")
        maps = tuple(_map(f"edges.rows/cols[{i}]", t) for t in (rows_json[i], cols_json[i]))
        shape = tuple(
            len(costs[node]) if table is None else int(table.max(initial=-1)) + 1
            for node, table in zip((u, v), maps, strict=True)
        )
        values = _numbers(f"edges.costs[{i}]", flat[i])
        if values.size != shape[0] * shape[1]:
            raise ProblemError(f"edges.costs[{i}]", f"{values.size} costs for {shape[0]} x {shape[1]} strategies")
        key = (shape[0], shape[1], str(values.dtype.kind), values.tobytes())
        matrix = shared.setdefault(key, values.reshape(shape))
        result.append(Edge(u, v, matrix, *maps))
    return tuple(result)


def write_problem(problem: Problem, path: str | os.PathLike[str], name: str = "problem") -> None:
    """Write `problem` to `path` (gzip if it ends in .gz) in one atomic step; `read_problem` gives it back."""
    intervals: list[list[int]] = [[0, 0] for _ in problem.node_costs]
    usages: list[list[Any]] = [[] for _ in problem.node_costs]
    extra: list[Any] = []
    for item in problem.memory:
        if usages[item.node]:
            extra.append([item.node, item.start, item.end, item.usage.tolist()])
        else:
            intervals[item.node], usages[item.node] = [item.start, item.end], item.usage.tolist()
    nodes = {"intervals": intervals, "costs": [c.tolist() for c in problem.node_costs], "usages": usages}
    edges: dict[str, Any] = {"nodes": [[e.u, e.v] for e in problem.edges]}
    # Cutting to the rows in use keeps the shape derivable from the maps.
    edges["costs"] = [
        e.matrix[: _used(e.row_of, e.matrix.shape[0]), : _used(e.col_of, e.matrix.shape[1])].ravel().tolist()
        for e in problem.edges
    ]
    if any(e.row_of is not None or e.col_of is not None for e in problem.edges):
        edges["rows"] = [None if e.row_of is None else e.row_of.tolist() for e in problem.edges]
        edges["cols"] = [None if e.col_of is None else e.col_of.tolist() for e in problem.edges]
    body: dict[str, Any] = {"name": name, "nodes": nodes, "edges": edges, "usage_limit": problem.memory_limit}
    if extra:
        nodes["extra_memory"] = extra
    data = json.dumps({"problem": body}).encode()
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)
    os.replace(partial, target)


def _used(table: np.ndarray | None, size: int) -> int:
    return size if table is None else int(table.max(initial=-1)) + 1


def _field(parent: Any, where: str, name: str, kind: type) -> Any:
    if not isinstance(parent, dict) or name not in parent:
        raise ProblemError(where, f'the field "{name}" is missing')
    value = parent[name]
    if not isinstance(value, kind):
        raise ProblemError(f"{where}.{name}", f"must be a JSON {'object' if kind is dict else 'array'}")
    return value


def _integer(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProblemError(where, f"must be an integer, got {value!r}")
    return value


def _interval(where: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ProblemError(where, "must be [start, end]")
    return _integer(where, value[0]), _integer(where, value[1])


def _numbers(where: str, values: Any) -> np.ndarray:
    """int64 if all are integers (beyond its range: impossible anyway, so capped), else float64."""
    if not isinstance(values, list):
        raise ProblemError(where, "must be an array of numbers")
    kinds = set(map(type, values))
    if not kinds <= {int, float}:
        raise ProblemError(where, "must hold numbers only")
    if float in kinds:
        return np.array([_as_float(v) for v in values])
    if values and (max(values) > _INT64_MAX or min(values) < -_INT64_MAX):
        if min(values) < -_INT64_MAX:
            raise ProblemError(where, "integers below -2^63 are not supported")
        values = [min(v, _INT64_MAX) for v in values]
    return np.array(values, dtype=np.int64)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _item(where: str, node: int, start: int, end: int, usage: Any) -> MemoryItem:
    values = _numbers(where, usage)
    if isinstance(usage, list) and values.dtype.kind == "i" and usage and max(usage) > _INT64_MAX:
        raise ProblemError(where, "usages of 2^63 bytes and more are not supported")
    return MemoryItem(node, start, end, values)


def _map(where: str, table: Any) -> np.ndarray | None:
    if table is None:
        return None
    values = _numbers(where, table)
    if values.dtype.kind != "i":
        raise ProblemError(where, "must hold integers")
    return values
