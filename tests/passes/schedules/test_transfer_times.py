"""Transfers: what they cost when they overlap and when they block, skip connections, and memory over a list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from passes.schedules import (
    Action,
    Kind,
    make_schedule,
    peak_bytes,
    simulate,
    stage_costs,
    validate,
    with_transfers,
    without_transfers,
)


def test_gpipe_with_transfers_by_hand() -> None:
    costs = stage_costs((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), transfer_s=0.5)
    # One microbatch: F 1, transfer, F 1, BW 2, transfer, BW 2.
    assert simulate(make_schedule("gpipe", 2, 1), costs).makespan_s == 7.0
    # Two overlapping: the second activation leaves at 2, computing hides it; both gradients come back behind computing.
    trace = simulate(make_schedule("gpipe", 2, 2), costs)
    assert trace.makespan_s == 1 + 0.5 + 2 + 4 + 0.5 + 2
    assert [(m.source, m.destination, m.start_s, m.end_s) for m in trace.messages] == [
        (0, 1, 1.0, 1.5),
        (0, 1, 2.0, 2.5),
        (1, 0, 5.5, 6.0),
        (1, 0, 7.5, 8.0),
    ]
    # Blocking: the sender waits too, so the second forward starts half a second later and ends later.
    blocked = simulate(make_schedule("gpipe", 2, 2), costs, overlap=False)
    assert blocked.makespan_s > trace.makespan_s
    assert sum(blocked.exposed_transfer_s) == 4 * 2 * 0.5
    assert sum(trace.exposed_transfer_s) == 0.0


def test_a_link_carries_one_array_at_a_time() -> None:
    costs = stage_costs((1.0, 1.0), (1.0, 1.0), (0.0, 0.0), transfer_s=5.0)
    trace = simulate(make_schedule("gpipe", 2, 3), costs)
    forwards = [m for m in trace.messages if m.source == 0]
    assert [(m.start_s, m.end_s) for m in forwards] == [(1.0, 6.0), (6.0, 11.0), (11.0, 16.0)]


def test_eager_hides_transfers_that_1f1b_waits_for() -> None:
    costs = stage_costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4, transfer_s=0.5)
    plain = simulate(make_schedule("1f1b", 4, 16), costs)
    eager = simulate(make_schedule("eager-1f1b", 4, 16), costs)
    assert eager.makespan_s < plain.makespan_s


def test_skip_connections_travel_to_their_reader() -> None:
    """A U-Net over four stages: the first stage's activation is read by the last one as well."""
    edges = ((0, 1), (0, 3), (1, 2), (2, 3))
    costs = stage_costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4)
    costs = replace(costs, edges=edges, activation_s=(0.0, 9.0, 0.0, 0.0), gradient_s=(0.0, 0.0, 0.0, 0.0))
    schedule = replace(make_schedule("1f1b", 4, 4), edges=edges)
    trace = simulate(schedule, costs)
    first = next(s for s in trace.spans[3] if s.action == Action(Kind.F, 3, 0))
    assert first.start_s == 10.0
    whole = with_transfers(schedule, costs)
    validate(whole)
    assert Action(Kind.SEND_ACTIVATION, 0, 2, 3, 3) in whole.actions[0]
    assert Action(Kind.RECV_ACTIVATION, 3, 2, 0, 0) in whole.actions[3]
    assert Action(Kind.SEND_GRADIENT, 3, 2, 0, 0) in whole.actions[3]
    assert without_transfers(whole) == schedule
    assert simulate(whole, costs).makespan_s == pytest.approx(trace.makespan_s)


def test_an_array_goes_once_to_a_device_that_reads_it_twice() -> None:
    """Stages 1 and 2 on one device both read stage 0."""
    edges = ((0, 1), (0, 2), (1, 2), (2, 3))
    schedule = replace(make_schedule("v-half", 2, 1), placement=(0, 1, 1, 0), edges=edges)
    costs = stage_costs((1.0,) * 4, (1.0,) * 4, (1.0,) * 4)
    costs = replace(costs, edges=edges, activation_s=(1.0,) * 4, gradient_s=(1.0,) * 4)
    whole = with_transfers(schedule, costs)
    validate(whole)
    sends = [a for a in whole.actions[0] if a.kind is Kind.SEND_ACTIVATION and a.stage == 0]
    assert len(sends) == 1
    assert len([m for m in simulate(schedule, costs).messages if m.what == (0, 0, 0)]) == 1


def test_memory_between_the_two_gradients() -> None:
    costs = stage_costs((1.0,), (1.0,), (1.0,), activation_bytes=(10.0,), waiting_bytes=(4.0,), fixed_bytes=(100.0,))
    whole = make_schedule("gpipe", 1, 3)
    assert peak_bytes(whole, costs) == (130.0,)
    late = make_schedule("1f1b-2bp", 1, 3)  # F B F B F B W W W: 10, then 4 + 10, then 8 + 10
    assert peak_bytes(late, costs) == (118.0,)


def test_a_joint_update_waits_for_every_stage() -> None:
    costs = stage_costs((1.0,) * 3, (1.0,) * 3, (1.0,) * 3, update_s=(1.0,) * 3)
    alone = make_schedule("1f1b", 3, 3)
    joint = replace(alone, joint_update=True)
    validate(joint)
    ends = simulate(alone, costs).spans
    first = simulate(joint, costs).spans
    last_gradient = max(row[-2].end_s for row in first)
    assert [row[-1].start_s for row in first] == [last_gradient] * 3
    assert ends[2][-1].start_s < last_gradient


def test_costs_say_what_does_not_fit_together() -> None:
    schedule = make_schedule("gpipe", 2, 2)
    with pytest.raises(ValueError, match="costs of 3 stages"):
        simulate(schedule, stage_costs((1.0,) * 3, (1.0,) * 3, (1.0,) * 3))
    with pytest.raises(ValueError, match="backward_s has 1 entries for 2 stages"):
        stage_costs((1.0, 1.0), (1.0,), (1.0, 1.0))
    with pytest.raises(ValueError, match="finite and not negative"):
        stage_costs((1.0, float("nan")), (1.0, 1.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="part of activation_bytes"):
        stage_costs((1.0,), (1.0,), (1.0,), activation_bytes=(1.0,), waiting_bytes=(2.0,))
    with pytest.raises(ValueError, match="from an earlier to a later"):
        replace(stage_costs((1.0, 1.0), (1.0, 1.0), (1.0, 1.0)), edges=((1, 0),))
