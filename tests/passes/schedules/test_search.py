"""The search over schedules: never worse than a named one, never better than the bound, memory respected."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.schedules import (
    NAMED,
    Action,
    Costs,
    Kind,
    MicrobatchCountError,
    Schedule,
    ScheduleMemoryError,
    StageCountError,
    best_schedule,
    chain,
    equal_costs,
    list_schedule,
    loop_placement,
    lower_bound_s,
    make_schedule,
    peak_bytes,
    simulate,
    stage_costs,
    v_placement,
    validate,
    with_transfers,
)
from passes.schedules.greedy import Policy

SECONDS = st.integers(0, 8).map(lambda n: n / 4)


@st.composite
def pipelines(draw, most_devices: int = 4, most_chunks: int = 2) -> tuple[Costs, int, int]:
    devices = draw(st.integers(1, most_devices))
    stages = devices * draw(st.integers(1, most_chunks))
    lists = [draw(st.lists(SECONDS, min_size=stages, max_size=stages)) for _ in range(4)]
    sizes = draw(st.lists(st.integers(1, 4), min_size=stages, max_size=stages))
    between = draw(st.lists(SECONDS, min_size=stages - 1, max_size=stages - 1))
    costs = stage_costs(*lists[:3], update_s=lists[3], transfer_s=between, activation_bytes=[float(s) for s in sizes])
    return costs, devices, draw(st.integers(1, 6))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pipelines(most_chunks=3), st.booleans())
def test_named_schedules_with_any_durations(pipeline: tuple[Costs, int, int], overlap: bool) -> None:
    costs, devices, microbatches = pipeline
    chunks = costs.stages // devices
    for name in NAMED:
        if NAMED[name].chunks not in ((1,) if chunks == 1 else (None, chunks)):
            continue
        try:
            schedule = make_schedule(name, devices, microbatches, chunks)
        except MicrobatchCountError:
            assert microbatches % devices
            continue
        validate(schedule)
        validate(with_transfers(schedule, costs))
        trace = simulate(schedule, costs, overlap)
        assert trace.makespan_s >= lower_bound_s(costs, microbatches, schedule.placement) - 1e-9
        for device, row in enumerate(trace.spans):
            assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(row))
            work = microbatches * sum(costs.work_s(s) for s in schedule.stages_of(device))
            assert trace.busy_s[device] == pytest.approx(
                work + sum(costs.update_s[s] for s in schedule.stages_of(device))
            )
        # Everything that is held is let go of.
        assert sum(a.kind is Kind.F for r in schedule.actions for a in r) == microbatches * costs.stages


@settings(max_examples=6, deadline=None, derandomize=True)
@given(pipelines(most_devices=3), st.booleans())
def test_the_found_one_is_at_most_as_long_as_any_named_one(pipeline: tuple[Costs, int, int], overlap: bool) -> None:
    costs, devices, microbatches = pipeline
    found = best_schedule(costs, microbatches, devices, overlap=overlap)
    validate(found.schedule, costs, [float("inf")] * devices)
    assert found.lower_bound_s - 1e-9 <= found.trace.makespan_s
    for candidate in found.candidates:
        assert candidate.makespan_s is not None
        assert found.trace.makespan_s <= candidate.makespan_s + 1e-12
    # More memory never hurts, and what is found fits.
    one = [sum(costs.activation_bytes[s] for s in range(costs.stages) if s % devices == d) for d in range(devices)]
    if costs.stages == 2 * devices:
        one = [max(x, costs.activation_bytes[d] + costs.activation_bytes[-1 - d]) for d, x in enumerate(one)]
    last = float("inf")
    for many in (1, 2, 3, microbatches):
        memory = [many * x for x in one]
        limited = best_schedule(costs, microbatches, devices, memory, overlap)
        assert all(p <= m + 1e-6 for p, m in zip(limited.trace.peak_bytes, memory, strict=True))
        assert limited.trace.makespan_s <= last + 1e-12
        last = limited.trace.makespan_s
    assert found.trace.makespan_s <= last + 1e-12


def _orders(stage: int, microbatches: int) -> list[tuple[Action, ...]]:
    """Every order of a device's actions in which B follows F and W follows B."""
    every = [Action(k, stage, m) for m in range(microbatches) for k in (Kind.F, Kind.B, Kind.W)]
    return [
        order
        for order in itertools.permutations(every)
        if all(
            order.index(Action(Kind.F, stage, m))
            < order.index(Action(Kind.B, stage, m))
            < order.index(Action(Kind.W, stage, m))
            for m in range(microbatches)
        )
    ]


