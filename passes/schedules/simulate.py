"""What a schedule comes to: its makespan, where devices stand idle, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from passes.schedules.actions import TRANSFERS, Action, Kind, Schedule
from passes.schedules.costs import Costs
from passes.schedules.play import Message, Span, play
from passes.schedules.transfers import with_transfers


@dataclass(frozen=True, slots=True)
class Trace:
    """A schedule played with real durations.

    `spans[d]` are what device d did, in order; `messages` the arrays that went between devices. `peak_bytes` is what a
    device holds at its fullest, its stages' fixed bytes included.
    """

    schedule: Schedule
    spans: tuple[tuple[Span, ...], ...]
    messages: tuple[Message, ...]
    makespan_s: float
    busy_s: tuple[float, ...]
    peak_bytes: tuple[float, ...]

    @property
    def idle_s(self) -> tuple[float, ...]:
        """Per device, the time between the start of the step and its end in which it does not compute."""
        return tuple(self.makespan_s - b for b in self.busy_s)

    @property
    def bubble_s(self) -> float:
        """Idle time of the average device; with equal stages, the makespan beyond the work."""
        return sum(self.idle_s) / len(self.idle_s)

    @property
    def bubble_ratio(self) -> float:
        """The part of all devices' time in which they stand idle, 0 to 1."""
        return self.bubble_s / self.makespan_s if self.makespan_s else 0.0

    @property
    def skewed_bubble_s(self) -> float:
        """Idle time from a device's own first action to its last, of the device where it is longest: what is left of
        the bubble when steps follow each other without a common start (the figure of the zero-bubble papers,
        arXiv:2401.10241)."""
        longest = 0.0
        for row, busy in zip(self.spans, self.busy_s, strict=True):
            work = [s for s in row if s.action.kind is not Kind.UPDATE]
            if work:
                updates = sum(s.end_s - s.start_s for s in row if s.action.kind is Kind.UPDATE)
                longest = max(longest, work[-1].end_s - work[0].start_s - (busy - updates))
        return longest

    @property
    def exposed_transfer_s(self) -> tuple[float, ...]:
        """Per device, the time in which it stands in a blocking transfer; 0 where transfers overlap."""
        return tuple(sum(s.end_s - s.start_s for s in row if s.action.kind in TRANSFERS) for row in self.spans)


def simulate(schedule: Schedule, costs: Costs, overlap: bool = True) -> Trace:
    """Play the schedule with these costs.

    With `overlap` transfers run beside computing, one at a time on the link of an ordered pair of devices; without,
    both ends stop for them (sends and receives are added to a schedule that has none). Raises InvalidScheduleError for
    a schedule that never ends, ValueError for costs of another number of stages or other edges.
    """
    if costs.stages != schedule.stages or costs.edges != schedule.edges:
        raise ValueError(
            f"costs of {costs.stages} stages with edges {costs.edges}, a schedule of {schedule.stages} with "
            f"{schedule.edges}"
        )
    if not overlap and not schedule.has_transfers:
        schedule = with_transfers(schedule, costs)
    played = play(schedule, costs, overlap)
    return Trace(
        schedule=schedule,
        spans=tuple(tuple(row) for row in played.spans),
        messages=tuple(played.messages),
        makespan_s=max((row[-1].end_s for row in played.spans if row), default=0.0),
        busy_s=tuple(sum(s.end_s - s.start_s for s in row if s.action.kind not in TRANSFERS) for row in played.spans),
        peak_bytes=peak_bytes(schedule, costs),
    )


def peak_bytes(schedule: Schedule, costs: Costs) -> tuple[float, ...]:
    """Per device, the most that it holds at once. The order of its list alone decides it, not the durations."""
    peaks = []
    for device, row in enumerate(schedule.actions):
        held = peak = sum(costs.fixed_bytes[s] for s in schedule.stages_of(device))
        for action in row:
            held += taken_bytes(action, costs)
            peak = max(peak, held)
            held -= given_bytes(action, costs)
        peaks.append(peak)
    return tuple(peaks)


def peak_activations(schedule: Schedule) -> tuple[float, ...]:
    """Per device, the most microbatches whose activations it holds at once, as parts of all its stages: a schedule with
    two stages per device that holds three of their activations holds 1.5."""
    peaks = []
    for row in schedule.actions:
        held = peak = 0
        for action in row:
            held += action.kind is Kind.F
            peak = max(peak, held)
            held -= action.kind in (Kind.W, Kind.BW)
        peaks.append(peak / schedule.chunks)
    return tuple(peaks)


def taken_bytes(action: Action, costs: Costs) -> float:
    """What an action begins to hold when it starts."""
    return costs.activation_bytes[action.stage] if action.kind is Kind.F else 0.0


def given_bytes(action: Action, costs: Costs) -> float:
    """What an action lets go when it ends."""
    s = action.stage
    if action.kind is Kind.BW:
        return costs.activation_bytes[s]
    if action.kind is Kind.B:
        return costs.activation_bytes[s] - costs.waiting_bytes[s]
    return costs.waiting_bytes[s] if action.kind is Kind.W else 0.0
