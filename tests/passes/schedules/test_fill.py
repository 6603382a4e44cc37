"""Frozen parts' work in bubbles."""

from __future__ import annotations

import pytest

from passes.schedules import Action, Job, Kind, equal_costs, fill_bubbles, make_schedule, simulate, validate


def test_bubbles_take_what_fits_and_nothing_moves() -> None:
    costs = equal_costs(4)
    plain = simulate(make_schedule("1f1b", 4, 8), costs)
    # Bubbles of 9 s on each of four devices; a chain of 10 jobs and 12 loose ones take 18 s of these 36.
    jobs = [Job(f"layer {i}", 0.9, after=(i - 1,) if i else ()) for i in range(10)]
    jobs += [Job(f"text {i}", 0.75) for i in range(12)]
    filled = fill_bubbles(plain.schedule, costs, jobs)
    validate(filled.schedule)
    assert filled.makespan_s == plain.makespan_s
    assert sum(filled.busy_s) == pytest.approx(sum(plain.busy_s) + 18.0)
    assert filled.bubble_ratio < plain.bubble_ratio
    before = {s.action: s.start_s for row in plain.spans for s in row}
    after = {s.action: s.start_s for row in filled.spans for s in row}
    assert all(after[a] == before[a] for a in before)
    ends = {s.action.other: s for row in filled.spans for s in row if s.action.kind is Kind.JOB}
    assert all(ends[i].start_s >= ends[i - 1].end_s for i in range(1, 10))


def test_what_fits_in_no_bubble_stands_at_the_end() -> None:
    costs = equal_costs(2)
    plain = simulate(make_schedule("gpipe", 2, 4), costs)
    filled = fill_bubbles(plain.schedule, costs, [Job("large", 50.0)])
    validate(filled.schedule)
    # The last device has done its work three seconds before the first one.
    assert filled.makespan_s == plain.makespan_s - 2.0 + 50.0
    assert filled.spans[1][-1].action.kind is Kind.JOB


def test_what_feeds_the_pipeline_comes_before_it() -> None:
    costs = equal_costs(3)
    plain = simulate(make_schedule("1f1b", 3, 4), costs)
    text = Job("text", 1.5, feeds=((2, 0), (2, 1)))
    filled = fill_bubbles(plain.schedule, costs, [text])
    validate(filled.schedule)
    assert filled.makespan_s == plain.makespan_s  # the last device waits for two seconds anyway
    spans = {s.action: s for row in filled.spans for s in row}
    assert spans[Action(Kind.JOB, other=0)].end_s <= spans[Action(Kind.F, 2, 0)].start_s
    # Nothing is idle before the first forward of the first stage: the step begins later.
    late = fill_bubbles(plain.schedule, costs, [Job("text", 1.5, feeds=((0, 0),))])
    validate(late.schedule)
    assert late.makespan_s == plain.makespan_s + 1.5


def test_devices_that_hold_the_weights() -> None:
    costs = equal_costs(3)
    filled = fill_bubbles(make_schedule("1f1b", 3, 4), costs, [Job(str(i), 0.5, devices=(1,)) for i in range(8)])
    validate(filled.schedule)
    assert [sum(a.kind is Kind.JOB for a in row) for row in filled.schedule.actions] == [0, 8, 0]
    # More jobs can be added to a schedule that has some.
    again = fill_bubbles(filled.schedule, costs, [Job("more", 0.5, after=(7,))])
    validate(again.schedule)
    assert len(again.schedule.jobs) == 9


def test_jobs_that_cannot_be() -> None:
    costs = equal_costs(2)
    schedule = make_schedule("gpipe", 2, 2)
    with pytest.raises(ValueError, match="only earlier jobs"):
        fill_bubbles(schedule, costs, [Job("a", 1.0, after=(0,))])
    with pytest.raises(ValueError, match=r"devices \(2,\) of 2"):
        fill_bubbles(schedule, costs, [Job("a", 1.0, devices=(2,))])
    with pytest.raises(ValueError, match="which there is not"):
        fill_bubbles(schedule, costs, [Job("a", 1.0, feeds=((0, 5),))])
