"""Fills bubbles with work beside the pipeline: frozen encoders of a diffusion model, a frozen text tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from passes.schedules.actions import Action, Job, Kind, Schedule
from passes.schedules.costs import Costs
from passes.schedules.simulate import Trace, simulate


def fill_bubbles(schedule: Schedule, costs: Costs, jobs: Sequence[Job], overlap: bool = True) -> Trace:
    """The schedule with every job added, as it plays.

    Each job goes, in the order given, into the bubble where it ends first, on a device that may do it, and moves
    nothing else. One that no bubble can take stands at the end of the device that is done with it first; one that
    feeds the pipeline stands where it delays the step least. Raises ValueError for a job that waits for a later one,
    for devices that do not exist, or for a forward that does not exist.
    """
    _check(schedule, jobs)
    schedule = replace(schedule, jobs=(*schedule.jobs, *jobs))
    trace = simulate(replace(schedule, jobs=schedule.jobs[: -len(jobs)] if jobs else schedule.jobs), costs, overlap)
    rows = [list(row) for row in trace.schedule.actions]
    ends: dict[int, float] = {s.action.other: s.end_s for r in trace.spans for s in r if s.action.kind is Kind.JOB}
    first = len(schedule.jobs) - len(jobs)
    for number in range(first, len(schedule.jobs)):
        job = schedule.jobs[number]
        allowed = job.devices if job.devices is not None else tuple(range(schedule.devices))
        ready = max((ends[a] for a in job.after), default=0.0)
        known = replace(trace.schedule, jobs=schedule.jobs[: number + 1])
        places = [p for d in allowed if (p := _gap(trace, d, ready, job)) is not None]
        action = Action(Kind.JOB, other=number)
        if places:
            _, device, position = min(places)
            rows[device].insert(position, action)
            trace = simulate(replace(known, actions=tuple(tuple(r) for r in rows)), costs, overlap)
        else:
            trace = _squeezed(known, rows, action, allowed, ready, trace, costs, overlap)
            rows = [list(row) for row in trace.schedule.actions]
        ends[number] = next(s.end_s for r in trace.spans for s in r if s.action == action)
    return trace


def _gap(trace: Trace, device: int, ready_s: float, job: Job) -> tuple[float, int, int] | None:
    """(end, device, position in its list) of the earliest idle time of a device that takes the whole job, in time for
    what it feeds."""
    deadline = _deadline_s(trace, job)
    free = 0.0
    for position, span in enumerate(trace.spans[device]):
        start = max(free, ready_s)
        if start + job.time_s <= min(span.start_s, deadline):
            return start + job.time_s, device, position
        free = span.end_s
    start = max(free, ready_s)
    end = start + job.time_s
    return (end, device, len(trace.spans[device])) if end <= min(trace.makespan_s, deadline) else None


def _deadline_s(trace: Trace, job: Job) -> float:
    if not job.feeds:
        return float("inf")
    fed = {Action(Kind.F, stage, microbatch) for stage, microbatch in job.feeds}
    return min(s.start_s for row in trace.spans for s in row if s.action in fed)


def _squeezed(
    schedule: Schedule,
    rows: Sequence[Sequence[Action]],
    action: Action,
    allowed: Sequence[int],
    ready_s: float,
    trace: Trace,
    costs: Costs,
    overlap: bool,
) -> Trace:
    """The best of putting the job, on each device, where the device would first be free for it or at its end."""
    best: Trace | None = None
    job = schedule.jobs[action.other]
    for device in allowed:
        spans = trace.spans[device]
        early = next((i for i, s in enumerate(spans) if s.start_s >= ready_s), len(spans))
        for position in {early} if job.feeds else {len(spans)}:
            new = [list(row) for row in rows]
            new[device].insert(position, action)
            played = simulate(replace(schedule, actions=tuple(tuple(r) for r in new)), costs, overlap)
            if best is None or played.makespan_s < best.makespan_s:
                best = played
    assert best is not None  # a job has at least one device
    return best


def _check(schedule: Schedule, jobs: Sequence[Job]) -> None:
    first = len(schedule.jobs)
    for number, job in enumerate(jobs, first):
        if any(not 0 <= a < number for a in job.after):
            raise ValueError(f"job {number} ({job.name}) waits for {job.after}: only earlier jobs can be waited for")
        if job.devices is not None and (not job.devices or any(not 0 <= d < schedule.devices for d in job.devices)):
            raise ValueError(f"job {number} ({job.name}) may run on devices {job.devices} of {schedule.devices}")
        for stage, microbatch in job.feeds:
            if not (0 <= stage < schedule.stages and 0 <= microbatch < schedule.microbatches):
                raise ValueError(f"job {number} ({job.name}) feeds {(stage, microbatch)}, which there is not")
