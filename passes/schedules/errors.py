"""What can be wrong with a schedule or what is asked of one: each with the arithmetic and what would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passes.schedules.actions import Action


class ScheduleError(ValueError):
    """Something about a schedule that cannot be."""


class UnknownScheduleError(ScheduleError):
    """No schedule has this name; `names` are those that exist."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        super().__init__(f"no schedule is called {name!r}; there are {', '.join(names)}")
        self.name, self.names = name, names


class ChunkCountError(ScheduleError):
    """A schedule that cannot have so many stages per device; `possible` says in words which numbers it can have."""

    def __init__(self, name: str, chunks: int, possible: str) -> None:
        super().__init__(f"{name} has {possible} per device, not {chunks}")
        self.name, self.chunks, self.possible = name, chunks, possible


class StageCountError(ScheduleError):
    """Stages that devices cannot share evenly."""

    def __init__(self, stages: int, devices: int) -> None:
        super().__init__(f"{stages} stages on {devices} devices: {stages} / {devices} is not a whole number of chunks")
        self.stages, self.devices = stages, devices


class MicrobatchCountError(ScheduleError):
    """A number of microbatches that a schedule cannot have; `nearest` are the closest ones that it can."""

    def __init__(self, name: str, microbatches: int, must: str, nearest: tuple[int, ...]) -> None:
        ways = " or ".join(str(n) for n in nearest)
        super().__init__(f"{name} with {microbatches} microbatches: {must}; the nearest count is {ways}")
        self.name, self.microbatches, self.must, self.nearest = name, microbatches, must, nearest


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a device holds at its fullest moment, in bytes: what it always holds, and activations beside that."""

    device: int
    fixed_bytes: float
    activation_bytes: float
    available_bytes: float

    @property
    def needed_bytes(self) -> float:
        return self.fixed_bytes + self.activation_bytes


class ScheduleMemoryError(ScheduleError):
    """A schedule that holds more than a device has. `needs` are the devices that are too small."""

    def __init__(self, name: str, needs: tuple[MemoryNeed, ...]) -> None:
        worst = max(needs, key=lambda n: n.needed_bytes - n.available_bytes)
        super().__init__(
            f"{name} needs {worst.needed_bytes:.6g} bytes on device {worst.device} ({worst.fixed_bytes:.6g} for its "
            f"stages + {worst.activation_bytes:.6g} for activations), which has {worst.available_bytes:.6g}: "
            f"{worst.needed_bytes - worst.available_bytes:.6g} too few; {len(needs)} device(s) are too small"
        )
        self.name, self.needs = name, needs

    @property
    def least_bytes(self) -> float:
        """The least memory per device with which every device that is too small would do."""
        return max(n.needed_bytes for n in self.needs)


class InvalidScheduleError(ScheduleError):
    """A list of actions that is no schedule. `problem` names the broken property ("missing", "twice", "foreign",
    "wrong device", "both forms", "deadlock", "unmatched transfer", "wrong peer"), `actions` where."""

    def __init__(self, problem: str, text: str, actions: tuple[Action, ...] = ()) -> None:
        super().__init__(text)
        self.problem, self.actions = problem, actions
