"""A schedule: one list of actions per device, in the order in which the device does them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What a device does in one action. F: forward. B: gradient of a stage's input. W: gradient of its weights. BW:
    both in one program. Sends and receives carry an activation to a later stage or a gradient to an earlier one."""

    F = "F"
    B = "B"
    W = "W"
    BW = "BW"
    UPDATE = "update"
    JOB = "job"
    SEND_ACTIVATION = "send activation"
    RECV_ACTIVATION = "receive activation"
    SEND_GRADIENT = "send gradient"
    RECV_GRADIENT = "receive gradient"

    # Enum hashes the name through Python code; there is one object per kind, so its identity does.
    __hash__ = object.__hash__


SENDS = frozenset({Kind.SEND_ACTIVATION, Kind.SEND_GRADIENT})
RECEIVES = frozenset({Kind.RECV_ACTIVATION, Kind.RECV_GRADIENT})
TRANSFERS = SENDS | RECEIVES
BACKWARDS = frozenset({Kind.B, Kind.BW})

FORWARD, INPUT, WEIGHT = range(3)
"""What actions leave: a stage's activation, the gradient of its input, its share of the gradient of its weights."""

Result = tuple[int, int, int]
"""(FORWARD, INPUT or WEIGHT; stage; microbatch)."""

_MADE = {Kind.F: (FORWARD,), Kind.B: (INPUT,), Kind.W: (WEIGHT,), Kind.BW: (INPUT, WEIGHT)}


@dataclass(frozen=True, slots=True)
class Action:
    """One entry of a device's list.

    For F, B, W and BW: the stage and the microbatch. For UPDATE: the stage. For a transfer: `stage` is the stage on
    this device that makes or takes the array, `other` the stage at the other end, `peer` the other device. For JOB:
    `other` is the number of the job.
    """

    kind: Kind
    stage: int = -1
    microbatch: int = -1
    other: int = -1
    peer: int = -1

    def __str__(self) -> str:
        if self.kind is Kind.UPDATE:
            return f"update of stage {self.stage}"
        if self.kind is Kind.JOB:
            return f"job {self.other}"
        text = f"{self.kind.value} of stage {self.stage}, microbatch {self.microbatch}"
        if self.kind in SENDS:
            return f"{text}, to stage {self.other} on device {self.peer}"
        return f"{text}, from stage {self.other} on device {self.peer}" if self.kind in RECEIVES else text


@dataclass(frozen=True, slots=True)
class Job:
    """Forward-only work beside the pipeline (a frozen encoder's layer on a part of a batch) that may run in bubbles.

    `after` are numbers of jobs that must have ended; `devices` those that hold its weights (None: any may do it);
    `feeds` are the (stage, microbatch) forwards that read what it makes, none for work on the next step's batch.
    """

    name: str
    time_s: float
    after: tuple[int, ...] = ()
    devices: tuple[int, ...] | None = None
    feeds: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Who does what in which order.

    `placement[s]` is the device of stage s. `edges` are pairs of stages (earlier, later) of which the later reads an
    activation of the earlier: the chain, and skip connections beside it; gradients travel them backwards. With
    `joint_update` every update waits for the weight gradients of all stages (clipping by the global norm).
    """

    name: str
    microbatches: int
    placement: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    edges: tuple[tuple[int, int], ...] = ()
    joint_update: bool = False
    jobs: tuple[Job, ...] = field(default=())

    @property
    def devices(self) -> int:
        return len(self.actions)

    @property
    def stages(self) -> int:
        return len(self.placement)

    @property
    def chunks(self) -> int:
        """Stages per device."""
        return self.stages // self.devices

    def __len__(self) -> int:
        """The number of actions on all devices."""
        return sum(len(row) for row in self.actions)

    @property
    def has_transfers(self) -> bool:
        return any(a.kind in TRANSFERS for d in self.actions for a in d)

    def stages_of(self, device: int) -> tuple[int, ...]:
        return tuple(s for s, d in enumerate(self.placement) if d == device)

    def __str__(self) -> str:
        return "\n".join(f"{d}: {' '.join(_short(a) for a in row)}" for d, row in enumerate(self.actions))


def chain(stages: int) -> tuple[tuple[int, int], ...]:
    """The edges of stages that each read only the one before."""
    return tuple((s, s + 1) for s in range(stages - 1))


def loop_placement(devices: int, chunks: int) -> tuple[int, ...]:
    """Stage s on device s modulo `devices`: after the last device the first one follows again."""
    return tuple(range(devices)) * chunks


def v_placement(devices: int) -> tuple[int, ...]:
    """Two stages per device, d and 2 * devices - 1 - d: down the devices and up again."""
    return (*range(devices), *reversed(range(devices)))


def needs(schedule: Schedule, action: Action) -> Iterator[Result]:
    """What this action of a stage reads, in a fixed order; nothing for transfers and jobs."""
    s, m = action.stage, action.microbatch
    if action.kind is Kind.F:
        for a, b in schedule.edges:
            if b == s:
                yield (FORWARD, a, m)
    elif action.kind in BACKWARDS:
        yield (FORWARD, s, m)
        for a, b in schedule.edges:
            if a == s:
                yield (INPUT, b, m)
    elif action.kind is Kind.W:
        yield (INPUT, s, m)
    elif action.kind is Kind.UPDATE:
        for t in range(schedule.stages) if schedule.joint_update else (s,):
            for k in range(schedule.microbatches):
                yield (WEIGHT, t, k)


def makes(action: Action) -> tuple[Result, ...]:
    """What this action of a stage leaves for others; nothing for updates, transfers and jobs."""
    return tuple((what, action.stage, action.microbatch) for what in _MADE.get(action.kind, ()))


_MARKS = {Kind.SEND_ACTIVATION: ">", Kind.RECV_ACTIVATION: "<", Kind.SEND_GRADIENT: "}", Kind.RECV_GRADIENT: "{"}


def _short(action: Action) -> str:
    if action.kind is Kind.UPDATE:
        return f"U{action.stage}"
    if action.kind is Kind.JOB:
        return f"J{action.other}"
    if action.kind in TRANSFERS:
        return f"{_MARKS[action.kind]}{action.stage}-{action.other}.{action.microbatch}"
    return f"{action.kind.value}{action.stage}.{action.microbatch}"
