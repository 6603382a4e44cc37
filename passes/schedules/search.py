"""The shortest schedule that fits in memory: every named one, and what a list scheduler makes of the real durations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from passes.schedules.actions import Kind, Schedule, loop_placement, v_placement
from passes.schedules.bound import lower_bound_s
from passes.schedules.costs import Costs
from passes.schedules.errors import (
    MemoryNeed,
    MicrobatchCountError,
    ScheduleMemoryError,
    StageCountError,
)
from passes.schedules.greedy import Policy, list_schedule
from passes.schedules.simulate import Trace, peak_bytes, simulate
from passes.schedules.table import NAMED, make_schedule


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule that was tried: what the fullest device holds, and how long it takes (None if it does not fit)."""

    name: str
    peak_bytes: float
    makespan_s: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """The best schedule, as it plays; no schedule on this placement of stages can be shorter than `lower_bound_s`."""

    schedule: Schedule
    trace: Trace
    lower_bound_s: float
    candidates: tuple[Candidate, ...]

    @property
    def gap(self) -> float:
        """How much longer than the bound, as a part of the bound."""
        return self.trace.makespan_s / self.lower_bound_s - 1 if self.lower_bound_s else 0.0


def best_schedule(
    costs: Costs,
    microbatches: int,
    devices: int,
    memory_bytes: Sequence[float] | None = None,
    overlap: bool = True,
    names: Sequence[str] | None = None,
) -> Found:
    """The shortest schedule found for these stages on so many devices within `memory_bytes` per device.

    Stages are placed in a line (one per device), in a loop, or, two per device, in a V as well. Without `names` the
    named schedules and those of a list scheduler are tried; with names only these. Which schedules are tried does not
    depend on the memory, so more of it never gives a longer one. Of equally long ones the one that holds least wins.

    Raises StageCountError where devices cannot share the stages evenly, MicrobatchCountError where no schedule of
    `names` takes so many microbatches, and ScheduleMemoryError with the least memory that would do where none fits.
    """
    if costs.stages % devices:
        raise StageCountError(costs.stages, devices)
    limits = list(memory_bytes) if memory_bytes is not None else [float("inf")] * devices
    best: tuple[tuple[float, float, int], Trace] | None = None
    tried: list[Candidate] = []
    smallest: tuple[float, Schedule, tuple[float, ...]] | None = None
    bound = min(lower_bound_s(costs, microbatches, place) for place in _placements(costs.stages, devices))
    for schedule in _candidates(costs, microbatches, devices, names):
        peaks = peak_bytes(schedule, costs)
        lack = max(p - m for p, m in zip(peaks, limits, strict=True))
        if smallest is None or lack < smallest[0]:
            smallest = (lack, schedule, peaks)
        if any(p > m * (1 + 1e-9) for p, m in zip(peaks, limits, strict=True)):
            tried.append(Candidate(schedule.name, max(peaks), None))
            continue
        trace = simulate(schedule, costs, overlap)
        tried.append(Candidate(schedule.name, max(peaks), trace.makespan_s))
        score = (trace.makespan_s, max(peaks), len(tried))
        if best is None or score < best[0]:
            best = (score, trace)
    assert smallest is not None  # there is a candidate, or _candidates has raised
    if best is None:
        raise _too_large(smallest[1], smallest[2], costs, limits)
    return Found(best[1].schedule, best[1], bound, tuple(tried))


def _too_large(
    schedule: Schedule, peaks: Sequence[float], costs: Costs, limits: Sequence[float]
) -> ScheduleMemoryError:
    needs = []
    for device, (peak, limit) in enumerate(zip(peaks, limits, strict=True)):
        if peak > limit * (1 + 1e-9):
            fixed = sum(costs.fixed_bytes[s] for s in schedule.stages_of(device))
            needs.append(MemoryNeed(device, fixed, peak - fixed, limit))
    return ScheduleMemoryError(schedule.name, tuple(needs))


def _candidates(costs: Costs, microbatches: int, devices: int, names: Sequence[str] | None) -> Iterator[Schedule]:
    chunks = costs.stages // devices
    refused: MicrobatchCountError | None = None
    any_made = False
    for name in NAMED if names is None else names:
        if name in NAMED and names is None and NAMED[name].chunks not in ((None, chunks) if chunks > 1 else (1,)):
            continue
        try:
            made = make_schedule(name, devices, microbatches, chunks)
        except MicrobatchCountError as error:
            refused = error
            continue
        any_made = True
        made = replace(made, edges=costs.edges)
        yield made
        if names is None and any(a.kind is Kind.W for a in made.actions[0]):
            yield _weights_placed(made, costs)
    if names is None:
        for place in _placements(costs.stages, devices):
            yield from _listed(costs, microbatches, place)
    elif not any_made and refused is not None:
        raise refused


def _weights_placed(schedule: Schedule, costs: Costs) -> Schedule:
    """The same order of F and B, with every W where these durations leave room, in no more memory."""
    stages, microbatches = schedule.stages, schedule.microbatches
    first = Policy((0.0,) * stages, (0.0,) * stages, (1.0,) * stages, (microbatches,) * stages)
    order = [[a for a in row if a.kind in (Kind.F, Kind.B)] for row in schedule.actions]
    name = f"{schedule.name}, W placed by durations"
    memory = peak_bytes(schedule, costs)
    placed = list_schedule(name, costs, microbatches, schedule.placement, first, memory, order)
    return placed if len(placed) == len(schedule) else schedule


def _placements(stages: int, devices: int) -> list[tuple[int, ...]]:
    places = [loop_placement(devices, stages // devices)]
    if stages == 2 * devices and devices > 1:
        places.append(v_placement(devices))
    return places


def _listed(costs: Costs, microbatches: int, placement: tuple[int, ...]) -> Iterator[Schedule]:
    """What the list scheduler makes, with few or many microbatches held, and with different things first."""
    devices = max(placement) + 1
    own = [[s for s in range(len(placement)) if placement[s] == d] for d in range(devices)]
    one = [sum(costs.activation_bytes[s] for s in row) for row in own]
    fixed = [sum(costs.fixed_bytes[s] for s in row) for row in own]
    for held in _rungs(microbatches, devices):
        for shape in ("level", "falling"):
            counts = [held if shape == "level" else max(1, -(-held * (devices - d) // devices)) for d in range(devices)]
            memory = [fixed[d] + counts[d] * one[d] for d in range(devices)]
            for word, policy in _policies(len(placement), microbatches):
                name = f"list: {word}, {held} held, {shape}"
                yield list_schedule(name, costs, microbatches, placement, policy, memory)


def _rungs(microbatches: int, devices: int) -> list[int]:
    """How many microbatches a device may hold: every small number, wider steps up to twice the devices, and all."""
    most = min(microbatches, 2 * devices)
    rungs = [1]
    while rungs[-1] < most:
        rungs.append(min(most, rungs[-1] + max(1, rungs[-1] // 4)))
    return rungs if most == microbatches else [*rungs, microbatches]


def _policies(stages: int, microbatches: int) -> Iterator[tuple[str, Policy]]:
    """Backwards first. Of the stages of a device the one that is further on its way goes first."""
    forward = tuple(1.0 + (stages - s) / stages for s in range(stages))
    backward = tuple(s / stages for s in range(stages))
    weight = (3.0,) * stages
    caps = (microbatches,) * stages
    yield "B F W", Policy(forward, backward, weight, caps)
    yield "B F, W where it fits", Policy(forward, backward, weight, caps, patient=True)
    yield "BW F", Policy(forward, backward, weight, caps, split=False)