@pytest.mark.parametrize(
    "times",
    [((1.0, 1.0), (1.0, 1.0), (1.0, 1.0)), ((1.0, 2.5), (2.0, 1.0), (0.5, 3.0)), ((3.0, 1.0), (1.0, 2.0), (1.0, 1.0))],
)
def test_against_every_schedule_there_is(times: tuple[tuple[float, float], ...]) -> None:
    """Two devices, two microbatches, the gradients apart: 90 orders on each device."""
    costs = stage_costs(*times, transfer_s=0.25)
    shortest = float("inf")
    for rows in itertools.product(_orders(0, 2), _orders(1, 2)):
        schedule = Schedule("any", 2, (0, 1), rows, chain(2))
        try:
            shortest = min(shortest, simulate(schedule, costs).makespan_s)
        except ValueError:
            continue  # a circle
    found = best_schedule(costs, 2, 2)
    assert found.lower_bound_s <= shortest
    assert found.trace.makespan_s == pytest.approx(shortest)


def test_unequal_stages_do_better_than_with_any_name() -> None:
    times = [[1.0 + ((7 * s + 3 * kind) % 5) / 5 for s in range(8)] for kind in range(3)]
    costs = stage_costs(*times, transfer_s=0.05)
    named = best_schedule(costs, 8, 4, names=[n for n, maker in NAMED.items() if maker.chunks in (None, 2)])
    found = best_schedule(costs, 8, 4)
    assert found.trace.makespan_s < 0.99 * named.trace.makespan_s
    assert found.gap < 0.05


def test_equal_stages_reach_the_papers_choice() -> None:
    """With 1F1B's memory and one stage per device the best is no longer than ZB-H1; with two ZB-V has no bubble but the
    start."""
    one = best_schedule(equal_costs(4), 12, 4, [4.0] * 4)
    assert one.trace.bubble_s <= 3.0
    two = best_schedule(equal_costs(8), 12, 4, [8.0] * 4)
    assert two.trace.bubble_s == pytest.approx(3.0)


def test_too_little_memory_says_the_least_that_would_do() -> None:
    costs = stage_costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4, activation_bytes=(2.0,) * 4, fixed_bytes=(10.0, 10, 10, 14))
    with pytest.raises(ScheduleMemoryError) as caught:
        best_schedule(costs, 8, 4, [11.0] * 4)
    assert caught.value.least_bytes == 16.0
    assert len(caught.value.needs) == 4
    found = best_schedule(costs, 8, 4, [16.0] * 4)
    assert max(found.trace.peak_bytes) == 16.0
    with pytest.raises(ScheduleMemoryError, match="gpipe"):
        best_schedule(costs, 8, 4, [16.0] * 4, names=["gpipe"])


def test_bad_counts() -> None:
    with pytest.raises(StageCountError, match="6 / 4"):
        best_schedule(equal_costs(6), 8, 4)
    with pytest.raises(MicrobatchCountError):
        best_schedule(equal_costs(8), 6, 4, names=["interleaved-1f1b"])
    # Among several names one that can take them is enough.
    assert best_schedule(equal_costs(8), 6, 4, names=["interleaved-1f1b", "zb-v"]).schedule.name == "zb-v"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pipelines(most_chunks=3), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_the_list_scheduler_ends_within_any_memory(
    pipeline: tuple[Costs, int, int], many: int, split: bool, patient: bool, in_a_v: bool
) -> None:
    costs, devices, microbatches = pipeline
    stages = costs.stages
    place = v_placement(devices) if in_a_v and stages == 2 * devices else loop_placement(devices, stages // devices)
    costs = replace(costs, waiting_bytes=tuple(a / 2 for a in costs.activation_bytes))
    own = [[s for s in range(stages) if place[s] == d] for d in range(devices)]
    memory = [many * sum(costs.activation_bytes[s] for s in row) for row in own]
    # Forwards first is what fills memory the fastest.
    policy = Policy((0.0,) * stages, (1.0,) * stages, (2.0,) * stages, (microbatches,) * stages, split, 0.0, patient)
    schedule = list_schedule("any", costs, microbatches, place, policy, memory)
    validate(schedule, costs, memory)
    assert peak_bytes(schedule, costs) <= tuple(m + 1e-6 for m in memory)


def test_the_search_says_the_same_every_time() -> None:
    costs = stage_costs((1.0, 1.3, 0.7), (1.2, 0.8, 1.4), (0.6, 1.2, 0.9))
    assert best_schedule(costs, 5, 3) == best_schedule(costs, 5, 3)
