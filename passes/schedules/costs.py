"""What the stages of a pipeline cost: seconds per action, seconds per transfer, bytes held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passes.schedules.actions import Action, Kind, Schedule, chain


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and bytes of one microbatch, per stage.

    `forward_s`, `backward_s` (gradient of the input), `weight_s` (gradient of the weights; BW takes the sum of both),
    `update_s` once per step. `edges` are the pairs of stages (earlier, later) between which arrays go; `activation_s`
    and `gradient_s` say per edge what the way there and the way back take when the stages lie on different devices.

    `activation_bytes` is held from the start of F to the end of B or BW; of it `waiting_bytes` stay until the end of W
    (what the weights' gradient reads). `fixed_bytes` is held all the time: weights, summed gradients, optimizer state.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    weight_s: tuple[float, ...]
    update_s: tuple[float, ...]
    activation_bytes: tuple[float, ...]
    waiting_bytes: tuple[float, ...]
    fixed_bytes: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]
    activation_s: tuple[float, ...]
    gradient_s: tuple[float, ...]

    def __post_init__(self) -> None:
        stages = len(self.forward_s)
        for name in ("backward_s", "weight_s", "update_s", "activation_bytes", "waiting_bytes", "fixed_bytes"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {stages} stages")
        for name in ("activation_s", "gradient_s"):
            if len(getattr(self, name)) != len(self.edges):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.edges)} edges")
        for a, b in self.edges:
            if not 0 <= a < b < stages:
                raise ValueError(f"edge {(a, b)}: arrays go from an earlier to a later one of {stages} stages")
        for name in self.__slots__[:7] + self.__slots__[8:]:
            if not all(0 <= x < float("inf") for x in getattr(self, name)):
                raise ValueError(f"{name} must be finite and not negative: {getattr(self, name)}")
        if any(w > a for w, a in zip(self.waiting_bytes, self.activation_bytes, strict=True)):
            raise ValueError("waiting_bytes are a part of activation_bytes: what stays of it until W")

    @property
    def stages(self) -> int:
        return len(self.forward_s)

    def duration_s(self, action: Action, schedule: Schedule) -> float:
        """Seconds that the action keeps its device's computing busy; 0 for transfers."""
        s = action.stage
        if action.kind is Kind.F:
            return self.forward_s[s]
        if action.kind is Kind.B:
            return self.backward_s[s]
        if action.kind is Kind.W:
            return self.weight_s[s]
        if action.kind is Kind.BW:
            return self.backward_s[s] + self.weight_s[s]
        if action.kind is Kind.UPDATE:
            return self.update_s[s]
        return schedule.jobs[action.other].time_s if action.kind is Kind.JOB else 0.0

    def work_s(self, stage: int) -> float:
        """Seconds of one microbatch on one stage, forward and backward."""
        return self.forward_s[stage] + self.backward_s[stage] + self.weight_s[stage]


def stage_costs(
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float],
    *,
    transfer_s: float | Sequence[float] = 0.0,
    activation_bytes: Sequence[float] | None = None,
    waiting_bytes: Sequence[float] | None = None,
    fixed_bytes: Sequence[float] | None = None,
    update_s: Sequence[float] | None = None,
) -> Costs:
    """Costs of a plain chain of stages; `transfer_s` per boundary, the same in both directions.

    Without `activation_bytes` every stage holds 1 per microbatch; without `waiting_bytes` all of it waits for W.
    """
    stages = len(forward_s)
    between = (transfer_s,) * (stages - 1) if isinstance(transfer_s, int | float) else tuple(transfer_s)
    activation = tuple(activation_bytes) if activation_bytes is not None else (1.0,) * stages
    return Costs(
        forward_s=tuple(forward_s),
        backward_s=tuple(backward_s),
        weight_s=tuple(weight_s),
        update_s=tuple(update_s) if update_s is not None else (0.0,) * stages,
        activation_bytes=activation,
        waiting_bytes=tuple(waiting_bytes) if waiting_bytes is not None else activation,
        fixed_bytes=tuple(fixed_bytes) if fixed_bytes is not None else (0.0,) * stages,
        edges=chain(stages),
        activation_s=between,
        gradient_s=between,
    )


def equal_costs(
    stages: int, forward_s: float = 1.0, backward_s: float = 1.0, weight_s: float = 1.0, transfer_s: float = 0.0
) -> Costs:
    """Costs of equal stages that hold 1 byte per microbatch each."""
    return stage_costs((forward_s,) * stages, (backward_s,) * stages, (weight_s,) * stages, transfer_s=transfer_s)
