"""The validator finds every kind of broken schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from passes.schedules import (
    Action,
    InvalidScheduleError,
    Job,
    Kind,
    Schedule,
    ScheduleMemoryError,
    equal_costs,
    fill_bubbles,
    make_schedule,
    simulate,
    stage_costs,
    validate,
    with_transfers,
)


def _rows(schedule: Schedule) -> list[list[Action]]:
    return [list(row) for row in schedule.actions]


def _drop(rows: list[list[Action]]) -> None:
    rows[1].remove(Action(Kind.BW, 1, 2))


def _repeat(rows: list[list[Action]]) -> None:
    rows[1].append(Action(Kind.F, 1, 2))


def _move(rows: list[list[Action]]) -> None:
    rows[0].append(rows[1].pop(0))


def _invent(rows: list[list[Action]]) -> None:
    rows[0].append(Action(Kind.F, 0, 99))


def _both(rows: list[list[Action]]) -> None:
    rows[0].append(Action(Kind.W, 0, 0))


def _backwards_first(rows: list[list[Action]]) -> None:
    rows[1].insert(0, rows[1].pop(rows[1].index(Action(Kind.BW, 1, 0))))


def _no_update(rows: list[list[Action]]) -> None:
    rows[0].remove(Action(Kind.UPDATE, 0))


def _update_first(rows: list[list[Action]]) -> None:
    rows[0].insert(0, rows[0].pop())


BROKEN: dict[str, tuple[Callable[[list[list[Action]]], None], str]] = {
    "an action is missing": (_drop, "missing"),
    "an action is there twice": (_repeat, "twice"),
    "an action is on another device": (_move, "wrong device"),
    "a microbatch that there is not": (_invent, "foreign"),
    "a whole backward and a half": (_both, "both forms"),
    "a backward before its forward": (_backwards_first, "deadlock"),
    "an update is missing": (_no_update, "missing"),
    "an update before the gradients": (_update_first, "deadlock"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_schedules(what: str) -> None:
    good = make_schedule("1f1b", 3, 4)
    rows = _rows(good)
    breaks, problem = BROKEN[what]
    breaks(rows)
    with pytest.raises(InvalidScheduleError) as caught:
        validate(replace(good, actions=tuple(tuple(r) for r in rows)))
    assert caught.value.problem == problem
    assert caught.value.actions


def test_a_circle_across_devices_is_a_deadlock() -> None:
    """Each device begins with what needs the other: legal on its own, hanging together."""
    good = make_schedule("gpipe", 2, 2)
    rows = _rows(good)
    # Device 0 wants the gradient of microbatch 0 before it sends microbatch 1, device 1 the other way round.
    rows[0] = [Action(Kind.F, 0, 0), Action(Kind.BW, 0, 0), Action(Kind.F, 0, 1), Action(Kind.BW, 0, 1), rows[0][-1]]
    with pytest.raises(InvalidScheduleError, match=r"device 0 waits at BW of stage 0, microbatch 0; device 1 waits"):
        validate(replace(good, actions=tuple(tuple(r) for r in rows)))


def test_blocking_sends_in_the_obvious_order_hang() -> None:
    """A send right after what makes the array, a receive right before what reads it: in 1F1B the first device then
    sends a second activation while the second one sends back the first gradient, and neither receives."""
    good = make_schedule("1f1b", 2, 4)
    first: list[Action] = []
    for action in good.actions[0]:
        m = action.microbatch
        if action.kind is Kind.BW:
            first.append(Action(Kind.RECV_GRADIENT, 0, m, 1, 1))
        first.append(action)
        if action.kind is Kind.F:
            first.append(Action(Kind.SEND_ACTIVATION, 0, m, 1, 1))
    second: list[Action] = []
    for action in good.actions[1]:
        m = action.microbatch
        if action.kind is Kind.F:
            second.append(Action(Kind.RECV_ACTIVATION, 1, m, 0, 0))
        second.append(action)
        if action.kind is Kind.BW:
            second.append(Action(Kind.SEND_GRADIENT, 1, m, 0, 0))
    obvious = replace(good, actions=(tuple(first), tuple(second)))
    with pytest.raises(InvalidScheduleError, match="waits at send activation .*waits at send gradient") as caught:
        validate(obvious)
    assert caught.value.problem == "deadlock"
    # Where transfers run beside computing the same lists end.
    assert simulate(obvious, equal_costs(2)).makespan_s == simulate(good, equal_costs(2)).makespan_s
    validate(with_transfers(good, equal_costs(2)))


def test_transfers_must_match() -> None:
    whole = with_transfers(make_schedule("1f1b", 2, 3), equal_costs(2))

    def problem(change: Callable[[list[list[Action]]], None]) -> str:
        rows = _rows(whole)
        change(rows)
        with pytest.raises(InvalidScheduleError) as caught:
            validate(replace(whole, actions=tuple(tuple(r) for r in rows)))
        return caught.value.problem

    send = Action(Kind.SEND_ACTIVATION, 0, 1, 1, 1)
    other = Action(Kind.SEND_ACTIVATION, 0, 2, 1, 1)
    receive = Action(Kind.RECV_ACTIVATION, 1, 1, 0, 0)

    def swap(rows: list[list[Action]]) -> None:
        i, j = rows[0].index(send), rows[0].index(other)
        rows[0][i], rows[0][j] = rows[0][j], rows[0][i]

    def elsewhere(rows: list[list[Action]]) -> None:
        rows[0][rows[0].index(send)] = replace(send, peer=0)

    def neither(rows: list[list[Action]]) -> None:
        rows[0].remove(send)
        rows[1].remove(receive)

    assert problem(lambda rows: rows[0].remove(send)) == "unmatched transfer"
    assert problem(lambda rows: rows[1].remove(receive)) == "unmatched transfer"
    assert problem(lambda rows: rows[1].append(receive)) == "twice"
    assert problem(swap) == "unmatched transfer"
    assert problem(elsewhere) == "wrong peer"
    assert problem(neither) == "unmatched transfer"


def test_memory_with_its_arithmetic() -> None:
    costs = stage_costs((1.0,) * 2, (1.0,) * 2, (1.0,) * 2, activation_bytes=(3.0, 3.0), fixed_bytes=(10.0, 20.0))
    schedule = make_schedule("gpipe", 2, 4)
    validate(schedule, costs, (22.0, 32.0))
    with pytest.raises(ScheduleMemoryError, match=r"32 bytes on device 1 \(20 .* \+ 12 .*30: 2 too few; 1 device") as e:
        validate(schedule, costs, (22.0, 30.0))
    assert e.value.least_bytes == 32.0
    assert [(n.device, n.needed_bytes) for n in e.value.needs] == [(1, 32.0)]


def test_jobs_are_done_once_where_their_weights_are() -> None:
    costs = equal_costs(2)
    filled = fill_bubbles(make_schedule("gpipe", 2, 2), costs, [Job("a", 1.0, devices=(1,))]).schedule
    validate(filled)
    job = Action(Kind.JOB, other=0)
    rows = _rows(filled)
    rows[1].remove(job)
    with pytest.raises(InvalidScheduleError, match="job 0 is never done"):
        validate(replace(filled, actions=tuple(tuple(r) for r in rows)))
    rows[0].append(job)
    with pytest.raises(InvalidScheduleError, match="whose weights are on devices"):
        validate(replace(filled, actions=tuple(tuple(r) for r in rows)))
