"""A device's timeline: one compute stream and communication streams, issued in order, overlapping where data allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class Task:
    """Work of `duration_s` on a stream: "compute", or any other name for a communication stream (one per set of links).

    `after` are ids of tasks that must have ended before; they come earlier in the list. `shares` are further streams
    that the task holds as well: a collective over two dimensions of a torus keeps both busy.
    """

    id: int
    stream: str
    duration_s: float
    after: tuple[int, ...] = ()
    name: str = ""
    shares: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """When a task ran."""

    id: int
    stream: str
    start_s: float
    end_s: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans in the order of the tasks, and where the step's time went.

    `step_s` = `compute_s` + `exposed_communication_s`: something always runs. `hidden_communication_s` is the time in
    which a communication ran behind compute.
    """

    spans: tuple[Span, ...]
    step_s: float
    compute_s: float
    exposed_communication_s: float
    hidden_communication_s: float


def simulate(tasks: Sequence[Task], overlap: bool) -> Timeline:
    """Run the tasks: each starts when its streams are free and all of `after` have ended.

    Streams issue in the order of the list. Without `overlap` everything is one stream. Raises ValueError for an id that
    occurs twice, an `after` that does not come earlier, or a negative duration.
    """
    ends: dict[int, float] = {}
    free: dict[str, float] = {}
    spans: list[Span] = []
    for task in tasks:
        streams = (task.stream, *task.shares) if overlap else (COMPUTE,)
        start = max(free.get(s, 0.0) for s in streams)
        for other in task.after:
            end = ends.get(other)
            if end is None:
                raise ValueError(f"task {task.id} ({task.name}) waits for {other}, which does not come earlier")
            if end > start:
                start = end
        if task.id in ends:
            raise ValueError(f"two tasks have the id {task.id}")
        if not task.duration_s >= 0:
            raise ValueError(f"task {task.id} ({task.name}) takes {task.duration_s} s")
        end = start + task.duration_s
        ends[task.id] = end
        free.update(dict.fromkeys(streams, end))
        spans.append(Span(task.id, task.stream, start, end, task.name))
    return _account(tuple(spans), max(free.values(), default=0.0))


def _account(spans: tuple[Span, ...], step_s: float) -> Timeline:
    compute = _merged([(s.start_s, s.end_s) for s in spans if s.stream == COMPUTE])
    communication = _merged([(s.start_s, s.end_s) for s in spans if s.stream != COMPUTE])
    compute_s = float((compute[:, 1] - compute[:, 0]).sum())
    communication_s = float((communication[:, 1] - communication[:, 0]).sum())
    hidden_s = _common_s(compute, communication)
    return Timeline(spans, step_s, compute_s, communication_s - hidden_s, hidden_s)


def _merged(intervals: list[tuple[float, float]]) -> np.ndarray:
    """The union of intervals as disjoint ones in order, shape (n, 2)."""
    if not intervals:
        return np.zeros((0, 2))
    array = np.array(sorted(intervals))
    reach = np.maximum.accumulate(array[:, 1])
    first = np.concatenate([[True], array[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([array[first, 0], reach[last]], axis=1)


def _common_s(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the intersection of two unions of disjoint, ordered intervals."""
    if not len(a) or not len(b):
        return 0.0
    before = np.concatenate([[0.0], np.cumsum(b[:, 1] - b[:, 0])])

    def covered(points: np.ndarray) -> np.ndarray:
        """How much of b lies before each point."""
        last = np.maximum(np.searchsorted(b[:, 0], points, side="right") - 1, 0)
        inside = np.clip(points - b[last, 0], 0.0, b[last, 1] - b[last, 0])
        return before[last] + inside

    return float((covered(a[:, 1]) - covered(a[:, 0])).sum())
