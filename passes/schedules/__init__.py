"""Pipeline schedules: who does what when, what that takes, and which is best."""

from passes.schedules.actions import Action, Job, Kind, Schedule, chain, loop_placement, v_placement
from passes.schedules.bound import lower_bound_s
from passes.schedules.costs import Costs, equal_costs, stage_costs
from passes.schedules.errors import (
    ChunkCountError,
    InvalidScheduleError,
    MemoryNeed,
    MicrobatchCountError,
    ScheduleError,
    ScheduleMemoryError,
    StageCountError,
    UnknownScheduleError,
)
from passes.schedules.fill import fill_bubbles
from passes.schedules.greedy import Policy, list_schedule
from passes.schedules.play import Message, Span
from passes.schedules.search import Candidate, Found, best_schedule
from passes.schedules.simulate import Trace, peak_activations, peak_bytes, simulate
from passes.schedules.table import NAMED, make_schedule
from passes.schedules.transfers import with_transfers, without_transfers
from passes.schedules.validate import check_memory, validate

__all__ = [
    "NAMED",
    "Action",
    "Candidate",
    "ChunkCountError",
    "Costs",
    "Found",
    "InvalidScheduleError",
    "Job",
    "Kind",
    "MemoryNeed",
    "Message",
    "MicrobatchCountError",
    "Policy",
    "Schedule",
    "ScheduleError",
    "ScheduleMemoryError",
    "Span",
    "StageCountError",
    "Trace",
    "UnknownScheduleError",
    "best_schedule",
    "chain",
    "check_memory",
    "equal_costs",
    "fill_bubbles",
    "list_schedule",
    "loop_placement",
    "lower_bound_s",
    "make_schedule",
    "peak_activations",
    "peak_bytes",
    "simulate",
    "stage_costs",
    "v_placement",
    "validate",
    "with_transfers",
    "without_transfers",
]
