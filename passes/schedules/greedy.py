"""A list scheduler: whenever a device is free it starts the ready action that a policy ranks first.

It makes schedules for stages of unequal duration, under a limit on memory, and (with a policy that caps how many
microbatches a stage may hold) the V family. Decisions use only what has happened by then, so it ends in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from passes.schedules.actions import Action, Kind, Schedule
from passes.schedules.costs import Costs
from passes.schedules.named import with_updates
from passes.schedules.simulate import given_bytes, taken_bytes


@dataclass(frozen=True, slots=True)
class Policy:
    """Which ready action goes first: the one with the least rank.

    The rank of an action is its stage's entry in `forward`, `backward` or `weight`, plus `step` times the microbatch.
    `caps` is per stage the most microbatches that it may hold at once, from F to the end of W. `split` says whether the
    two gradients are separate actions. With `patient` a gradient of weights is not begun when an action that ranks
    before it is known to become ready before it would end.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    weight: tuple[float, ...]
    caps: tuple[int, ...]
    split: bool = True
    step: float = 0.0
    patient: bool = False


def list_schedule(
    name: str,
    costs: Costs,
    microbatches: int,
    placement: Sequence[int],
    policy: Policy,
    memory_bytes: Sequence[float] | None = None,
    order: Sequence[Sequence[Action]] | None = None,
) -> Schedule:
    """The schedule that the policy makes with these durations, within `memory_bytes` per device.

    With `order` (per device, all its F and B or BW) only the place of every W is left to choose; where the memory does
    not allow the order, what cannot be done is missing from the result. Otherwise every device keeps room to finish the
    microbatches that it has begun, so that memory cannot make devices wait in a circle: the caller sees to it that one
    microbatch fits, and that caps are at least 1.
    """
    scheduler = _Scheduler(costs, microbatches, tuple(placement), policy, memory_bytes, order)
    rows = scheduler.run()
    return Schedule(name, microbatches, tuple(placement), with_updates(rows, placement), costs.edges)


