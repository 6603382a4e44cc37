"""Checks that a list of actions is a schedule: complete, in the right places, free of deadlock, within memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from passes.schedules.actions import (
    BACKWARDS,
    RECEIVES,
    SENDS,
    TRANSFERS,
    Action,
    Kind,
    Schedule,
    makes,
    needs,
)
from passes.schedules.costs import Costs, equal_costs
from passes.schedules.errors import InvalidScheduleError, MemoryNeed, ScheduleMemoryError
from passes.schedules.play import carried, counterpart, play
from passes.schedules.simulate import peak_bytes


def validate(schedule: Schedule, costs: Costs | None = None, memory_bytes: Sequence[float] | None = None) -> None:
    """Raise unless the schedule is one. Checked, in this order:

    - every stage does F once and B and W, or BW, once per microbatch, and UPDATE once, on the device where it is
      placed; every job is done once on a device that may do it;
    - where there are transfers: one send and one receive for each array that a device reads from another, and on
      every ordered pair of devices receives in the order of the sends;
    - every device does an action after what it reads on the same device, and the lists can be played to their end, with
      transfers that block both ends if there are any;
    - with `costs` and `memory_bytes` (per device): no device ever holds more.

    Raises InvalidScheduleError, or ScheduleMemoryError for the last.
    """
    _check_places(schedule)
    _check_once(schedule)
    if schedule.has_transfers:
        _check_transfers(schedule)
    nothing = (0.0,) * len(schedule.edges)
    ones = equal_costs(schedule.stages)
    ones = replace(ones, edges=schedule.edges, activation_s=nothing, gradient_s=nothing)
    play(schedule, ones, overlap=not schedule.has_transfers)
    if costs is not None and memory_bytes is not None:
        check_memory(schedule, costs, memory_bytes)


def check_memory(schedule: Schedule, costs: Costs, memory_bytes: Sequence[float]) -> None:
    """Raise ScheduleMemoryError with the arithmetic of every device that would hold more than it has."""
    needs_of = []
    for device, (peak, limit) in enumerate(zip(peak_bytes(schedule, costs), memory_bytes, strict=True)):
        if peak > limit * (1 + 1e-9):
            fixed = sum(costs.fixed_bytes[s] for s in schedule.stages_of(device))
            needs_of.append(MemoryNeed(device, fixed, peak - fixed, limit))
    if needs_of:
        raise ScheduleMemoryError(schedule.name, tuple(needs_of))


def _check_places(schedule: Schedule) -> None:
    if any(not 0 <= d < schedule.devices for d in schedule.placement):
        raise InvalidScheduleError("wrong device", f"placement {schedule.placement} on {schedule.devices} devices")
    for a, b in schedule.edges:
        if not 0 <= a < b < schedule.stages:
            raise InvalidScheduleError("foreign", f"edge {(a, b)} of {schedule.stages} stages")
    for device, row in enumerate(schedule.actions):
        for action in row:
            if action.kind is Kind.JOB:
                _check_job(schedule, device, action)
                continue
            of_microbatch = action.kind is not Kind.UPDATE
            if not 0 <= action.stage < schedule.stages or (
                of_microbatch and not 0 <= action.microbatch < schedule.microbatches
            ):
                text = f"{action}: there are {schedule.stages} stages and {schedule.microbatches} microbatches"
                raise InvalidScheduleError("foreign", text, (action,))
            if schedule.placement[action.stage] != device:
                text = f"device {device} does {action}, which is placed on device {schedule.placement[action.stage]}"
                raise InvalidScheduleError("wrong device", text, (action,))


def _check_job(schedule: Schedule, device: int, action: Action) -> None:
    if not 0 <= action.other < len(schedule.jobs):
        raise InvalidScheduleError("foreign", f"{action}: there are {len(schedule.jobs)} jobs", (action,))
    allowed = schedule.jobs[action.other].devices
    if allowed is not None and device not in allowed:
        text = f"device {device} does {action}, whose weights are on devices {allowed}"
        raise InvalidScheduleError("wrong device", text, (action,))


def _check_once(schedule: Schedule) -> None:
    done = Counter(a for row in schedule.actions for a in row if a.kind not in TRANSFERS)
    for action, times in done.items():
        if times > 1:
            raise InvalidScheduleError("twice", f"{action} is done {times} times", (action,))
    for s in range(schedule.stages):
        for m in range(schedule.microbatches):
            forward, whole = Action(Kind.F, s, m), Action(Kind.BW, s, m)
            halves = (Action(Kind.B, s, m), Action(Kind.W, s, m))
            if whole in done and any(h in done for h in halves):
                raise InvalidScheduleError("both forms", f"{whole} is done, and a part of it alone as well", (whole,))
            missing = [a for a in (forward, *(() if whole in done else halves)) if a not in done]
            if missing:
                raise InvalidScheduleError("missing", f"{missing[0]} is never done", tuple(missing))
        if Action(Kind.UPDATE, s) not in done:
            raise InvalidScheduleError("missing", f"the update of stage {s} is never done", (Action(Kind.UPDATE, s),))
    for number in range(len(schedule.jobs)):
        if Action(Kind.JOB, other=number) not in done:
            raise InvalidScheduleError("missing", f"job {number} is never done", (Action(Kind.JOB, other=number),))


def _check_transfers(schedule: Schedule) -> None:
    sent: dict[tuple[int, int], list[Action]] = {}
    received: dict[tuple[int, int], list[Action]] = {}
    here: list[set] = [set() for _ in schedule.actions]  # results that a device makes or receives
    for device, row in enumerate(schedule.actions):
        for action in row:
            here[device].update(makes(action))
            if action.kind in TRANSFERS:
                _check_peer(schedule, device, action)
            if action.kind in SENDS:
                sent.setdefault((device, action.peer), []).append(action)
            elif action.kind in RECEIVES:
                if carried(action) in here[device]:
                    raise InvalidScheduleError("twice", f"device {device} has what it receives: {action}", (action,))
                here[device].add(carried(action))
                received.setdefault((action.peer, device), []).append(counterpart(action, device))
    for pair in sorted(sent.keys() | received.keys()):
        out, into = sent.get(pair, []), received.get(pair, [])
        for a, b in zip(out, into, strict=False):
            if a != b:
                text = f"from device {pair[0]} to {pair[1]}: {a} is sent where the receiver waits for {b}"
                raise InvalidScheduleError("unmatched transfer", text, (a, b))
        if len(out) != len(into):
            text = f"from device {pair[0]} to {pair[1]}: {len(out)} sends and {len(into)} receives"
            raise InvalidScheduleError("unmatched transfer", text, tuple(out[len(into) :] + into[len(out) :]))
    for device, row in enumerate(schedule.actions):
        for action in row:
            if action.kind is Kind.F or action.kind in BACKWARDS:
                for what in needs(schedule, action):
                    if what not in here[device]:
                        text = f"device {device} never receives what {action} reads from stage {what[1]}"
                        raise InvalidScheduleError("unmatched transfer", text, (action,))


def _check_peer(schedule: Schedule, device: int, action: Action) -> None:
    other = action.other
    place = schedule.placement[other] if 0 <= other < schedule.stages else -1
    if place != action.peer or action.peer == device:
        text = f"device {device}: {action}; stage {other} is on device {place}"
        raise InvalidScheduleError("wrong peer", text, (action,))
