"""The graph that is planned and run: the traced one without what nobody reads or what loops repeat in vain, and with
spans computed on their bases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from passes.hoist import hoist
from passes.ir.graph import Graph
from passes.normalize import drop_dead
from passes.widen import widen


def prepared(graph: Graph) -> Graph:
    """What passes read of a traced graph. It computes the same results, equal bit by bit but for the order in which
    sums over spans are taken."""
    return widen(hoist(drop_dead(graph)), _Maker())


@dataclass(frozen=True, slots=True)
class Composed:
    """An operation that is several of JAX's: what `compat.bind` needs of a primitive."""

    name: str
    run: Callable[..., Any]
    multiple_results: bool = False

    def get_bind_params(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return params

    def bind(self, *args: Any, **params: Any) -> Any:
        return self.run(*args, **params)


def _roll(x: Any, *, by: int, dimension: int) -> Any:
    """The array with its last `by` elements along `dimension` coming first."""
    n = x.shape[dimension]
    parts = [lax.slice_in_dim(x, n - by, n, axis=dimension), lax.slice_in_dim(x, 0, n - by, axis=dimension)]
    return lax.concatenate(parts, dimension)


def _within(x: Any, other: Any, *, first: int, last: int, dimension: int) -> Any:
    """`x` from `first` up to `last` along `dimension`, `other` (an array of this shape or one number) elsewhere."""
    at = lax.broadcasted_iota(jnp.int32, x.shape, dimension)
    inside = (at >= first) & (at < last)
    return lax.select(inside, x, jnp.broadcast_to(jnp.asarray(other, x.dtype), x.shape))


_PRIMITIVES: Mapping[str, Any] = {
    "roll": Composed("roll", _roll),
    "within": Composed("within", _within),
    "broadcast_in_dim": primitives.broadcast_in_dim_p,
    "slice": primitives.slice_p,
}


class _Maker:
    """How the operations that widening adds are run."""

    def binding(self, primitive: str, params: Mapping[str, Any], near: Any) -> Any:
        return replace(near, primitive=_PRIMITIVES[primitive], params=dict(params), context=None)
