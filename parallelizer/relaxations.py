"""What would make a program fit that does not: each way is searched again before it is offered, so that it is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cost_model.mesh import LogicalMesh
from parallelizer.errors import DoesNotFitError, ParallelizerError
from parallelizer.microbatches import microbatched
from passes.ir import Graph, Sharding
from passes.layout import MemoryError_, search_layout
from passes.pinning import LayoutError

# Microbatches that are tried.
_PARTS = (2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Asked:
    """A search: what was asked, and what may be given up. `free_meshes` are the meshes without the user's mesh, `apart`
    as in `search_layout`."""

    graph: Graph
    meshes: Sequence[LogicalMesh]
    free_meshes: Sequence[LogicalMesh]
    limit_bytes: int
    pins: Mapping[int, Sharding]
    time_limit_s: float
    apart: bool = False
    in_parts: bool = False  # the batch is taken in microbatches already


def does_not_fit(error: MemoryError_, asked: Asked) -> DoesNotFitError:
    """The error with its arithmetic. Every relaxation names the bytes per device of a plan that was found with it."""
    needed, relaxations = enough(error.needed_bytes, asked)
    for phrase, changed in _changes(asked, needed - dict(error.least.by_kind).get("results", 0)):
        peak = peak_of(changed)
        if peak is not None and peak <= asked.limit_bytes:
            relaxations.append((phrase, peak))
    relaxations += _in_parts(error, asked)
    dominated = [*error.least.by_argument[:4], *(row for row in error.least.by_kind if row[0] != "arguments")]
    return DoesNotFitError.of(
        needed,
        asked.limit_bytes,
        sorted(dominated, key=lambda row: -row[1]),
        sorted(relaxations, key=lambda row: row[1]),
        _advice(error),
    )


def enough(needed_bytes: int, asked: Asked) -> tuple[int, list[tuple[str, int]]]:
    """The least memory that was asked for and found to be enough, and that as a relaxation.

    The layout of the least peak is known, but the search is free to prefer another one within the limit, whose moved
    operands its linear memory leaves out; so what is named has been tried, and raised by 5 % where it was not enough.
    """
    for _ in range(8):
        peak = peak_of(replace(asked, limit_bytes=needed_bytes))
        if peak is not None and peak <= needed_bytes:
            return needed_bytes, [(f"memory_bytes={needed_bytes}", peak)]
        needed_bytes = max(needed_bytes + needed_bytes // 20, peak or 0)
    return needed_bytes, []


def peak_of(asked: Asked) -> int | None:
    """Bytes per device of the plan found, or that the leanest would need where nothing fits; None if neither."""
    try:
        best, _ = search_layout(
            asked.graph, asked.meshes, asked.limit_bytes, asked.pins, asked.time_limit_s, apart=asked.apart
        )
    except MemoryError_ as error:
        return error.needed_bytes
    except LayoutError:
        return None
    return best.footprint.peak_bytes


def _changes(asked: Asked, donating_bytes: int) -> list[tuple[str, Asked]]:
    """What the user could give up or add, one at a time; donating saves the results, which leave `donating_bytes`."""
    graph = asked.graph
    out = []
    state = frozenset(graph.carried.values())
    if state - graph.donated and donating_bytes <= asked.limit_bytes:
        out.append(("donate the state (donate_argnums)", replace(asked, graph=replace(graph, donated=state))))
    if asked.pins:
        out.append(("leave the pins out", replace(asked, pins={})))
    if list(asked.free_meshes) != list(asked.meshes):
        out.append(("leave mesh out", replace(asked, meshes=asked.free_meshes)))
    return out


def _in_parts(error: MemoryError_, asked: Asked) -> list[tuple[str, int]]:
    """The fewest microbatches with which a plan fits, where activations matter and the step allows it."""
    activations = dict(error.least.by_kind).get("activations", 0)
    if asked.in_parts or activations < error.needed_bytes // 4 or set(asked.pins) - set(asked.graph.inputs):
        return []
    for count in _PARTS:
        try:
            parted = replace(asked, graph=microbatched(asked.graph, count))
        except ParallelizerError:
            return []  # the step does not allow it, or the batch does not divide
        peak = peak_of(parted)
        if peak is not None and peak <= asked.limit_bytes:
            return [(f"microbatches={count}", peak)]
    return []


def _advice(error: MemoryError_) -> tuple[str, ...]:
    """Changes to the step itself, which cannot be tried from here."""
    activations = dict(error.least.by_kind).get("activations", 0)
    if activations < error.needed_bytes // 4:
        return ("more devices, or a smaller model",)
    share = round(100 * activations / error.needed_bytes)
    return (
        f"a smaller batch: activations are {share} % of what is needed",
        "jax.checkpoint around each layer, which keeps fewer activations",
        "more devices",
    )
