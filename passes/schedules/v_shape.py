"""The V family: two stages per device, placed down the devices and up again, under a limit on activations.

Device d has stages d and 2 p - 1 - d, so that what the first stage holds long the second holds shortly, and all devices
need about the same memory (arXiv:2405.15362). The schedules here are made by the list scheduler with equal durations,
in two ways: a policy says what goes first and how many microbatches each stage may hold; or a block of one
microbatch's actions, repeated every six of them, gives the order of F and B. All are tried, the one with the least
bubble is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from passes.schedules.actions import Action, Kind, Schedule, v_placement
from passes.schedules.costs import equal_costs
from passes.schedules.errors import ScheduleError
from passes.schedules.greedy import Policy, list_schedule
from passes.schedules.simulate import simulate

_ORDERS = ((1, 0, 2, 3, 5, 4), (1, 0, 3, 2, 5, 4), (1, 2, 0, 3, 5, 4))
"""What goes first among F, B and W of a device's two stages, numbered F0, F1, B0, B1, W0, W1."""

_BLOCKS = (
    ((1, 1, 1, 1), (1, 1, 1)),
    ((1, 1, 1, 1), (3, 1, 3)),
    ((1, 2, 1, 2), (1, 1, 2)),
    ((1, 2, 2, 1), (4, 1, 4)),
)
"""Steps from device to device on the four legs of a microbatch (F down, F up, B down, B up), and at the three turns
between them, in durations of one action."""


def v_min(devices: int, microbatches: int) -> Schedule:
    """V-Min: about a third of 1F1B's activations, (p + 4) // 3 microbatches."""
    return replace(v_schedule(devices, microbatches, v_limit("v-min", devices)), name="v-min")


def v_half(devices: int, microbatches: int) -> Schedule:
    """V-Half: about half of 1F1B's activations, (p + 2) // 2 microbatches."""
    return replace(v_schedule(devices, microbatches, v_limit("v-half", devices)), name="v-half")


def zb_v(devices: int, microbatches: int) -> Schedule:
    """ZB-V: with 1F1B's activations and equal durations, no device idle between its own first and last action."""
    return replace(v_schedule(devices, microbatches, v_limit("zb-v", devices)), name="zb-v")


def v_limit(name: str, devices: int) -> int:
    """The most activations of single stages (half a device's) that a device holds under the schedule of this name."""
    return {"v-min": 2 * ((devices + 4) // 3), "v-half": 2 * ((devices + 2) // 2), "zb-v": 2 * devices}[name]


def v_schedule(devices: int, microbatches: int, limit: int) -> Schedule:
    """The schedule of the family in which no device holds more than `limit` activations of single stages.

    Raises ScheduleError for fewer than 2: a device has to hold a microbatch for both of its stages at once.
    """
    if limit < 2:
        raise ScheduleError(f"a V schedule with room for {limit} activations: each device has two stages and needs 2")
    costs = equal_costs(2 * devices)
    memory = [float(limit)] * devices
    best: tuple[tuple[float, float], Schedule] | None = None
    for policy, order in _candidates(devices, microbatches, limit):
        within = None if order is None else memory  # a policy's caps add up to the limit
        made = list_schedule("v", costs, microbatches, v_placement(devices), policy, within, order)
        if len(made) < (3 * microbatches + 1) * costs.stages:
            continue  # an order that cannot be kept within the limit
        trace = simulate(made, costs)
        score = (trace.skewed_bubble_s, trace.makespan_s)
        if best is None or score < best[0]:
            best = (score, made)
    assert best is not None  # policies without an order always end
    return best[1]


def _candidates(
    devices: int, microbatches: int, limit: int
) -> Iterator[tuple[Policy, Sequence[Sequence[Action]] | None]]:
    stages = 2 * devices
    free = Policy((0.0,) * stages, (0.0,) * stages, (1.0,) * stages, (limit,) * stages)
    if limit >= 2 * devices:
        yield free, _phases(devices, microbatches)
        return
    for order in _ORDERS:
        for most in (limit - 1, limit - 2):
            shares = [most - d * (most - limit // 2) / max(1, devices - 1) for d in range(devices)]
            first = [min(limit - 1, max(1, int(s + 0.5))) for s in shares]
            yield _policy(order, first, limit), None
    for steps, turns in _BLOCKS:
        block = _block(devices, steps, turns)
        if block is not None:
            yield free, _repeated(block, devices, microbatches)


def _policy(order: Sequence[int], first: Sequence[int], limit: int) -> Policy:
    """`first[d]` of the `limit` activations on device d are for its first stage, the others for its second."""
    rank = {what: float(order.index(what)) for what in range(6)}
    devices = len(first)

    def ranks(early: int, late: int) -> tuple[float, ...]:
        return (rank[early],) * devices + (rank[late],) * devices

    caps = (*first, *(limit - x for x in reversed(first)))
    return Policy(ranks(0, 1), ranks(2, 3), ranks(4, 5), caps)


def _block(devices: int, steps: Sequence[int], turns: Sequence[int]) -> list[int] | None:
    """When the F of all stages and then the B of all stages backwards begin, for one microbatch; None where repeating
    it every six durations would have a device do two things at once."""
    gaps: list[int] = []
    for leg, turn in zip(steps, (*turns, 0), strict=True):
        gaps += [leg] * (devices - 1) + [turn]
    times = [sum(gaps[:i]) for i in range(len(gaps))]
    for device in range(devices):
        own = [t for t, s in zip(times, _visits(devices), strict=True) if v_placement(devices)[s] == device]
        if len({t % 6 for t in own}) < 4:
            return None
    return times


def _visits(devices: int) -> list[int]:
    """Stages in the order in which a microbatch meets them, forwards and back."""
    return [*range(2 * devices), *reversed(range(2 * devices))]


def _repeated(block: Sequence[int], devices: int, microbatches: int) -> list[list[Action]]:
    place = v_placement(devices)
    timed: list[list[tuple[int, int, int, int]]] = [[] for _ in range(devices)]
    for i, (time, stage) in enumerate(zip(block, _visits(devices), strict=True)):
        for m in range(microbatches):
            timed[place[stage]].append((time + 6 * m, i, stage, m))
    stages = 2 * devices
    return [[Action(Kind.F if i < stages else Kind.B, s, m) for _, i, s, m in sorted(row)] for row in timed]


def _phases(devices: int, microbatches: int) -> list[list[Action]]:
    """The order of F and B with room for twice as many activations as devices (ZB-V, arXiv:2401.10241, section 6): on
    each device forwards of the first stage until those of the second arrive, both by turns until the first gradient
    does, F and B of the second stage by turns until the gradient of the first stage arrives, then all four by turns."""
    rows = []
    for d in range(devices):
        early, late = d, 2 * devices - 1 - d
        begun = {(kind, stage): 0 for kind in (Kind.F, Kind.B) for stage in (early, late)}
        row: list[Action] = []
        pattern = [(Kind.F, early)] * (2 * (devices - d) - 1)
        pattern += [(Kind.F, late), (Kind.F, early)] * d
        pattern += [(Kind.F, late), (Kind.B, late)] * (devices - d)
        pattern += [(Kind.F, early), (Kind.B, early), (Kind.F, late), (Kind.B, late)] * microbatches
        waits_for = {(Kind.F, late): (Kind.F, early), (Kind.B, late): (Kind.F, late), (Kind.B, early): (Kind.B, late)}
        for what in pattern:
            limit = begun[waits_for[what]] if what in waits_for else microbatches
            if begun[what] < limit:
                row.append(Action(what[0], what[1], begun[what]))
                begun[what] += 1
        rows.append(row)
    return rows
