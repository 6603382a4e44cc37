"""Microbatches of a traced step: which of its inputs are the batch, and how the loop over them is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

from passes.ir.graph import Graph
from passes.microbatch import microbatch

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


class _Maker:
    """How the operations around and in the loop are run."""

    def binding(self, primitive: str, params: Mapping[str, Any], near: Any) -> Any:
        given = dict(params)
        for key in ("dtype", "new_dtype"):
            if key in given:
                given[key] = jnp.dtype(given[key])
        return replace(near, primitive=_PRIMITIVES[primitive], params=given, context=None)
