"""Plays a schedule: devices do their lists in order, each action when what it reads is there.

The one engine behind validator and simulator. Two ways of sending: *overlapping* (a transfer runs beside computing, on
a link per ordered pair of devices that carries one at a time) and *blocking* (sender and receiver both stop until the
array has gone over: the strictest semantics, under which a wrong order of sends and receives hangs).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from passes.schedules.actions import (
    FORWARD,
    INPUT,
    RECEIVES,
    SENDS,
    WEIGHT,
    Action,
    Kind,
    Result,
    Schedule,
    makes,
    needs,
)
from passes.schedules.costs import Costs
from passes.schedules.errors import InvalidScheduleError


@dataclass(frozen=True, slots=True)
class Span:
    """When a device did an action."""

    action: Action
    device: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Message:
    """When an array was on its way between devices: `what` is the result that travels, `reader` the stage it is for."""

    what: Result
    reader: int
    source: int
    destination: int
    start_s: float
    end_s: float


@dataclass(slots=True)
class Played:
    """Spans per device in the order of its list, and the messages in the order of their sending."""

    spans: list[list[Span]]
    messages: list[Message] = field(default_factory=list)


def play(schedule: Schedule, costs: Costs, overlap: bool = True) -> Played:
    """Run every list to its end. Raises InvalidScheduleError ("deadlock") with the actions at which devices wait."""
    player = _Player(schedule, costs, overlap)
    waiting = list(range(schedule.devices - 1, -1, -1))
    while waiting:
        device = waiting.pop()
        while player.step(device):
            pass
        waiting += player.woken
        player.woken.clear()
    stuck = [(d, row[player.at[d]]) for d, row in enumerate(schedule.actions) if player.at[d] < len(row)]
    if stuck:
        where = "; ".join(f"device {d} waits at {a}" for d, a in stuck)
        raise InvalidScheduleError("deadlock", f"{schedule.name} never ends: {where}", tuple(a for _, a in stuck))
    return player.played


class _Player:
    def __init__(self, schedule: Schedule, costs: Costs, overlap: bool) -> None:
        self.schedule, self.costs, self.overlap = schedule, costs, overlap
        self.explicit = schedule.has_transfers
        self.at = [0] * schedule.devices
        self.free_s = [0.0] * schedule.devices
        self.ready_s: dict[tuple[int, Result | int], float] = {}  # (device, result or job) -> when it is there
        self.mail_s: dict[tuple[int, Result], float] = {}
        self.asked: set[tuple[int, Result]] = set()  # sent or asked for
        self.link_free_s: dict[tuple[int, int], float] = {}
        self.sleepers: dict[object, list[int]] = {}
        self.woken: list[int] = []
        self.played = Played([[] for _ in range(schedule.devices)])
        self.fed: dict[tuple[int, int], list[int]] = {}
        for number, job in enumerate(schedule.jobs):
            for place in job.feeds:
                self.fed.setdefault(place, []).append(number)
        self.readers: dict[int, list[tuple[int, float]]] = {}  # stage -> later stages that read it, seconds there
        self.sources: dict[int, list[tuple[int, float]]] = {}
        self.seconds = {}
        for edge, there, back in zip(costs.edges, costs.activation_s, costs.gradient_s, strict=True):
            self.readers.setdefault(edge[0], []).append((edge[1], there))
            self.sources.setdefault(edge[1], []).append((edge[0], back))
            self.seconds[edge], self.seconds[edge[::-1]] = there, back

    def step(self, device: int) -> bool:
        """Do the device's next action, if it can be done now."""
        row = self.schedule.actions[device]
        if self.at[device] == len(row):
            return False
        action = row[self.at[device]]
        if action.kind in SENDS or action.kind in RECEIVES:
            return self._transfer(device, action)
        start = self.free_s[device]
        for what in self._reads(action):
            there = self.ready_s.get((device, what))
            if there is None:
                self.sleepers.setdefault((device, what), []).append(device)
                return False
            start = max(start, there)
        end = start + self.costs.duration_s(action, self.schedule)
        self._done(device, action, start, end)
        for what in makes(action):
            self._arrive(device, what, end)
            if not self.explicit:
                self._send_all(device, what, end)
            if what[0] == WEIGHT and self.schedule.joint_update:
                self._announce(what, end)
        if action.kind is Kind.JOB:
            self._announce(action.other, end)
        return True

    def _reads(self, action: Action) -> list[Result | int]:
        if action.kind is Kind.JOB:
            return list(self.schedule.jobs[action.other].after)
        reads: list[Result | int] = list(needs(self.schedule, action))
        if action.kind is Kind.F:
            reads += self.fed.get((action.stage, action.microbatch), ())
        return reads

    def _done(self, device: int, action: Action, start_s: float, end_s: float) -> None:
        self.free_s[device] = end_s
        self.at[device] += 1
        self.played.spans[device].append(Span(action, device, start_s, end_s))

    def _arrive(self, device: int, what: Result | int, time_s: float) -> None:
        self.ready_s[device, what] = time_s
        self.woken += self.sleepers.pop((device, what), ())

    def _send_all(self, device: int, what: Result, time_s: float) -> None:
        """A schedule without transfers: what is made goes at once to every device that reads it."""
        kind, stage, _ = what
        ways = self.readers if kind == FORWARD else self.sources if kind == INPUT else {}
        for reader, seconds in ways.get(stage, ()):
            target = self.schedule.placement[reader]
            if target != device and (target, what) not in self.ready_s:
                start, end = self._message(device, target, what, reader, time_s, seconds)
                self._arrive(target, what, end)

    def _announce(self, what: Result | int, time_s: float) -> None:
        """Everyone learns it at once: the end of a job, or a gradient of weights that a joint update waits for."""
        for other in range(self.schedule.devices):
            if (other, what) not in self.ready_s:
                self._arrive(other, what, time_s)

    def _message(
        self, device: int, target: int, what: Result, reader: int, time_s: float, seconds: float
    ) -> tuple[float, float]:
        start = max(time_s, self.link_free_s.get((device, target), 0.0))
        self.link_free_s[device, target] = start + seconds
        self.played.messages.append(Message(what, reader, device, target, start, start + seconds))
        return start, start + seconds

    def _transfer(self, device: int, action: Action) -> bool:
        if not 0 <= action.peer < self.schedule.devices:
            raise InvalidScheduleError("wrong peer", f"{action}: there is no such device", (action,))
        if not self.overlap:
            return self._meet(device, action)
        what = carried(action)
        if action.kind in RECEIVES:
            self._hand_over(device, what)
            self._done(device, action, self.free_s[device], self.free_s[device])
            return True
        made = self.ready_s.get((device, what))
        if made is None:
            self.sleepers.setdefault((device, what), []).append(device)
            return False
        seconds = self.seconds.get((action.stage, action.other), 0.0)
        _, end = self._message(device, action.peer, what, action.other, max(made, self.free_s[device]), seconds)
        self.mail_s[action.peer, what] = end
        self._hand_over(action.peer, what)
        self._done(device, action, self.free_s[device], self.free_s[device])
        return True

    def _hand_over(self, device: int, what: Result) -> None:
        """An array is there for its reader when it was both sent and asked for; called at both."""
        if (device, what) in self.asked:
            self._arrive(device, what, self.mail_s[device, what])
        self.asked.add((device, what))

    def _meet(self, device: int, action: Action) -> bool:
        """Blocking: both ends stand at the transfer, and are busy with it until it is over."""
        peer, other = action.peer, counterpart(action, device)
        row = self.schedule.actions[peer]
        if self.at[peer] == len(row) or row[self.at[peer]] != other:
            return False
        sender = device if action.kind in SENDS else peer
        what = carried(action)
        if (sender, what) not in self.ready_s:
            return False
        start = max(self.free_s[device], self.free_s[peer])
        end = start + self.seconds.get((action.stage, action.other), 0.0)
        self._done(device, action, start, end)
        self._done(peer, other, start, end)
        send = action if action.kind in SENDS else other
        self.played.messages.append(Message(what, send.other, sender, send.peer, start, end))
        self._arrive(send.peer, what, end)
        self.woken.append(peer)
        return True


def carried(action: Action) -> Result:
    """The result that a transfer carries."""
    kind = FORWARD if action.kind in (Kind.SEND_ACTIVATION, Kind.RECV_ACTIVATION) else INPUT
    return (kind, action.stage if action.kind in SENDS else action.other, action.microbatch)


def counterpart(action: Action, device: int) -> Action:
    """The receive of a send, or the send of a receive, as it stands in the other device's list."""
    return Action(_COUNTERPARTS[action.kind], action.other, action.microbatch, action.stage, device)


_COUNTERPARTS = {
    Kind.SEND_ACTIVATION: Kind.RECV_ACTIVATION,
    Kind.RECV_ACTIVATION: Kind.SEND_ACTIVATION,
    Kind.SEND_GRADIENT: Kind.RECV_GRADIENT,
    Kind.RECV_GRADIENT: Kind.SEND_GRADIENT,
}
