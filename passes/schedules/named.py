"""Schedules with a name: GPipe, 1F1B and its relatives. What each costs is in `tests/passes/schedules`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from passes.schedules.actions import Action, Kind, Schedule, chain, loop_placement
from passes.schedules.errors import MicrobatchCountError


def gpipe(devices: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards (arXiv:1811.06965). Holds every microbatch."""
    return _plain("gpipe", devices, microbatches, lambda s: microbatches)


def one_forward_one_backward(devices: int, microbatches: int) -> Schedule:
    """1F1B (arXiv:1806.03377, with flush): as soon as a backward can run it does, which holds no more microbatches than
    there are stages after this one. The bubble is GPipe's."""
    return _plain("1f1b", devices, microbatches, lambda s: devices - 1 - s)


def eager_one_forward_one_backward(devices: int, microbatches: int) -> Schedule:
    """1F1B with twice the forwards ahead (arXiv:2211.05322), so that transfers run behind computing."""
    return _plain("eager-1f1b", devices, microbatches, lambda s: 2 * (devices - 1 - s))


def gpipe_two_gradients(devices: int, microbatches: int) -> Schedule:
    """GPipe with the gradients of weights put off to the end (arXiv:2405.18047)."""
    return _plain("gpipe-2bp", devices, microbatches, lambda s: microbatches, split=True)


def one_forward_one_backward_two_gradients(devices: int, microbatches: int) -> Schedule:
    """1F1B with the gradients of weights put off to the end (arXiv:2405.18047)."""
    return _plain("1f1b-2bp", devices, microbatches, lambda s: devices - 1 - s, split=True)


def looped_breadth_first(devices: int, microbatches: int, chunks: int = 2) -> Schedule:
    """Each device has several stages and takes all microbatches through one before the next (arXiv:2211.05953)."""
    order = [(c, m) for c in range(chunks) for m in range(microbatches)]
    return _looped("looped-bfs", devices, microbatches, chunks, order, [len(order)] * devices)


def looped_depth_first(devices: int, microbatches: int, chunks: int = 2) -> Schedule:
    """Each device takes as many microbatches as there are devices through all its stages, then the next as many; all
    forwards come before all backwards. Raises MicrobatchCountError where the devices do not divide the microbatches."""
    name = "looped-dfs"
    order = _by_rounds(name, devices, microbatches, chunks)
    return _looped(name, devices, microbatches, chunks, order, [len(order)] * devices)


def interleaved_one_forward_one_backward(devices: int, microbatches: int, chunks: int = 2) -> Schedule:
    """1F1B with several stages per device (arXiv:2104.04473): a bubble smaller by their number, for more transfers and
    up to (chunks - 1) / chunks more activations per stage. Raises MicrobatchCountError as above."""
    name = "interleaved-1f1b"
    order = _by_rounds(name, devices, microbatches, chunks)
    warm_up = [2 * (devices - 1 - s) + (chunks - 1) * devices for s in range(devices)]
    return _looped(name, devices, microbatches, chunks, order, warm_up)


def woven(forwards: Sequence[Action], backwards: Sequence[Action], warm_up: int) -> list[Action]:
    """`warm_up` forwards, then one forward and one backward by turns, then the other backwards."""
    warm_up = min(warm_up, len(forwards))
    out = list(forwards[:warm_up])
    for forward, backward in zip(forwards[warm_up:], backwards, strict=False):
        out += (forward, backward)
    return out + list(backwards[len(forwards) - warm_up :])


def with_updates(rows: Sequence[Sequence[Action]], placement: Sequence[int]) -> tuple[tuple[Action, ...], ...]:
    """Each device's list, followed by the updates of its stages."""
    return tuple(
        (*row, *(Action(Kind.UPDATE, s) for s, d in enumerate(placement) if d == device))
        for device, row in enumerate(rows)
    )


def _plain(name: str, devices: int, microbatches: int, warm_up: Callable[[int], int], split: bool = False) -> Schedule:
    rows = []
    for s in range(devices):
        forwards = [Action(Kind.F, s, m) for m in range(microbatches)]
        backwards = [Action(Kind.B if split else Kind.BW, s, m) for m in range(microbatches)]
        row = woven(forwards, backwards, warm_up(s))
        rows.append(row + [Action(Kind.W, s, m) for m in range(microbatches)] if split else row)
    placement = loop_placement(devices, 1)
    return Schedule(name, microbatches, placement, with_updates(rows, placement), chain(devices))


def _looped(
    name: str,
    devices: int,
    microbatches: int,
    chunks: int,
    order: Sequence[tuple[int, int]],
    warm_up: Sequence[int],
) -> Schedule:
    """`order` are the (chunk, microbatch) of the forwards, the same on every device; the backwards take the chunks the
    other way round."""
    rows = []
    for d in range(devices):
        forwards = [Action(Kind.F, c * devices + d, m) for c, m in order]
        backwards = [Action(Kind.BW, (chunks - 1 - c) * devices + d, m) for c, m in order]
        rows.append(woven(forwards, backwards, warm_up[d]))
    placement = loop_placement(devices, chunks)
    return Schedule(name, microbatches, placement, with_updates(rows, placement), chain(devices * chunks))


def _by_rounds(name: str, devices: int, microbatches: int, chunks: int) -> list[tuple[int, int]]:
    if microbatches % devices:
        below = microbatches - microbatches % devices
        nearest = (below, below + devices) if below else (devices,)
        must = f"it takes them in rounds of one per device, and {microbatches} / {devices} is not whole"
        raise MicrobatchCountError(name, microbatches, must, nearest)
    rounds = range(0, microbatches, devices)
    return [(c, m) for first in rounds for c in range(chunks) for m in range(first, first + devices)]