class _Scheduler:
    def __init__(
        self,
        costs: Costs,
        microbatches: int,
        placement: tuple[int, ...],
        policy: Policy,
        memory_bytes: Sequence[float] | None,
        order: Sequence[Sequence[Action]] | None,
    ) -> None:
        self.order = None if order is None else [list(reversed(row)) for row in order]
        self.costs, self.microbatches, self.placement, self.policy = costs, microbatches, placement, policy
        stages, devices = len(placement), max(placement) + 1
        self.own = [[s for s in range(stages) if placement[s] == d] for d in range(devices)]
        limits = list(memory_bytes) if memory_bytes is not None else [float("inf")] * devices
        self.room = [limits[d] - sum(costs.fixed_bytes[s] for s in self.own[d]) for d in range(devices)]
        self.slack_bytes = 1e-9 * max(costs.activation_bytes)  # sums of floats come out a little above or below
        self.rows: list[list[Action]] = [[] for _ in range(devices)]
        self.busy = [False] * devices
        self.begun = [[0] * stages for _ in range(3)]  # microbatches per _B, _F, _W and stage
        self.holds = [0] * stages  # microbatches from F to the end of W
        # Results there, per stage and microbatch: how many of what an action reads has arrived so far.
        self.before: list[list[tuple[int, float]]] = [[] for _ in range(stages)]
        self.after: list[list[tuple[int, float]]] = [[] for _ in range(stages)]
        for (a, b), there, back in zip(costs.edges, costs.activation_s, costs.gradient_s, strict=True):
            crosses = placement[a] != placement[b]
            self.after[a].append((b, there if crosses else 0.0))
            self.before[b].append((a, back if crosses else 0.0))
        self.lacks_f = [[len(self.before[s])] * microbatches for s in range(stages)]
        self.lacks_b = [[len(self.after[s]) + 1] * microbatches for s in range(stages)]
        self.ready_w = [0] * stages  # microbatches whose B has ended
        self.ended_w = [0] * stages
        self.expected: list[list[tuple[float, float]]] = [[] for _ in range(devices)]  # (when, rank) on the way
        self.events: list[_Event] = []
        self.links: dict[tuple[int, int], float] = {}

    def run(self) -> list[list[Action]]:
        for device in range(len(self.rows)):
            self._start(device, 0.0)
        while self.events:
            now = self.events[0][0]
            touched: set[int] = set()
            while self.events and self.events[0][0] <= now:
                touched.add(self._happen(heappop(self.events)))
            for device in sorted(touched):
                if not self.busy[device]:
                    self._start(device, now)
        return self.rows

    def _happen(self, event: _Event) -> int:
        """An action ends or an array arrives; returns the device that it concerns."""
        now, what, stage, microbatch, device = event
        if what == _F:
            self.lacks_b[stage][microbatch] -= 1
            self._spread(now, device, _ARRIVES_F, self.after[stage], microbatch)
        elif what == _B:
            self.room[device] += given_bytes(Action(Kind.B if self.policy.split else Kind.BW, stage), self.costs)
            self.ready_w[stage] += 1
            self.holds[stage] -= not self.policy.split
            self.ended_w[stage] += not self.policy.split
            self._spread(now, device, _ARRIVES_B, self.before[stage], microbatch)
        elif what == _W:
            self.room[device] += given_bytes(Action(Kind.W, stage), self.costs)
            self.holds[stage] -= 1
            self.ended_w[stage] += 1
        else:
            (self.lacks_f if what == _ARRIVES_F else self.lacks_b)[stage][microbatch] -= 1
            self.expected[device] = [e for e in self.expected[device] if e[0] > now]
        if what in (_F, _B, _W):
            self.busy[device] = False
        return device

    def _spread(self, now: float, device: int, what: int, readers: list[tuple[int, float]], microbatch: int) -> None:
        for reader, seconds in readers:
            target = self.placement[reader]
            arrives = now
            if target != device:
                arrives = max(now, self.links.get((device, target), 0.0)) + seconds
                self.links[device, target] = arrives
            ranks = self.policy.forward if what == _ARRIVES_F else self.policy.backward
            self.expected[target].append((arrives, ranks[reader] + self.policy.step * microbatch))
            heappush(self.events, (arrives, what, reader, microbatch, target))

    def _start(self, device: int, now: float) -> None:
        """Begin what ranks first among what is ready, if anything is."""
        best = min(self._ready(device), default=None)
        if best is None:
            return
        rank, which, stage, microbatch = best
        kind = (Kind.B if self.policy.split else Kind.BW, Kind.F, Kind.W)[which]
        action = Action(kind, stage, microbatch)
        end = now + self._seconds(action)
        if which == _W and self.policy.patient and any(now < t < end and r < rank for t, r in self.expected[device]):
            return
        self.begun[which][stage] += 1
        self.room[device] -= taken_bytes(action, self.costs)
        self.holds[stage] += which == _F
        if self.order is not None and which != _W:
            self.order[device].pop()
        self.rows[device].append(action)
        self.busy[device] = True
        heappush(self.events, (end, which, stage, microbatch, device))

    def _ready(self, device: int) -> Iterator[tuple[float, int, int, int]]:
        """(rank, which, stage, microbatch) of the actions that could begin now."""
        policy = self.policy
        for s in self.own[device]:
            k = self.begun[_B][s]
            if k < self.microbatches and self.lacks_b[s][k] == 0 and self._has_turn(device, _B, s):
                yield policy.backward[s] + policy.step * k, _B, s, k
            k = self.begun[_F][s]
            ready = k < self.microbatches and self.lacks_f[s][k] == 0 and self._has_turn(device, _F, s)
            if ready and self._fits(device, s, k):
                yield policy.forward[s] + policy.step * k, _F, s, k
            k = self.begun[_W][s]
            if policy.split and k < self.ready_w[s]:
                yield policy.weight[s] + policy.step * k, _W, s, k

    def _has_turn(self, device: int, which: int, stage: int) -> bool:
        if self.order is None:
            return True
        if not self.order[device]:
            return False
        head = self.order[device][-1]
        return head.stage == stage and (head.kind is Kind.F) == (which == _F)

    def _seconds(self, action: Action) -> float:
        s = action.stage
        if action.kind is Kind.F:
            return self.costs.forward_s[s]
        if action.kind is Kind.W:
            return self.costs.weight_s[s]
        return self.costs.backward_s[s] + (0.0 if self.policy.split else self.costs.weight_s[s])

    def _fits(self, device: int, stage: int, microbatch: int) -> bool:
        """Whether a forward may begin: the cap, and memory such that afterwards the microbatches on the device can
        still be finished one after the other, the oldest first (the banker's rule), which all devices can do alike."""
        if self.holds[stage] >= self.policy.caps[stage]:
            return False
        own, costs = self.own[device], self.costs
        room = self.room[device] - costs.activation_bytes[stage] + self.slack_bytes
        if room < 0:
            return False
        if len(own) == 1 or self.order is not None:
            return True
        begun = self.begun[_F]
        for older in range(min(self.ended_w[s] for s in own), max(max(begun[s] for s in own), microbatch + 1)):
            needed = sum(costs.activation_bytes[s] for s in own if begun[s] <= older)
            needed -= costs.activation_bytes[stage] if older == microbatch else 0.0
            if needed > room:
                return False
            room += sum(self._held_bytes(s, older) for s in own)
            room += costs.activation_bytes[stage] if older == microbatch else 0.0
        return True

    def _held_bytes(self, stage: int, microbatch: int) -> float:
        if self.begun[_F][stage] <= microbatch or self.ended_w[stage] > microbatch:
            return 0.0
        waits = self.ready_w[stage] > microbatch
        return self.costs.waiting_bytes[stage] if waits else self.costs.activation_bytes[stage]


_Event = tuple[float, int, int, int, int]
"""When, what (below), stage, microbatch, device."""


_B, _F, _W, _ARRIVES_F, _ARRIVES_B = range(5)
