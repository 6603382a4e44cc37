"""Microbatches of a traced step: which of its inputs are the batch, and how the loop over them is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

from parallelizer.errors import BatchInputsError, MicrobatchCountError, MicrobatchRefusedError, UnknownPathError
from passes.batchwise import MicrobatchError
from passes.ir.graph import Graph
from passes.microbatch import MicrobatchDivisionError, microbatch

_PRIMITIVES: Mapping[str, Any] = {
    "add": primitives.add_p,
    "broadcast_in_dim": primitives.broadcast_in_dim_p,
    "convert_element_type": primitives.convert_element_type_p,
    "dynamic_slice": primitives.dynamic_slice_p,
    "iota": primitives.iota_p,
    "max": primitives.max_p,
    "min": primitives.min_p,
    "reshape": primitives.reshape_p,
    "scan": primitives.scan_p,
    "transpose": primitives.transpose_p,
}


def in_microbatches(graph: Graph, batch: Mapping[int, int], count: int, recompute: bool = False) -> Graph:
    """The graph with its batch taken in `count` parts, one after the other; see `passes/microbatch.py`."""
    return microbatch(graph, batch, count, _Maker(), recompute)


def microbatched(graph: Graph, count: int, batch: Sequence[str] = (), recompute: bool = False) -> Graph:
    """The graph of a step with its batch taken in `count` parts.

    `batch` are paths or patterns of the inputs whose first dimension counts examples; by default all inputs that the
    step does not hand on. Raises MicrobatchCountError, MicrobatchRefusedError, BatchInputsError, and UnknownPathError
    for a pattern that no input has.
    """
    inputs = batch_inputs(graph, batch)
    if count < 1:
        value = next(iter(inputs))
        path = graph.input_paths[graph.inputs.index(value)]
        raise MicrobatchCountError.of(path, graph.values[value].shape[0], count, (1,))
    try:
        return in_microbatches(graph, inputs, count, recompute)
    except MicrobatchDivisionError as error:
        raise MicrobatchCountError.of(error.path, error.size, error.count, error.possible) from error
    except MicrobatchError as error:
        raise MicrobatchRefusedError.of(error.reason, str(error.source or ""), error.primitive) from error


def asked_microbatches(graph: Graph, asked: int | Mapping[str, int]) -> Graph:
    """The graph as `microbatches=` asks for it: a count, or {pattern of batch inputs: count}.

    Raises as `microbatched`, and MicrobatchCountError where two patterns ask for different counts.
    """
    if isinstance(asked, int):
        return graph if asked == 1 else microbatched(graph, asked)
    counts = sorted(set(asked.values()))
    if len(counts) != 1:
        inputs = batch_inputs(graph, tuple(asked))
        path = graph.input_paths[graph.inputs.index(next(iter(inputs)))]
        size = graph.values[next(iter(inputs))].shape[0]
        raise MicrobatchCountError.of(
            path, size, counts[-1] if counts else 0, tuple(n for n in counts if size % n == 0)
        )
    return graph if counts == [1] else microbatched(graph, counts[0], tuple(asked))


def batch_inputs(graph: Graph, patterns: Sequence[str] = ()) -> dict[int, int]:
    """The inputs that are the batch, with the dimension that counts examples (their first)."""
    arrays = {path: v for path, v in zip(graph.input_paths, graph.inputs, strict=True) if graph.values[v].shape}
    chosen = dict.fromkeys(p for pattern in patterns for p in arrays if _matches(p, pattern))
    for pattern in patterns:
        if not any(_matches(p, pattern) for p in arrays):
            raise UnknownPathError.of(pattern, list(arrays))
    if not patterns:
        state = {graph.inputs[i] for i in graph.carried.values()}
        chosen = dict.fromkeys(p for p, v in arrays.items() if v not in state)
    shapes = {p: graph.values[arrays[p]].shape for p in chosen}
    if len({s[0] for s in shapes.values()}) != 1:
        raise BatchInputsError.of(shapes)
    return {arrays[p]: 0 for p in chosen}


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or path.startswith(pattern.rstrip("/") + "/")


class _Maker:
    """How the operations around and in the loop are run."""

    def binding(self, primitive: str, params: Mapping[str, Any], near: Any) -> Any:
        given = dict(params)
        for key in ("dtype", "new_dtype"):
            if key in given:
                given[key] = jnp.dtype(given[key])
        return replace(near, primitive=_PRIMITIVES[primitive], params=given, context=None)
