"""What the user fixes: arguments by path or glob, values inside the step by name, dimensions by name -> how they are
cut, checked against shapes and mesh."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from parallelizer.errors import (
    BadPinError,
    ContradictionError,
    NotDivisibleError,
    UnknownAxisError,
    UnknownDimError,
    UnknownPathError,
)
from parallelizer.moves import from_spec
from passes.dim_names import named_dims
from passes.ir import OPEN, Graph, Sharding, walk


def hint(x: Any, name: str) -> Any:
    """Name a value inside a step, so that `pins={name: spec}` can say how it is cut. Returns `x` itself.

    `x` is an array or a pytree of arrays of one rank. The name is that of `jax.ad_checkpoint.checkpoint_name`, so names
    that a checkpoint policy uses can be pinned too. It belongs to the value in the forward pass and where that is
    recomputed, not to its gradient. Inside the body of a loop it is the value of one iteration.
    """
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, name), x)


def named_values(graph: Graph) -> dict[str, list[int]]:
    """The values that have names, loop bodies included."""
    out: dict[str, list[int]] = {}
    for v in walk(graph):
        if v.op.primitive == "name":
            out.setdefault(str(v.op.params["name"]), []).append(v.op.outputs[0])
    return out


def label(graph: Graph, value: int) -> str:
    """What to call a value that can be pinned."""
    if value in graph.inputs:
        return graph.input_paths[graph.inputs.index(value)]
    for v in walk(graph):
        if value in v.op.outputs:
            if v.op.primitive == "name":
                return f"the value named {v.op.params['name']!r}"
            return f"the result of {v.op.primitive}" + (f" at {v.op.source}" if v.op.source else "")
    return f"value {value}"


def match_paths(pattern: str, paths: Sequence[str]) -> list[int]:
    """Positions of the paths that a pattern names: a glob over whole paths, or their end ("mlp/up/kernel")."""
    if not any(c in pattern for c in "*?["):
        exact = [i for i, p in enumerate(paths) if p == pattern]
        return exact or [i for i, p in enumerate(paths) if p.endswith("/" + pattern) or p.startswith(pattern + "/")]
    return [i for i, p in enumerate(paths) if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, "*/" + pattern)]


def read_pins(pins: Mapping[str, Any], graph: Graph) -> dict[int, tuple[str, Sharding]]:
    """Value -> (pattern, sharding). Later patterns override earlier ones; a pattern that no path matches may be the
    name of a value (see `hint`). Under the key "dims" stand named dimensions, as in {"dims": {"batch": "data"}}.

    Raises UnknownPathError for a pattern without a match, BadPinError for a spec that does not fit the array,
    UnknownDimError, and ContradictionError where a dimension is pinned in two ways.
    """
    out: dict[int, tuple[str, Sharding]] = {}
    named = named_values(graph)
    by_dim = pins.get("dims")
    for pattern, spec in pins.items():
        if pattern == "dims" and isinstance(by_dim, Mapping):
            continue
        found = [graph.inputs[i] for i in match_paths(pattern, graph.input_paths)]
        found = found or [v for name, values in named.items() if fnmatch.fnmatchcase(name, pattern) for v in values]
        if not found:
            raise UnknownPathError.of(pattern, (*graph.input_paths, *named))
        entries = _entries(pattern, spec)
        for v in found:
            shape = graph.values[v].shape
            if len(entries) > len(shape):
                raise BadPinError.of(label(graph, v), str(spec), f"it has {len(entries)} entries", shape)
            out[v] = (pattern, from_spec(entries, len(shape)))
    if isinstance(by_dim, Mapping):
        hinted = [v for values in named.values() for v in values]
        out = _with_dims(out, by_dim, graph, (*graph.inputs, *hinted))
    return out


def _with_dims(
    pins: Mapping[int, tuple[str, Sharding]], by_dim: Mapping[str, Any], graph: Graph, values: Sequence[int]
) -> dict[int, tuple[str, Sharding]]:
    """The pins, and those of every dimension of `values` that a name means; the other dimensions stay open."""
    dims, out = named_dims(graph), dict(pins)
    for name, entry in by_dim.items():
        (axes,) = from_spec(_entries(name, (entry,)), 1).dims
        found = dims.called(name)
        if not found:
            raise UnknownDimError.of(name, {d.name: d.size for d in dims.named})
        for v in values:
            for at, chain in enumerate(dims.along(v)):
                meant = next((d.name for d in chain if d in found), None)
                if axes and meant is not None:
                    by = f"dims {name}" + ("" if meant == name else f" ({meant})")
                    pattern, pin = out.get(v, ("", Sharding((OPEN,) * len(graph.values[v].shape))))
                    out[v] = _with_dim(pattern, pin, by, at, axes, label(graph, v))
    return out


def _with_dim(pattern: str, pin: Sharding, by: str, at: int, axes: tuple[str, ...], what: str) -> tuple[str, Sharding]:
    """A pin with one more dimension cut. ContradictionError where it says otherwise or needs one of the axes."""
    asked = Sharding(tuple(axes if d == at else OPEN for d in range(len(pin.dims))))
    if pin.dims[at] == axes:
        return pattern, pin
    if pin.dims[at] != OPEN or set(pin.axes) & set(axes):
        raise ContradictionError.of((what, pattern, pin), (what, by, asked))
    both = Sharding((*pin.dims[:at], axes, *pin.dims[at + 1 :]))
    return (f"{pattern} and {by}" if pattern else by), both


def _entries(pattern: str, spec: Any) -> tuple[Any, ...]:
    entries = tuple(spec) if not isinstance(spec, str) else (spec,)
    axes = [a for e in entries if e is not None for a in (e if isinstance(e, tuple | list) else (e,))]
    if not all(isinstance(a, str) for a in axes):
        raise BadPinError.of(pattern, str(spec), "an entry is not an axis name, a tuple of them, or None")
    twice = sorted({a for a in axes if axes.count(a) > 1})
    if twice:
        raise BadPinError.of(pattern, str(spec), f"axis {twice[0]!r} is used twice")
    return entries


def pin_axes(pins: Mapping[int, tuple[str, Sharding]]) -> list[str]:
    """Axes that the pins use, in order of appearance."""
    return list(dict.fromkeys(a for _, s in pins.values() for a in s.axes if a not in OPEN))


def check_pins(pins: Mapping[int, tuple[str, Sharding]], graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise UnknownAxisError or NotDivisibleError if a pin cannot be on a mesh of these axis sizes."""
    for value, (pattern, sharding) in pins.items():
        path = label(graph, value)
        for dim, axes in enumerate(sharding.dims):
            if axes == OPEN:
                continue
            for a in axes:
                if a not in sizes:
                    raise UnknownAxisError.of(a, f"{pattern}={sharding}", sizes)
            product = math.prod(sizes[a] for a in axes)
            if graph.values[value].shape[dim] % product:
                raise NotDivisibleError.of(path, dim, graph.values[value].shape[dim], {a: sizes[a] for a in axes})
