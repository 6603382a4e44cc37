"""Adds sends and receives to a schedule, in an order that cannot hang."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from passes.schedules.actions import BACKWARDS, TRANSFERS, Action, Kind, Schedule
from passes.schedules.costs import Costs
from passes.schedules.play import counterpart, play


def with_transfers(schedule: Schedule, costs: Costs) -> Schedule:
    """The schedule with a send at the device that makes an array and a receive at the one that reads it.

    All devices' lists are cut from *one* sequence of all actions and transfers, so that even if both ends of every
    transfer stop and wait for each other nobody waits in a circle: the first action of that sequence which is not done
    can always be done. The sequence is by time, as the schedule plays without transfers; a transfer comes when its
    array is made. An array that several stages of one device read is sent once. Raises InvalidScheduleError for a
    schedule that never ends.
    """
    bare = without_transfers(schedule)
    timed = _positive(costs)
    slow = replace(bare, jobs=tuple(replace(j, time_s=max(j.time_s, _least_s(costs))) for j in bare.jobs))
    sequence: list[tuple[float, int, int, int, Action]] = []
    for device, row in enumerate(play(slow, timed).spans):
        for span in row:
            # Nothing takes no time here, so what reads an array starts after what made it has ended; where a transfer
            # and an action could start at once, the transfer goes first: its other end may be waiting.
            sequence.append((span.start_s, 1, len(sequence), device, span.action))
            for send in _sends(bare, device, span.action):
                sequence.append((span.end_s, 0, len(sequence), device, send))
    rows: list[list[Action]] = [[] for _ in range(bare.devices)]
    for _, is_action, _, device, action in sorted(sequence, key=lambda entry: entry[:3]):
        rows[device].append(action)
        if not is_action:
            rows[action.peer].append(counterpart(action, device))
    return replace(bare, actions=tuple(tuple(row) for row in rows))


def without_transfers(schedule: Schedule) -> Schedule:
    """The schedule's own actions alone."""
    rows = tuple(tuple(a for a in row if a.kind not in TRANSFERS) for row in schedule.actions)
    return replace(schedule, actions=rows)


def _sends(schedule: Schedule, device: int, action: Action) -> Iterator[Action]:
    """The transfers that follow an action, each device that reads its result served once."""
    served = {device}
    stage, place = action.stage, schedule.placement
    if action.kind is Kind.F:
        kind, readers = Kind.SEND_ACTIVATION, [b for a, b in schedule.edges if a == stage]
    elif action.kind in BACKWARDS:
        kind, readers = Kind.SEND_GRADIENT, [a for a, b in schedule.edges if b == stage]
    else:
        return
    for reader in readers:
        if place[reader] not in served:
            served.add(place[reader])
            yield Action(kind, stage, action.microbatch, reader, place[reader])


def _least_s(costs: Costs) -> float:
    """A duration that is nothing beside the others and still moves the clock."""
    longest = max((*costs.forward_s, *costs.backward_s, *costs.weight_s, *costs.update_s), default=0.0)
    return longest * 1e-6 if longest else 1.0


def _positive(costs: Costs) -> Costs:
    least = _least_s(costs)

    def at_least(seconds: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(max(s, least) for s in seconds)

    nothing = (0.0,) * len(costs.edges)
    return replace(
        costs,
        forward_s=at_least(costs.forward_s),
        backward_s=at_least(costs.backward_s),
        weight_s=at_least(costs.weight_s),
        update_s=at_least(costs.update_s),
        activation_s=nothing,
        gradient_s=nothing,
    )
