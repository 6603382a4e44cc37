"""Zero-bubble schedules: the gradient of the weights is an action of its own, done when nothing else is ready."""

from __future__ import annotations

from collections.abc import Callable

from passes.schedules.actions import Action, Kind, Schedule, chain, loop_placement
from passes.schedules.named import with_updates


def zb_h1(devices: int, microbatches: int) -> Schedule:
    """ZB-H1 (arXiv:2401.10241): 1F1B in which stage s does W s microbatches late, so that every device holds as much as
    the first one does in 1F1B, and the bubble is smaller by 2 (p - 1) W."""
    return _delayed("zb-h1", devices, microbatches, lambda s: devices - s, lambda s: s)


def zb_h2(devices: int, microbatches: int) -> Schedule:
    """ZB-H2 (arXiv:2401.10241): about twice the forwards ahead, W twice as late. With F = B = W and at least
    2 p - 1 microbatches no device stands idle between its own first and last action."""
    return _delayed("zb-h2", devices, microbatches, lambda s: 2 * (devices - s) - 1, lambda s: 2 * s)


def _delayed(
    name: str, devices: int, microbatches: int, warm_up: Callable[[int], int], delay: Callable[[int], int]
) -> Schedule:
    """Forwards ahead, then B, the W of an earlier microbatch, and F by turns."""
    rows = []
    for s in range(devices):
        ahead = min(microbatches, warm_up(s))
        row = [Action(Kind.F, s, m) for m in range(ahead)]
        for m in range(microbatches):
            row.append(Action(Kind.B, s, m))
            if m >= delay(s):
                row.append(Action(Kind.W, s, m - delay(s)))
            if ahead + m < microbatches:
                row.append(Action(Kind.F, s, ahead + m))
        row += [Action(Kind.W, s, m) for m in range(max(0, microbatches - delay(s)), microbatches)]
        rows.append(row)
    placement = loop_placement(devices, 1)
    return Schedule(name, microbatches, placement, with_updates(rows, placement), chain(devices))
