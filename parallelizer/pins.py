"""What the user fixes: paths or globs of arguments -> how they are cut, checked against shapes and mesh."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

from parallelizer.errors import BadPinError, NotDivisibleError, UnknownAxisError, UnknownPathError
from parallelizer.moves import from_spec
from passes.ir import Graph, Sharding


def match_paths(pattern: str, paths: Sequence[str]) -> list[int]:
    """Positions of the paths that a pattern names: a glob over whole paths, or their end ("mlp/up/kernel")."""
    if not any(c in pattern for c in "*?["):
        exact = [i for i, p in enumerate(paths) if p == pattern]
        return exact or [i for i, p in enumerate(paths) if p.endswith("/" + pattern) or p.startswith(pattern + "/")]
    return [i for i, p in enumerate(paths) if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, "*/" + pattern)]


def read_pins(pins: Mapping[str, Any], graph: Graph) -> dict[int, tuple[str, Sharding]]:
    """Input value -> (pattern, sharding). Later patterns override earlier ones.

    Raises UnknownPathError for a pattern without a match, BadPinError for a spec that does not fit the array.
    """
    out: dict[int, tuple[str, Sharding]] = {}
    for pattern, spec in pins.items():
        found = match_paths(pattern, graph.input_paths)
        if not found:
            raise UnknownPathError.of(pattern, graph.input_paths)
        entries = _entries(pattern, spec)
        for i in found:
            value = graph.values[graph.inputs[i]]
            if len(entries) > len(value.shape):
                reason = f"it has {len(entries)} entries"
                raise BadPinError.of(graph.input_paths[i], str(spec), reason, value.shape)
            out[graph.inputs[i]] = (pattern, from_spec(entries, len(value.shape)))
    return out


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
    return list(dict.fromkeys(a for _, s in pins.values() for a in s.axes))


def check_pins(pins: Mapping[int, tuple[str, Sharding]], graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise UnknownAxisError or NotDivisibleError if a pin cannot be on a mesh of these axis sizes."""
    for value, (pattern, sharding) in pins.items():
        path = graph.input_paths[graph.inputs.index(value)]
        for dim, axes in enumerate(sharding.dims):
            for a in axes:
                if a not in sizes:
                    raise UnknownAxisError.of(a, f"{pattern}={sharding}", sizes)
            product = math.prod(sizes[a] for a in axes)
            if graph.values[value].shape[dim] % product:
                raise NotDivisibleError.of(path, dim, graph.values[value].shape[dim], {a: sizes[a] for a in axes})
